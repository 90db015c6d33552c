"""FedAvg: one adapter for all tasks (McMahan et al. 2017).

sent up      an adapter and a head for each of the client's tasks
sent down    the global adapter, and the heads of the client's tasks
trained      every task of the client on its own, from the global adapter
aggregated   adapters: sample-weighted mean over all (client, task); heads: the same per task
kept         at the server: the adapter and a head a task; at clients: nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from matu.methods.base import Local, Means, Method, Round, State, adapter_parts, head_parts
from matu.training import Weights
from matu.wire import Kind, Part


class FedAvg(Method):
    """The method of this file; `shared` and `advance` are what its relatives change."""

    @property
    def shared(self) -> Tensor | None:
        """bool [d], which adapter parameters travel; None: all."""
        return None

    @property
    def shared_dim(self) -> int:
        """How many adapter parameters travel."""
        return self.problem.dim if self.shared is None else int(self.shared.sum())

    def narrow(self, vector: Tensor) -> Tensor:
        """float [d] -> the entries that travel."""
        return vector if self.shared is None else vector[self.shared]

    def widen(self, part: Tensor) -> Tensor:
        """The inverse of `narrow`, zero elsewhere."""
        if self.shared is None:
            return part
        vector = part.new_zeros(self.problem.dim)
        vector[self.shared] = part
        return vector

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {"adapter": state.get("adapter", torch.zeros(self.shared_dim))} | self.heads(state, tasks)

    def heads(self, state: State, tasks: Sequence[str]) -> dict[str, Tensor]:
        """The server's heads of some tasks, zero where nobody has trained one."""
        return {f"head/{t}": state.get(f"head/{t}", torch.zeros(self.problem.head_shape(t))) for t in tasks}

    def downlink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return Part("adapter", Kind.VECTOR, (self.shared_dim,)), *head_parts(self.problem, tasks)

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return *adapter_parts(tasks, self.shared_dim, "adapter"), *head_parts(self.problem, tasks)

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        vector = self.widen(tensors["adapter"])
        return {t: Weights(vector, tensors[f"head/{t}"]) for t in tasks}

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        starts = self.weights(local.tasks, tensors, local.memory)
        sent: dict[str, Tensor] = {}
        for task, trained in local.train(starts).items():
            sent |= {f"adapter/{task}": self.narrow(trained.vector), f"head/{task}": trained.head}
        return sent, {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return {t: Weights(tensors[f"adapter/{t}"], tensors[f"head/{t}"]) for t in tasks}

    def begin_round(self, state: State) -> Round:
        return FedAvgRound(self, state)

    def advance(self, state: State, mean: Tensor) -> dict[str, Tensor]:
        """What becomes of the clients' mean adapter; a relative may keep more, such as a momentum."""
        return {"adapter": mean}

    def server_weights(self, state: State) -> dict[str, Weights] | None:
        tasks = self.problem.tasks
        return self.weights(tasks, self.downlink(state, "", tasks), {})

    def paper_bits(self, tasks: Sequence[str]) -> int:
        return 32 * (len(tasks) * self.shared_dim + self.problem.head_numbers(tasks))


class FedAvgRound(Round):
    """Sums of one round, folded in as updates arrive."""

    method: FedAvg

    def __init__(self, method: FedAvg, state: State) -> None:
        self.method, self.state, self.means = method, state, Means()

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.means.add("adapter", weights.vector, samples)
        self.means.add(f"head/{task}", weights.head, samples)

    def finish(self) -> State:
        if not self.means:
            return self.state
        means = self.means.values()
        mean = means.pop("adapter")
        return {**self.state, **means, **self.method.advance(self.state, mean)}
