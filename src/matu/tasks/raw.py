"""A task before decoding: its classes, its labels, and a stream of encoded images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from matu.errors import DataError

RawImage = bytes | Path | np.ndarray | None
"""An encoded image, its file, RGB pixels uint8 [h, w, 3], or nothing where the source holds none."""


@dataclass(frozen=True)
class RawSplit:
    """Labels int64 [n], and a function that streams n pairs (name to show in errors, image)."""

    labels: np.ndarray
    rows: Callable[[], Iterator[tuple[str, RawImage]]]


@dataclass(frozen=True)
class RawTask:
    """Class names in label order, and both splits."""

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit

    @property
    def splits(self) -> dict[str, RawSplit]:
        return {"train": self.train, "test": self.test}


class Source(Protocol):
    """One task's data, found but not read."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def label(self) -> str:
        """The source as results name it: without any path."""

    def content(self) -> dict[str, object]:
        """What identifies the data, as JSON values: two sources with equal content decode to equal tasks."""

    def open(self) -> RawTask:
        """Read class names and labels; images come later, streamed."""


def check_classes(name: str, classes: tuple[str, ...]) -> None:
    """Raise DataError unless there are two classes or more, all different and named."""
    if len(classes) < 2:
        found = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise DataError(f"task {name!r}: {found}; at least 2 are needed")
    if any(not c.strip() for c in classes):
        raise DataError(f"task {name!r}: class {next(i for i, c in enumerate(classes) if not c.strip())} has no name")
    if len(set(classes)) < len(classes):
        twice = next(c for c in classes if classes.count(c) > 1)
        raise DataError(f"task {name!r}: class name {twice!r} occurs more than once")


def check_labels(name: str, split: str, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Raise DataError unless int64 [n] labels lie in range and every class occurs."""
    if not len(labels):
        raise DataError(f"task {name!r}, split {split!r}: no images")
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        row = int(outside[0])
        more = f" ({len(outside)} such rows)" if len(outside) > 1 else ""
        raise DataError(
            f"task {name!r}, split {split!r}: row {row} has label {labels[row]}{more}; "
            f"the {len(classes)} classes are numbered 0 to {len(classes) - 1}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    empty = [classes[c] for c in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(f"task {name!r}, split {split!r}: no images of {listing('class', empty)}")


def listing(noun: str, values: list[str], shown: int = 8) -> str:
    """Values as a phrase: "class 'a'", or "3 classes ('a', 'b', 'c')", long lists cut."""
    if len(values) == 1:
        return f"{noun} {values[0]!r}"
    tail = ", ..." if len(values) > shown else ""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(values)} {plural} ({', '.join(map(repr, values[:shown]))}{tail})"
