"""Runs a command and watches its whole tree of processes: wall and processor time, memory, lines of a file."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

EVERY_S = 0.1
SHARES_EVERY = 20
"""Proportional memory is read so many times less often: the kernel walks every page for it."""


@dataclass
class Watched:
    """What a command took.

    Attributes
    ----------
    wall_s, processor_s
        From its start to its end; of all its processes together.
    peak_rss_mb, peak_pss_mb
        Memory of all processes together, in 10^6 bytes; pages that several share are counted in each, or once.
    line_s
        Seconds from the start to every line of the file.
    line_rss_mb, line_processor_s
        Resident memory, and processor time so far, when each was seen.
    """

    wall_s: float = 0.0
    processor_s: float = 0.0
    peak_rss_mb: float = 0.0
    peak_pss_mb: float = 0.0
    line_s: list[float] = field(default_factory=list)
    line_rss_mb: list[float] = field(default_factory=list)
    line_processor_s: list[float] = field(default_factory=list)


def watch(
    words: Sequence[str], lines: Path, log: Path, *, environment: Mapping[str, str] | None = None,
    folder: Path | None = None, until: int = 0,
) -> Watched:  # fmt: skip
    """Run a command to its end; SystemExit, with the end of what it said, if it fails.

    Parameters
    ----------
    words
        The command.
    lines
        A file to which it adds a line a round.
    log
        Where its output goes.
    environment, folder
        In place of this process's own, and its working directory.
    until
        Lines after which it is stopped; 0: never.
    """
    found, used, looks = Watched(), dict[int, float](), 0
    began = time.perf_counter()
    with open(log, "wb") as said:
        process = psutil.Popen(list(words), stdout=said, stderr=said, env=environment, cwd=folder)
        try:
            while process.poll() is None and not 0 < until <= len(found.line_s):
                tree = _tree(process)
                resident = _sum(tree, lambda p: p.memory_info().rss) / 1e6
                found.peak_rss_mb = max(found.peak_rss_mb, resident)
                if looks % SHARES_EVERY == 0:
                    found.peak_pss_mb = max(found.peak_pss_mb, _sum(tree, lambda p: p.memory_full_info().pss) / 1e6)
                used |= {one.pid: _sum([one], lambda p: sum(p.cpu_times()[:2])) or used.get(one.pid, 0) for one in tree}
                for _ in range(_lines(lines) - len(found.line_s)):
                    found.line_s.append(time.perf_counter() - began)
                    found.line_rss_mb.append(resident)
                    found.line_processor_s.append(sum(used.values()))
                looks += 1
                time.sleep(EVERY_S)
        finally:  # also when this process is stopped: nothing goes on behind it
            for one in _tree(process):
                with contextlib.suppress(psutil.Error):
                    one.terminate()
            process.wait()
    found.wall_s, found.processor_s = time.perf_counter() - began, sum(used.values())
    if len(found.line_s) < until or (process.returncode and not until):
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}\n{log.read_text()[-3000:]}")
    return found


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def machine() -> dict[str, Any]:
    """What a record says of where and when it was made."""
    return {
        "processor": processor(), "cores": psutil.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(), "load_before": round(psutil.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _tree(process: psutil.Process) -> list[psutil.Process]:
    """A process with all below it; none where it has just ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _sum(processes: Sequence[psutil.Process], read: Callable[[psutil.Process], float]) -> float:
    """A number about processes; 0 for one that has just ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += read(process)
    return total
