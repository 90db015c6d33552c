"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

from matu.errors import ConfigError, DataError, MatuError


class DiskFullError(MatuError):
    """No room left for a file; what was saved before is untouched."""


@contextmanager
def whole_or_none(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, which replaces it when the block ends well.

    A kill at any moment leaves the old file or the new one, never a part.

    Raises
    ------
    DiskFullError
        If the disk or the quota is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # another process may be writing the same
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if _full(error):
            raise DiskFullError(
                f"{path}: no room for it; what was saved before is whole: free some room, then resume"
            ) from error
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; see `whole_or_none`."""
    with whole_or_none(path) as part:
        part.write_bytes(content)


def _full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room; safetensors has the number in its text alone."""
    number = getattr(error, "errno", None)
    if isinstance(error, SafetensorError) and (said := re.search(r"os error (\d+)", str(error))):
        number = int(said[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on the disk."""
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if _full(error):
            raise DiskFullError(f"{path}: no room for another line; free some room, then resume") from error
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def finish_before_interrupt() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block is done, so that a save is never cut in the middle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, remember) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


def keep_lines(path: Path, last_round: int) -> None:
    """Drop what a killed run recorded and did not save: lines past `last_round`, and a torn last line.

    Raises
    ------
    DataError
        If a round up to `last_round` is missing or unreadable: the file was changed by other hands.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number in range(1, last_round + 1):
        try:
            found = json.loads(lines[number - 1])["round"]
        except (IndexError, ValueError, KeyError, TypeError):
            found = None
        if found != number:
            raise DataError(f"{path}: line {number} is not round {number}; the file is damaged, the run cannot go on")
    write_atomic(path, b"".join(line + b"\n" for line in lines[:last_round]))


HELD_S = 0.5
"""Seconds that a folder may be held by others before it counts as held: `is_held` holds it for a moment."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is complete; what fails leaves nothing.

    An empty folder that is there already stays itself, since it may be a mount, or where somebody's shell is: it is
    filled at the end, one entry after another.

    Raises
    ------
    ConfigError
        If something lies there already, or it cannot be made.
    DiskFullError
        If the disk or the quota is full.
    """
    there = path.exists()
    left = set(path.glob(".matu-*.part")) if there else set()  # of a process that was killed
    if there and (not path.is_dir() or set(path.iterdir()) - left):
        raise ConfigError(f"{path}: there already, and not empty; take another folder")
    try:
        for folder in left:
            shutil.rmtree(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".matu-", suffix=".part", dir=path if there else path.parent))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made ({error.strerror})") from error
    try:
        yield part
        part.chmod(0o755)
        if there:
            with finish_before_interrupt():
                _move_into(path, sorted(part.iterdir()))
        else:
            os.replace(part, path)
    except Exception as error:
        if _full(error) or _full(error.__cause__):
            raise DiskFullError(f"{path}: no room for it; nothing is left of it") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move_into(folder: Path, entries: Sequence[Path]) -> None:
    """Move entries of one file system into a folder, all of them or none."""
    moved = []
    try:
        for entry in entries:
            os.replace(entry, folder / entry.name)
            moved.append(folder / entry.name)
    except BaseException:
        for entry in moved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold a folder: two processes at work in one would ruin it."""
    with open(out / ".lock", "w") as file:
        give_up = time.monotonic() + HELD_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    message = f"{out}: another process is at work on this run; wait for it, or stop it"
                    raise ConfigError(message) from None
                time.sleep(0.02)
        yield


def is_held(out: Path) -> bool:
    """Whether a process holds the folder."""
    try:
        with open(out / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
