"""What a task is: a name, its classes in order, and a train and a test split of decoded images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matu.words import counted

SPLITS = ("train", "test")
NAMED = 3
"""Images named of those that were left out of a task."""


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, size, size, 3] and labels int64 [n]; both are read-only and may be memory-mapped."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class BadImage:
    """An image that could not be decoded, and why."""

    split: str
    name: str
    reason: str


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes
    ----------
    source : where it came from, e.g. "parquet:eurosat" or "hub:owner/name"; never a path
    digest : sha256 (hex) over class names, labels and pixels of both splits, as decoded and resized
    bad : images left out, train and test together
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str
    digest: str
    bad: tuple[BadImage, ...] = ()

    @property
    def skipped(self) -> int:
        """How many images were left out."""
        return len(self.bad)

    @property
    def left_out(self) -> str:
        """The images that were left out, for people: how many, and the first few by split and name."""
        shown = ", ".join(
            image.name if image.name.startswith(image.split) else f"{image.split} {image.name}"
            for image in self.bad[:NAMED]
        )
        more = f", … {len(self.bad) - NAMED} more" if len(self.bad) > NAMED else ""
        return f"{counted(len(self.bad), 'image')} could not be decoded and left out: {shown}{more}"


def class_list(classes: Sequence[str]) -> str:
    """What tells an ordered list of class names from others in a message: their number, and a hash."""
    return f"{len(classes)}:{hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()[:16]}"


def split_digest(images_sha256: str, labels: np.ndarray) -> dict[str, object]:
    """What a split adds to its task's digest: sample count and the hashes of pixels and labels."""
    labels_sha256 = hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
    return {"samples": len(labels), "images": images_sha256, "labels": labels_sha256}


def task_digest(classes: Sequence[str], size: int, train: dict[str, object], test: dict[str, object]) -> str:
    """Sha256 (hex) of a task's content, from its class names and both `split_digest`."""
    content = {"classes": list(classes), "size": size, "train": train, "test": test}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
