"""Task arithmetic: FedAvg whose server adds the tasks' changes (Ilharco et al. 2023).

sent, trained, kept   as in FedAvg
aggregated            per task the sample-weighted mean over its holders; then
                      adapter ← adapter + scale · Σ_t (mean_t − adapter)

The task vectors that are added are the round's changes, not the distances to the pretrained start: summed
anew in every round, those would grow by scale · T a round, whatever is learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from matu.methods.base import State
from matu.methods.fedavg import FedAvg
from matu.methods.per_task_fedavg import PerTaskRound
from matu.vectors.merging import SCALE


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

    def begin_round(self, state: State) -> PerTaskRound:
        return PerTaskRound(self, state, lambda means: self._merged(state, means))

    def merge(self, changes: Tensor) -> Tensor:
        """Changes of the tasks with holders, float [T', d] -> the change of the adapter, float [d]."""
        merged: Tensor = self.options.scale * changes.sum(dim=0)
        return merged

    def _merged(self, state: State, means: dict[str, Tensor]) -> State:
        before = state.get("adapter", torch.zeros(self.problem.dim))
        heads = {name: value for name, value in means.items() if name.startswith("head/")}
        changes = torch.stack([value - before for name, value in means.items() if name not in heads])
        return {**heads, "adapter": before + self.merge(changes)}
