"""TIES: FedAvg whose server trims, elects a sign, and averages those that agree (Yadav et al. 2023).

sent, trained, kept   as in FedAvg
aggregated            per task the sample-weighted mean over its holders; the tasks' changes are trimmed to
                      their largest entries, a sign is elected by their sum, and those of that sign are averaged;
                      adapter ← adapter + scale · that
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matu.methods.task_arithmetic import TaskArithmetic


@dataclass(frozen=True)
class Options:
    """Share of entries that survive the trim, and the scale of the merged change."""

    keep: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep {self.keep}: expected more than 0, at most 1")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale {self.scale}: expected a finite number")


class Ties(TaskArithmetic):
    """The method of this file."""

    Options = Options

    def merge(self, changes: Tensor) -> Tensor:
        return self.options.scale * ties(changes, self.options.keep)


def ties(vectors: Tensor, keep: float) -> Tensor:
    """Merge task vectors, float [T, d] -> [d].

    Of each vector the ⌈keep · d⌉ entries of largest magnitude survive (among equals, those that come first).
    Where the survivors' sum is zero no sign is elected, and the result is zero.
    """
    count = math.ceil(round(keep * vectors.shape[1], 6))  # 0.28 · 100 is a little above 28
    largest = vectors.abs().sort(dim=1, descending=True, stable=True).indices[:, :count]
    trimmed = torch.zeros_like(vectors).scatter(1, largest, vectors.gather(1, largest))
    elected = trimmed.double().sum(dim=0).sign().to(vectors.dtype)
    agreeing = (trimmed.sign() == elected) & (elected != 0)
    total = torch.where(agreeing, trimmed, 0).double().sum(dim=0)
    return (total / agreeing.sum(dim=0).clamp(min=1)).to(vectors.dtype)
