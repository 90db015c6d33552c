"""Adapters of tasks fine-tuned alone: each is trained once and kept in the cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from matu.config import RunConfig
from matu.files import write_atomic
from matu.methods.reference import cache_file, training_facts
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, Weights

FORMAT = 1


@dataclass(frozen=True)
class FineTuned:
    """A task's adapter and head, trained alone on all its training images.

    Attributes
    ----------
    weights
        What was trained.
    loss
        Mean over the steps.
    accuracy
        On the test images, a share of 1.
    seconds
        Training and evaluation, when it was trained.
    """

    weights: Weights
    loss: float
    accuracy: float
    seconds: float


def fine_tuned(trainer: Trainer, task: Task, config: RunConfig, steps: int, cache: Path) -> FineTuned:
    """Train a task's adapter alone, or take it from the cache.

    The batches are those of `methods.individual`: with as many steps as a run's budget this is the adapter whose
    accuracy that reference reports as `budget`.

    Parameters
    ----------
    trainer, task, config
        Trains with the configuration's settings, on the task's training images.
    steps
        Optimiser steps.
    cache
        Folder of earlier results; what cannot be read there is trained again.

    Raises
    ------
    DivergedError
        If training left the finite numbers.
    """
    model, how = training_facts(trainer, config)
    path = cache_file(cache / "adapters", (FORMAT, task.name, task.digest, *model, steps, *how), "safetensors")
    start = trainer.untrained(len(task.classes))
    shapes = {"vector": tuple(start.vector.shape), "head": tuple(start.head.shape), "measured": (3,)}
    known = _read(path, shapes)
    if known is None:
        known = _train(trainer, task, start, config.machine.seed, steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(known))
    return FineTuned(Weights(known["vector"], known["head"]), *known["measured"].tolist())


def _train(trainer: Trainer, task: Task, start: Weights, seed: int, steps: int) -> dict[str, Tensor]:
    began = time.perf_counter()
    draw = stream(seed, "individual", task.name)
    weights, loss = trainer.train(start, task.train, np.arange(len(task.train.labels)), draw, steps=steps)
    accuracy = trainer.accuracy(weights, task.test)
    measured = torch.tensor([loss, accuracy, time.perf_counter() - began], dtype=torch.float64)
    return {"vector": weights.vector, "head": weights.head, "measured": measured}


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """What a file holds, or None where that is not tensors of these shapes, all finite."""
    try:
        found = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    fits = {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    return found if fits and all(bool(tensor.isfinite().all()) for tensor in found.values()) else None
