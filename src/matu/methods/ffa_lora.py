"""FFA-LoRA: FedAvg that trains B alone (Sun et al. 2024).

sent         as in FedAvg, but only the matrices B: half the adapter or less
trained      B and the head; A stays where all sites drew it
aggregated   as in FedAvg
kept         at the server: B and a head a task; at clients: nothing
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from matu.methods.fedavg import FedAvg
from matu.training import Objective
from matu.vectors.start import is_b


class FfaLora(FedAvg):
    """The method of this file."""

    @cached_property
    def shared(self) -> Tensor:
        return self.problem.layout.where(is_b)

    @property
    def objective(self) -> Objective:
        return Objective(trained=self.shared)
