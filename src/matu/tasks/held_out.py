"""A task to tune on: nothing of it has been near a test image."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from matu.tasks.loading import stratified
from matu.tasks.task import Split, Task


@dataclass(frozen=True)
class _Rows:
    """Some rows of an array that may be memory-mapped: read when they are asked for, not before."""

    array: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = self.array[self.rows[key]]
        return found


def held_out(task: Task) -> Task:
    """The task with a tenth of its training images (drawn class by class) in the place of its test images."""
    labels = task.train.labels
    kept = stratified(labels, len(labels) - max(1, len(labels) // 10))
    left = np.setdiff1d(np.arange(len(labels)), kept)

    def part(rows: np.ndarray) -> Split:
        return Split(cast(np.ndarray, _Rows(task.train.images, rows)), labels[rows])

    return replace(task, train=part(kept), test=part(left), digest=held_out_digest(task.digest))


def held_out_digest(digest: str) -> str:
    """The digest of a held-out task, from the whole task's."""
    return hashlib.sha256(f"held-out {digest}".encode()).hexdigest()
