"""TIES: FedAvg whose server trims, elects a sign, and averages those that agree (Yadav et al. 2023).

sent, trained, kept   as in task arithmetic
aggregated            per task the sample-weighted mean of its holders' changes; these are trimmed to
                      their largest entries, a sign is elected by their sum, and those of that sign are averaged;
                      adapter ← adapter + scale · that
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from matu.methods.task_arithmetic import TaskArithmetic
from matu.vectors.merging import KEEP, ties


@dataclass(frozen=True)
class Options:
    """Share of entries that survive the trim, and the scale of the merged change."""

    keep: float = KEEP
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
