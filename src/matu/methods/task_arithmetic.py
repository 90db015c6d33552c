"""Task arithmetic: FedAvg whose server adds the tasks' changes (Ilharco et al. 2023).

sent up               for each of the client's tasks, the round's change of its adapter, and its head
sent down, trained    as in FedAvg; kept too
aggregated            per task the sample-weighted mean of its holders' changes; then
                      adapter ← adapter + scale · Σ_t mean_t

The task vectors that are added are the round's changes, not the distances to the pretrained start: summed
anew in every round, those would grow by scale · T a round, whatever is learnt. A change is counted from what
arrived, so that what the codec of a downlink loses is not merged as if a task had learnt it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from matu.methods.base import Local, State, head_parts
from matu.methods.fedavg import FedAvg
from matu.methods.per_task_fedavg import PerTaskRound
from matu.training import Weights
from matu.vectors.merging import SCALE
from matu.wire import Kind, Part


@dataclass(frozen=True)
class Options:
    """λ of the sum; the authors' 0.3 is for eight tasks. Below 0 a merge forgets."""

    scale: float = SCALE

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale {self.scale}: expected a finite number")


class TaskArithmetic(FedAvg):
    """The method of this file; `merge` is what a relative changes."""

    Options: ClassVar[type] = Options

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        changes = [Part(f"change/{task}", Kind.VECTOR, (self.problem.dim,)) for task in tasks]
        return *changes, *head_parts(self.problem, tasks)

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        sent: dict[str, Tensor] = {}
        for task, trained in local.train(self.weights(local.tasks, tensors, local.memory)).items():
            sent |= {f"change/{task}": trained.vector - tensors["adapter"], f"head/{task}": trained.head}
        return sent, {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return {t: Weights(tensors[f"change/{t}"], tensors[f"head/{t}"]) for t in tasks}

    def begin_round(self, state: State) -> PerTaskRound:
        return PerTaskRound(self, state, lambda means: self._merged(state, means))

    def merge(self, changes: Tensor) -> Tensor:
        """Changes of the tasks with holders, float [T', d] -> the change of the adapter, float [d]."""
        merged: Tensor = self.options.scale * changes.sum(dim=0)
        return merged

    def _merged(self, state: State, means: dict[str, Tensor]) -> State:
        before = state.get("adapter", torch.zeros(self.problem.dim))
        heads = {name: value for name, value in means.items() if name.startswith("head/")}
        changes = torch.stack([value for name, value in means.items() if name not in heads])
        return {**heads, "adapter": before + self.merge(changes)}
