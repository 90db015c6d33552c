"""FedProx: FedAvg whose clients are held near the start of the round (Li et al. 2020).

sent, aggregated, kept   as in FedAvg
trained                  with (μ/2)‖θ − θ_start‖² added to the loss, over adapter and head
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matu.methods.fedavg import FedAvg
from matu.training import Objective


@dataclass(frozen=True)
class Options:
    """μ of the proximal term, at least 0."""

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.mu < math.inf:
            raise ValueError(f"mu {self.mu}: expected 0 or more")


class FedProx(FedAvg):
    """The method of this file."""

    Options = Options

    @property
    def objective(self) -> Objective:
        return Objective(proximal=self.options.mu)
