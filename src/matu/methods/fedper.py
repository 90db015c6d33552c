"""FedPer: the last block and the heads stay at the client (Arivazhagan et al. 2019).

sent up      the adapter without its last block, once for each of the client's tasks
sent down    the same part of the global adapter
trained      every task of the client on its own: from the global part and the client's own block and head
aggregated   the part that travels: sample-weighted mean over all (client, task)
kept         at the server: that part; at clients: one block, the sample-weighted mean of its k trainings,
             and a head a task
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import ConfigError
from matu.methods.base import Local, Means, Problem, State, adapter_parts
from matu.methods.fedavg import FedAvg, FedAvgRound
from matu.training import Weights
from matu.wire import Kind, Part


class FedPer(FedAvg):
    """The method of this file."""

    personal = True

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        super().__init__(problem, config)
        self.shared  # noqa: B018  # a backbone without numbered blocks is told before any work

    @cached_property
    def shared(self) -> Tensor:
        layout = self.problem.layout
        blocks = {n: tuple(int(number) for number in re.findall(r"(?<=\.)\d+(?=\.)", n)) for n in layout.names}
        last = max(blocks.values())
        if last == min(blocks.values()):
            raise ConfigError("fedper: the backbone's layers are not numbered blocks, so none is the last")
        return layout.where(lambda name: blocks[name] != last)

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {"adapter": state.get("adapter", torch.zeros(self.shared_dim))}

    def downlink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return (Part("adapter", Kind.VECTOR, (self.shared_dim,)),)

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return adapter_parts(tasks, self.shared_dim, "adapter")

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        vector = self.widen(tensors["adapter"])
        if "block" in memory:
            vector[~self.shared] = memory["block"]
        return {t: Weights(vector, memory.get(f"head/{t}", self.problem.base(t).head)) for t in tasks}

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        starts, block = self.weights(local.tasks, tensors, local.memory), Means()
        sent, kept = {}, dict(local.memory)
        for task, trained in local.train(starts).items():
            sent[f"adapter/{task}"] = self.narrow(trained.vector)
            kept[f"head/{task}"] = trained.head
            block.add("block", trained.vector[~self.shared], local.samples[task])
        return sent, kept | block.values()

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return {t: Weights(tensors[f"adapter/{t}"], torch.zeros(0)) for t in tasks}

    def begin_round(self, state: State) -> FedPerRound:
        return FedPerRound(self, state)

    def server_weights(self, state: State) -> None:
        return None

    def paper_bits(self, tasks: Sequence[str]) -> int:
        return 32 * len(tasks) * self.shared_dim


class FedPerRound(FedAvgRound):
    """As in FedAvg, without heads."""

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.means.add("adapter", weights.vector, samples)
