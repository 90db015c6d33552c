"""What a reference is: sites or a centre that train alone, so that nothing is sent; and its memory on disk."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from matu.config import RunConfig
from matu.files import write_atomic
from matu.methods.base import NoOptions, parse_options
from matu.tasks import Task
from matu.training import Trainer


class Reference(ABC):
    """A reference to compare federated methods with.

    Attributes
    ----------
    Options
        As of a `Method`.
    revision
        As of a `Method`.
    """

    Options: ClassVar[type] = NoOptions
    revision: ClassVar[int] = 0

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.options: Any = self.options_of(config)

    @classmethod
    def options_of(cls, config: RunConfig) -> Any:
        """The options that a run gives it; ConfigError for what cannot work, before data are read."""
        return parse_options(cls, config.federation.options)

    @abstractmethod
    def accuracies(
        self,
        trainer: Trainer,
        tasks: Mapping[str, Task],
        shares: Mapping[str, Mapping[str, np.ndarray]],
        *,
        cache: Path,
        tell: Callable[[str], None],
    ) -> dict[str, dict[str, float]]:
        """Train, and measure on the test images.

        Parameters
        ----------
        trainer
            Trains with the run's settings.
        tasks
            By name.
        shares
            By client and task, which of the task's training images are the client's (int64 [n]).
        cache
            Folder of earlier results; what it knows under the same settings is not trained again.
        tell
            Takes a line for people.

        Returns
        -------
        dict
            By client and task, test accuracy, a share of 1.

        Raises
        ------
        DivergedError
            If training left the finite numbers.
        """


def budget_steps(config: RunConfig, samples: int, holders: int) -> int:
    """Optimiser steps on some data for what the federation spends on it.

    With epochs that is E·R times the share of clients that a round draws; with `local_steps`, the images that its
    holders see. One client alone stands for a federation (a comparison's cell of individual), and keeps its share.
    """
    t, f = config.training, config.federation
    alone = f.method == "individual" and f.clients == 1
    share = f.participation if alone else f.drawn / f.clients
    per_epoch = -(-samples // min(t.batch_size, samples))
    if t.local_steps:
        return max(1, round(t.local_steps * f.rounds * share * holders))
    return max(1, round(t.local_epochs * f.rounds * share)) * per_epoch


def training_facts(trainer: Trainer, config: RunConfig) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What every training's numbers depend on, beside its data and its steps: the model, and how it is trained."""
    t = config.training
    how: tuple[Any, ...] = (t.batch_size, t.learning_rate, t.weight_decay, t.gradient_clip)
    if t.balanced:
        how += ("balanced",)
    how += (config.machine, torch.__version__)
    return (trainer.model.fingerprint, config.tasks.image_size), how


def cache_file(folder: Path, facts: tuple[Any, ...], suffix: str) -> Path:
    """The file of a folder that holds what these facts lead to."""
    return folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.{suffix}"


def remembered(folder: Path, facts: tuple[Any, ...], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the folder holds for these facts; computed and kept if it holds nothing that can be read."""
    path = cache_file(folder, facts, "json")
    try:
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            return known
    except (OSError, ValueError):
        pass
    found = compute()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found).encode())
    return found
