"""The upper reference: one adapter and head per task, fine-tuned centrally on the pooled training data."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from matu.config import RunConfig
from matu.files import write_atomic
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, TrainingError, Weights
from matu.training.trainer import Fit, batches

PATIENCE = 3
"""Epochs without a better held-out accuracy that count as a plateau."""
MOST_EPOCHS = 50
FORMAT = 1


@dataclass(frozen=True)
class Individual:
    """Test accuracies of a task fine-tuned alone.

    Attributes
    ----------
    budget
        After as many epochs as the federation spends on the task's data, on all training data.
    budget_epochs
        That number.
    plateau
        Of the weights that were best on a held-out tenth of the training data, trained on the rest.
    plateau_epochs
        Epochs to those weights.
    seconds
        Both trainings and their evaluation.
    """

    budget: float
    budget_epochs: int
    plateau: float
    plateau_epochs: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """The better one: the denominator of normalised accuracy."""
        return max(self.budget, self.plateau)


def individual(
    trainer: Trainer,
    tasks: Mapping[str, Task],
    config: RunConfig,
    *,
    steps: Mapping[str, int],
    cache: Path,
    tell: Callable[[str], None],
) -> dict[str, Individual | None]:
    """Fine-tune every task alone; a task that the cache knows under the same settings is not trained again.

    Parameters
    ----------
    trainer
        Trains with the run's settings.
    tasks, config
        What the run is about.
    steps
        By task, the optimiser steps of the budget.
    cache
        Folder of earlier results.
    tell
        Takes a line for people: which task is next, or why one has no result.

    Returns
    -------
    dict
        By task; None where training left the finite numbers.
    """
    found: dict[str, Individual | None] = {}
    for number, (name, task) in enumerate(tasks.items(), 1):
        tell(f"individual reference: {name} ({number}/{len(tasks)})")
        kept = cache / f"{_key(trainer, task, config, steps[name])}.json"
        known = _read(kept)
        if known:
            found[name] = known
            continue
        try:
            result = _fine_tune(trainer, task, config.machine.seed, steps[name])
        except TrainingError as error:
            tell(f"individual reference: {name} has none: {error}")
            found[name] = None
            continue
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps(asdict(result)).encode())
        found[name] = result
    return found


def _read(path: Path) -> Individual | None:
    """An earlier result; a file that cannot be read is as good as none."""
    try:
        return Individual(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def budget_steps(config: RunConfig, samples: int, holders: int) -> int:
    """Optimiser steps on a task's pooled data for what the federation spends on it.

    With epochs that is E·R·participation epochs; with `local_steps`, the images that its holders see.
    """
    t, f = config.training, config.federation
    per_epoch = -(-samples // min(t.batch_size, samples))
    if t.local_steps:
        return max(1, round(t.local_steps * f.rounds * f.participation * holders))
    return max(1, round(t.local_epochs * f.rounds * f.participation)) * per_epoch


def _fine_tune(trainer: Trainer, task: Task, seed: int, steps: int) -> Individual:
    began = time.perf_counter()
    samples = len(task.train.labels)
    per_epoch = -(-samples // min(trainer.config.batch_size, samples))
    start = Weights(torch.zeros(trainer.model.dim), torch.zeros(len(task.classes), trainer.model.backbone.features + 1))
    draw = stream(seed, "individual", task.name)
    weights, _ = trainer.train(start, task.train, np.arange(samples), draw, steps=steps)
    budget = trainer.accuracy(weights, task.test)
    best, epochs = _to_plateau(trainer, task, start, stream(seed, "plateau", task.name))
    plateau = trainer.accuracy(best, task.test)
    return Individual(budget, round(steps / per_epoch), plateau, epochs, round(time.perf_counter() - began, 2))


def _to_plateau(trainer: Trainer, task: Task, start: Weights, draw: np.random.Generator) -> tuple[Weights, int]:
    """Train on nine tenths until the last tenth has not improved for some epochs."""
    order = draw.permutation(len(task.train.labels))
    held_out, rest = np.sort(order[: max(1, len(order) // 10)]), np.sort(order[max(1, len(order) // 10) :])
    fit = Fit(trainer, start)
    best, best_accuracy, best_epoch = start, -1.0, 0
    for epoch in range(1, MOST_EPOCHS + 1):
        for batch in batches(rest, trainer.config.batch_size, draw, steps=0, epochs=1):
            fit.step(task.train, batch)
        accuracy = trainer.accuracy_as_is(fit.head, task.train, held_out)
        if accuracy > best_accuracy:
            best, best_accuracy, best_epoch = fit.weights(), accuracy, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    return best, best_epoch


def _key(trainer: Trainer, task: Task, config: RunConfig, steps: int) -> str:
    """Everything the numbers depend on."""
    t, m = config.training, config.machine
    facts = (
        FORMAT, task.name, task.digest, trainer.model.fingerprint, config.tasks.image_size, steps, PATIENCE,
        MOST_EPOCHS, t.batch_size, t.learning_rate, t.weight_decay, t.gradient_clip, m, torch.__version__,
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
