"""Words of messages."""

import os
from pathlib import Path


def how_to_install(extra: str) -> str:
    """What brings an extra: matu is on no package index, so it is installed from its folder."""
    return f"in matu's folder: pip install --constraint constraints.txt -e '.[{extra}]'"


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 task", "2 tasks"; plurals in -s only."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable_path(path: Path) -> str:
    """A path for people and tables; what is no UTF-8 in it, which no output could take, is "\ufffd"."""
    return os.fsencode(path).decode("utf-8", "replace")


def printable(text: str) -> str:
    """What a stranger wrote, for a log or a terminal: no line breaks, no escapes."""
    return "".join(c if c.isprintable() else " " for c in text)


def percent(share: float | None, nothing: str = "–") -> str:
    """A share in per cent, one decimal."""
    return nothing if share is None else f"{100 * share:.1f}"
