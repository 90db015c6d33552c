"""Images classified by an artifact: files of any kind, or the test images of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from matu.artifact.card import measured
from matu.artifact.stored import Artifact
from matu.errors import DataError
from matu.tasks import Task
from matu.tasks.folders import images_below
from matu.tasks.images import BadImageError, decode
from matu.training import Trainer

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What is said of an image.

    Attributes
    ----------
    image
        The file.
    top
        Class names and their probabilities, the likeliest first; empty where it cannot be read.
    problem
        Why it cannot be read; empty where it can.
    """

    image: Path
    top: tuple[tuple[str, float], ...] = ()
    problem: str = ""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top[0][0]


def find_images(places: Sequence[Path]) -> list[Path]:
    """Files as they are given, and all images anywhere below folders, sorted.

    Raises
    ------
    DataError
        If something is not there, cannot be read, or there is no image.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise DataError(f"{place}: no such file or folder")
        try:
            found += images_below(place, []) if place.is_dir() else [place]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not found:
        raise DataError(f"{', '.join(map(str, places)) or 'no files'}: no image to classify")
    return found


def predict(
    artifact: Artifact, trainer: Trainer, task: str, images: Sequence[Path], *, top: int = 1
) -> Iterator[Prediction]:
    """Classify image files in batches, in their order.

    Parameters
    ----------
    artifact, trainer
        As `Artifact.trainer` gives it; its model gets the task's weights.
    task
        One of the artifact's tasks.
    images
        Files of any kind that training reads.
    top
        How many classes to name; all where there are fewer.
    """
    vector, head = artifact.weights(task)
    classes = artifact.classes(task)
    trainer.model.load(vector)
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        decoded = [_decode(path, trainer.model.backbone.image_size) for path in batch]
        pixels = [found for found in decoded if isinstance(found, np.ndarray)]
        scores: Iterator[Tensor] = iter(trainer.predict_as_is(head, np.stack(pixels)).softmax(dim=1) if pixels else ())
        for path, found in zip(batch, decoded, strict=True):
            if isinstance(found, str):
                yield Prediction(path, problem=found)
                continue
            likeliest = next(scores).topk(min(top, len(classes)))
            names = [classes[i] for i in likeliest.indices.tolist()]
            yield Prediction(path, tuple(zip(names, likeliest.values.tolist(), strict=True)))


def evaluate(artifact: Artifact, trainer: Trainer, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Accuracy on the test images of tasks that the artifact knows by name.

    Returns
    -------
    dict
        By task: `images`, `accuracy`, and `stated`, the run's own figure for what the artifact gives (None: unknown).

    Raises
    ------
    DataError
        For tasks that it does not know, or with other classes; all of them, a line each.
    """
    problems = [problem for task in tasks if (problem := _mismatch(artifact, task))]
    if problems:
        raise DataError("\n".join(problems))
    return {
        task.name: {
            "images": len(task.test.labels),
            "accuracy": trainer.accuracy(artifact.weights(task.name), task.test),
            "stated": measured(artifact.note["tasks"][task.name]),
        }
        for task in tasks
    }


def _mismatch(artifact: Artifact, task: Task) -> str:
    """Why the artifact cannot be measured on a task; empty where it can."""
    if task.name not in artifact.tasks:
        return f"task '{task.name}': unknown to the artifact, which has {', '.join(artifact.tasks)}"
    known = artifact.classes(task.name)
    if len(task.classes) != len(known):
        return f"task '{task.name}': {len(task.classes)} classes here, {len(known)} in the artifact"
    at = next((i for i, (a, b) in enumerate(zip(task.classes, known, strict=True)) if a != b), None)
    if at is None:
        return ""
    return f"task '{task.name}': class {at} is {task.classes[at]!r} here, {known[at]!r} in the artifact"


def _decode(path: Path, size: int) -> np.ndarray | str:
    """Pixels, or why there are none."""
    try:
        return decode(path, size)
    except BadImageError as error:
        return str(error)
