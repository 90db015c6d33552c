"""MaTU+: every task keeps its own vector, and a site speaks only of the classes that it has (docs/matu-plus.md).

sent up      for each of the client's tasks, the round's change of its adapter and head
sent down    the server's adapter and head of each of the client's tasks
trained      every task from its own start, on logits plus the log share of each class at the site
aggregated   per task over its holders, and a class's row of the head over those that have the class; then a step with
             momentum
kept         at the server: adapter, head, momentum and number of rounds of every task seen; at clients: nothing

A change is added to what the server holds and not to what arrived of that, so what the codec of a downlink loses does
not reach the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import ConfigError
from matu.methods.base import Local, Means, Round, State
from matu.methods.per_task_fedavg import PerTaskFedAvg
from matu.training import Objective, Weights
from matu.vectors import ExactSum
from matu.wire import Kind, Part


@dataclass(frozen=True)
class Options:
    """The server's step (Eq. 4), and a control.

    Attributes
    ----------
    step, momentum
        η and β: speed ← β speed + mean change, adapter ← adapter + η speed; 1 and 0 take the mean as it is.
    anneal
        α: after m rounds of a task its step is η / √(1 + m/α); 0: η throughout.
    evidence
        Off, a control: sites train as `balanced` of [training] says, and every holder counts in every row of the head.
    """

    step: float = 0.3
    momentum: float = 0.7
    anneal: float = 10.0
    evidence: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.step < float("inf"):
            raise ValueError(f"step {self.step}: expected more than 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum {self.momentum}: expected 0 to less than 1")
        if not 0 <= self.anneal < float("inf"):
            raise ValueError(f"anneal {self.anneal}: expected 0 (off), or rounds")

    def step_after(self, rounds: int) -> float:
        """The step of a task that has had so many rounds."""
        return self.step / math.sqrt(1 + rounds / self.anneal) if self.anneal else self.step


class MatuPlus(PerTaskFedAvg):
    """The method of this file.

    Raises
    ------
    ConfigError
        Trimming, which takes a row of zeros for a vote against what others changed.
    """

    Options = Options

    @classmethod
    def options_of(cls, config: RunConfig) -> Any:
        options = super().options_of(config)
        if options.evidence and config.defence.trim:
            raise ConfigError(
                f"trim {config.defence.trim}: refused with method matu_plus, where a site sends zeros for a class that "
                "it lacks, which trimming takes for a vote against the others' change; give --trim 0, or --options "
                "evidence=false, with which every site counts in every class"
            )
        return options

    @property
    def objective(self) -> Objective:
        return Objective(balanced=self.options.evidence)

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        p = self.problem
        vectors = [Part(f"change/{task}", Kind.VECTOR, (p.dim,)) for task in tasks]
        return *vectors, *(Part(f"head_change/{task}", Kind.HEAD, p.head_shape(task)) for task in tasks)

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        starts = self.weights(local.tasks, tensors, local.memory)
        sent: dict[str, Tensor] = {}
        for task, trained in local.train(starts).items():
            start = starts[task]
            sent |= {f"change/{task}": trained.vector - start.vector, f"head_change/{task}": trained.head - start.head}
        return sent, {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return {t: Weights(tensors[f"change/{t}"], tensors[f"head_change/{t}"]) for t in tasks}

    def begin_round(self, state: State) -> MatuPlusRound:
        return MatuPlusRound(self, state)


class MatuPlusRound(Round):
    """Sums of one round (Eq. 2 and 3), folded in as updates arrive; memory O(T·d) whatever the number of clients."""

    method: MatuPlus

    def __init__(self, method: MatuPlus, state: State) -> None:
        self.method, self.state, self.changes = method, state, Means()
        self.heads: dict[str, RowMeans] = {}

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.changes.add(task, weights.vector, samples)
        rows = self.heads.setdefault(task, RowMeans(self.method.problem.head_shape(task)))
        rows.add(weights.head, samples, every=not self.method.options.evidence)

    def finish(self) -> State:
        """A step of every task with holders (Eq. 4); the others stay as they were."""
        if not self.heads:
            return self.state
        state, c = dict(self.state), self.method.options
        for task, change in self.changes.values().items():
            before = self.method.server(state, task)
            speed = c.momentum * state.get(f"speed/{task}", torch.zeros_like(change)) + change
            rounds = state.get(f"rounds/{task}", torch.zeros(1, dtype=torch.int64))
            state |= {
                f"speed/{task}": speed,
                f"rounds/{task}": rounds + 1,
                f"adapter/{task}": before.vector + c.step_after(int(rounds)) * speed,
                f"head/{task}": before.head + self.heads[task].mean(),
            }
        return state


class RowMeans:
    """Sample-weighted mean of the changes of a head, row by row over those that changed it (Eq. 3).

    It has the same bits in any order of arrival.

    Parameters
    ----------
    shape
        Classes, and features + 1.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self._sum = shape, ExactSum(shape[0] * shape[1])
        self._samples = torch.zeros(shape[0], dtype=torch.int64)

    def add(self, change: Tensor, samples: int, *, every: bool = False) -> None:
        """Fold in a change, float32 [classes, features + 1]; a row of zeros counts only if `every` row does.

        Raises
        ------
        ValueError
            If a number is not finite; nothing is folded in then.
        """
        self._sum.add(change.reshape(-1), samples)
        self._samples += samples * (change.ne(0).any(dim=1) | every)

    def mean(self) -> Tensor:
        """The mean, float32 [classes, features + 1]; zero in a row that nobody changed."""
        samples = self._samples.clamp(min=1)[:, None]
        return (self._sum.value().reshape(self.shape) / samples).float()
