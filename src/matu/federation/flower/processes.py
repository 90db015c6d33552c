"""Flower's programs as processes that end with ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from matu.errors import ConfigError
from matu.federation.flower import ENVIRONMENT

STOP_S = 10.0
"""Seconds that Flower's processes get to end by themselves."""
LAST_LINES = 15
_PR_SET_PDEATHSIG = 1
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def process_of(command: list[str], log: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this one, whatever ends it; what it says goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command, env=environment(home), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            yield process
        finally:
            started = _descendants(process.pid)  # they have sessions of their own, and outlive it by minutes
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for one in started:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(started, STOP_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what a process that had ended before left in its group


def _descendants(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def environment(home: Path) -> dict[str, str]:
    """For Flower's processes: its own folder, and its programs on the path, which it looks for by name."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home.resolve()), "PATH": path}


def _end_with_parent() -> None:
    """In a new process: SIGTERM when the process that started it is gone, kill -9 included (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def tool(name: str) -> str:
    """A program of Flower, beside this Python."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise ConfigError(f"{name}: not there; pip install 'flwr==1.41.*'")
    return found


def size_of(path: Path) -> int:
    """Bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def text_of(path: Path, since: int = 0) -> str:
    """What a file says from a byte on; empty if there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(since)
        return file.read().decode(errors="replace")


def last_lines(text: str) -> str:
    """The end of a log, in a line and without its colours."""
    text = _COLOURS.sub("", text)
    return " | ".join(line.strip() for line in text.strip().splitlines()[-LAST_LINES:] if line.strip())[-1500:]
