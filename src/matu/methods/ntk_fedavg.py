"""NTK-FedAvg: FedAvg on the model linearised at its start (Muhamed et al. 2024).

sent, kept   as in FedAvg
trained      features f(φ₀) + J(φ₀)(φ − φ₀) under an ordinary linear head; evaluated in the same form
aggregated   global adapter + η (mean − global adapter), η the server's step

The head is not linearised: starting at zero, its product with the Jacobian would vanish. With B₀ = 0 the
Jacobian by A is zero and only B learns; `--start-b` above 0 gives B a start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matu.methods.base import State
from matu.methods.fedavg import FedAvg
from matu.training import Objective


@dataclass(frozen=True)
class Options:
    """η, more than 0; the authors use 1 and 0.3."""

    server_step: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.server_step < math.inf:
            raise ValueError(f"server_step {self.server_step}: expected more than 0")


class NtkFedAvg(FedAvg):
    """The method of this file."""

    Options = Options

    @property
    def objective(self) -> Objective:
        return Objective(linearised=True)

    def advance(self, state: State, mean: Tensor) -> dict[str, Tensor]:
        before = state.get("adapter", torch.zeros_like(mean))
        return {"adapter": before + self.options.server_step * (mean - before)}
