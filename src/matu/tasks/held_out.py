"""A task to tune on: nothing of it has been near a test image."""

import hashlib
from dataclasses import replace

import numpy as np

from matu.tasks.loading import stratified
from matu.tasks.task import Split, Task


def held_out(task: Task) -> Task:
    """The task with a tenth of its training images (drawn class by class) in the place of its test images."""
    labels = task.train.labels
    kept = stratified(labels, len(labels) - max(1, len(labels) // 10))
    left = np.setdiff1d(np.arange(len(labels)), kept)

    def part(indices: np.ndarray) -> Split:
        return Split(np.asarray(task.train.images)[indices], labels[indices])

    digest = hashlib.sha256(f"held-out {task.digest}".encode()).hexdigest()
    return replace(task, train=part(kept), test=part(left), digest=digest)
