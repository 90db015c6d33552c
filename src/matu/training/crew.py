"""What trainings at the same time have in common: models that are lent, a clock, and a word to end."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matu.models import AdaptedModel


class HaltedError(BaseException):
    """Nobody waits any longer for what was being trained."""


@dataclass
class Clock:
    """What training and evaluation cost so far."""

    train_images: int = 0
    train_s: float = 0.0
    evaluate_images: int = 0
    evaluate_s: float = 0.0

    def add(self, other: Clock, *, share: float = 1.0) -> None:
        """Count what another counted, and a share of its seconds, where others worked in the same ones."""
        self.train_images += other.train_images
        self.train_s += share * other.train_s
        self.evaluate_images += other.evaluate_images
        self.evaluate_s += share * other.evaluate_s


@dataclass
class Halt:
    """Whether what is under way is to end, because nobody waits for it any longer, or for what it is part of."""

    above: Halt | None = None
    now: bool = False

    def check(self) -> None:
        """Raise `HaltedError` if so."""
        if self.now:
            raise HaltedError
        if self.above is not None:
            self.above.check()


class Crew:
    """Models of the same adapted backbone for work at the same time (`side_by_side`).

    Parameters
    ----------
    models
        Each is lent to one piece of work at a time.
    """

    def __init__(self, models: Sequence[AdaptedModel]) -> None:
        self.models = tuple(models)
        self._free: queue.SimpleQueue[AdaptedModel] = queue.SimpleQueue()
        for model in models:
            self._free.put(model)

    @contextlib.contextmanager
    def lent(self) -> Iterator[AdaptedModel]:
        """A model, once one is free."""
        model = self._free.get()
        try:
            yield model
        finally:
            self._free.put(model)
