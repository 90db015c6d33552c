"""Several fine-tunings at once on one frozen backbone: larger products, fewer calls, and each as if it were alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from matu.tasks import Split
from matu.training.side_by_side import side_by_side
from matu.training.trainer import Fit, Trainer, Weights, batches


class Job(NamedTuple):
    """A fine-tuning: where it starts, the images and which of them (int64 [n]), what decides the batches."""

    start: Weights
    split: Split
    indices: np.ndarray
    draw: np.random.Generator


class _Batch(NamedTuple):
    fit: Fit
    images: np.ndarray
    labels: np.ndarray


def train_together(
    trainer: Trainer, jobs: Sequence[Job], *, steps: int = 0, epochs: int = 1
) -> list[tuple[Weights, float]]:
    """What `Trainer.train` gives of each job, to rounding; `trainer.together` of them go through one product at a time.

    Every job has its own optimiser, clipping, objective and batches; those with fewer batches end before the others.

    Parameters
    ----------
    trainer
        Model, rates, objective, crew; the model's own adapter is left as it is where jobs are trained together.
    jobs
        Any number.
    steps, epochs
        As of `Trainer.train`.

    Raises
    ------
    DivergedError
        If a loss is not finite.
    """
    at_a_time = max(1, trainer.together)
    order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].indices))  # the longest first: none is left to the end
    groups = [order[first : first + at_a_time] for first in range(0, len(jobs), at_a_time)]
    work = [partial(_train, jobs=[jobs[i] for i in group], steps=steps, epochs=epochs) for group in groups]
    found = dict(zip(order, itertools.chain.from_iterable(side_by_side(trainer, work)), strict=True))
    return [found[i] for i in range(len(jobs))]


def _train(trainer: Trainer, jobs: Sequence[Job], *, steps: int, epochs: int) -> list[tuple[Weights, float]]:
    if len(jobs) == 1:
        start, split, indices, draw = jobs[0]
        return [trainer.train(start, split, indices, draw, steps=steps, epochs=epochs)]
    fits = [Fit(trainer, job.start, job.split.labels[job.indices], own=True) for job in jobs]
    left = [
        (fit, job.split, batches(job.indices, trainer.config.batch_size, job.draw, steps=steps, epochs=epochs))
        for fit, job in zip(fits, jobs, strict=True)
        if not fit.silent
    ]
    while left:
        given = [(*one, next(one[2], None)) for one in left]
        left = [(fit, split, rest) for fit, split, rest, batch in given if batch is not None]
        _step(trainer, [_Batch(f, s.images[b], s.labels[b]) for f, s, _, b in given if b is not None])
    return [
        (job.start, 0.0) if fit.silent else (fit.weights(), fit.mean_loss())
        for fit, job in zip(fits, jobs, strict=True)
    ]


def _step(trainer: Trainer, given: Sequence[_Batch]) -> None:
    """A step of each; shorter batches are filled up with images that no loss looks at."""
    if not given:
        return
    trainer.halt.check()
    began = time.perf_counter()
    size = max(len(one.labels) for one in given)
    images = np.concatenate([np.resize(one.images, (size, *one.images.shape[1:])) for one in given])
    adapters = torch.stack([one.fit.adapter for one in given])
    model = trainer.model
    read = model.linearised_features if trainer.objective.linearised else model.stacked_features
    features = read(torch.from_numpy(images), adapters).float().view(len(given), size, -1)
    losses = [one.fit.loss(of[: len(one.labels)], one.labels) for one, of in zip(given, features, strict=True)]
    for one in given:
        one.fit.optimiser.zero_grad()
    torch.stack(losses).sum().backward()
    for one, loss in zip(given, losses, strict=True):
        one.fit.update(loss)
    trainer.clock.train_images += sum(len(one.labels) for one in given)
    trainer.clock.train_s += time.perf_counter() - began
