"""Individual: one adapter and head per task, fine-tuned centrally on the pooled data; the upper reference.

sent         nothing
trained      each task for as many epochs as the federation spends on its data, and also to a plateau on a
             held-out tenth; the better one counts. While rates are chosen, for those epochs alone, as every method
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from matu.config import RunConfig
from matu.errors import DivergedError
from matu.methods.reference import Reference, budget_steps, remembered, training_facts
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, Weights, side_by_side
from matu.training.trainer import Fit, batches

PATIENCE = 10
"""Epochs without a better held-out accuracy that count as a plateau."""
MOST_EPOCHS = 50
FORMAT = 2


@dataclass(frozen=True)
class Alone:
    """Test accuracies of a task fine-tuned alone.

    Attributes
    ----------
    budget
        After as many epochs as the federation spends on the task's data, on all training data.
    budget_epochs
        That number.
    plateau
        Of the weights that were best on a held-out tenth of the training data, trained on the rest; None where a
        tenth is held out already, to choose a rate.
    plateau_epochs
        Epochs to those weights.
    seconds
        The trainings and their evaluation, by the clock, over the number of tasks at work at a time.
    """

    budget: float
    budget_epochs: int
    plateau: float | None
    plateau_epochs: int | None
    seconds: float

    @property
    def accuracy(self) -> float:
        """The better one: the denominator of normalised accuracy."""
        return self.budget if self.plateau is None else max(self.budget, self.plateau)


class Individual(Reference):
    """The reference of this file; every client is credited with the accuracy of its tasks.

    Attributes
    ----------
    found
        By task, what `accuracies` found.
    """

    revision: ClassVar[int] = 1

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.found: dict[str, Alone | None] = {}

    def accuracies(
        self,
        trainer: Trainer,
        tasks: Mapping[str, Task],
        shares: Mapping[str, Mapping[str, np.ndarray]],
        *,
        cache: Path,
        tell: Callable[[str], None],
    ) -> dict[str, dict[str, float]]:
        holders = {name: sum(name in share for share in shares.values()) for name in tasks}
        self.found = individual(trainer, tasks, self.config, holders=holders, cache=cache, tell=tell)
        accuracy = {name: one.accuracy for name, one in self.found.items() if one}
        if len(accuracy) < len(tasks):
            raise DivergedError(f"individual: no finite result for {', '.join(sorted(set(tasks) - set(accuracy)))}")
        return {site: {task: accuracy[task] for task in share} for site, share in shares.items()}


def individual(
    trainer: Trainer,
    tasks: Mapping[str, Task],
    config: RunConfig,
    *,
    holders: Mapping[str, int],
    cache: Path,
    tell: Callable[[str], None],
) -> dict[str, Alone | None]:
    """Fine-tune every task alone; a task that the cache knows under the same settings is not trained again.

    Parameters
    ----------
    trainer
        Trains with the run's settings.
    tasks, config
        What the run is about.
    holders
        By task, the number of its clients (it matters where a federation counts steps).
    cache
        Folder of earlier results.
    tell
        Takes a line for people: which task is next, or why one has no result.

    Returns
    -------
    dict
        By task; None where training left the finite numbers.
    """
    model, how = training_facts(trainer, config)
    beside = min(len(trainer.crew.models), len(tasks)) if trainer.crew else 1

    def work() -> Iterator[Callable[[Trainer], Alone | DivergedError]]:
        for number, (name, task) in enumerate(tasks.items(), 1):
            tell(f"individual reference: {name} ({number}/{len(tasks)})")
            steps = budget_steps(config, len(task.train.labels), holders[name])
            facts = (FORMAT, name, task.digest, *model, PATIENCE, MOST_EPOCHS, *how)
            yield partial(_known_or_trained, task, steps, config, beside, cache / "individual", facts)

    found: dict[str, Alone | None] = {}
    for name, one in zip(tasks, side_by_side(trainer, work()), strict=True):
        if isinstance(one, DivergedError):
            tell(f"individual reference: {name} has none: {one}")
        found[name] = one if isinstance(one, Alone) else None
    return found


def _known_or_trained(
    task: Task, steps: int, config: RunConfig, beside: int, cache: Path, facts: tuple[Any, ...], trainer: Trainer
) -> Alone | DivergedError:
    """Each training is remembered by itself: that to a plateau is the same whatever the federation spends."""
    seed = config.machine.seed
    plateau: dict[str, Any] = {"accuracy": None, "epochs": None, "seconds": 0.0}
    try:
        budget = remembered(cache, (*facts, "budget", steps), lambda: _on_budget(trainer, task, seed, steps))
        if not config.evaluation.held_out:
            plateau = remembered(cache, (*facts, "plateau"), lambda: _on_plateau(trainer, task, seed))
    except DivergedError as error:
        return error
    seconds = round((budget["seconds"] + plateau["seconds"]) / beside, 2)
    return Alone(budget["accuracy"], budget["epochs"], plateau["accuracy"], plateau["epochs"], seconds)


def _on_budget(trainer: Trainer, task: Task, seed: int, steps: int) -> dict[str, Any]:
    began = time.perf_counter()
    samples = len(task.train.labels)
    start, draw = trainer.untrained(len(task.classes)), stream(seed, "individual", task.name)
    weights, _ = trainer.train(start, task.train, np.arange(samples), draw, steps=steps)
    epochs = round(steps / -(-samples // min(trainer.config.batch_size, samples)))
    return _measured(trainer, task, weights, epochs, began)


def _on_plateau(trainer: Trainer, task: Task, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    weights, epochs = _to_plateau(trainer, task, stream(seed, "plateau", task.name))
    return _measured(trainer, task, weights, epochs, began)


def _measured(trainer: Trainer, task: Task, weights: Weights, epochs: int, began: float) -> dict[str, Any]:
    accuracy = trainer.accuracy(weights, task.test)
    return {"accuracy": accuracy, "epochs": epochs, "seconds": time.perf_counter() - began}


def _to_plateau(trainer: Trainer, task: Task, draw: np.random.Generator) -> tuple[Weights, int]:
    """Train on nine tenths until the last tenth has not improved for some epochs."""
    order = draw.permutation(len(task.train.labels))
    held_out, rest = np.sort(order[: max(1, len(order) // 10)]), np.sort(order[max(1, len(order) // 10) :])
    start = trainer.untrained(len(task.classes))
    fit = Fit(trainer, start, task.train.labels[rest])
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
