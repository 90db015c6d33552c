"""MaTU: one unified vector with a mask and a rescaler per task.

sent up      unified vector of the client's task vectors, masks, rescalers, heads
sent down    the same form of the server's new task vectors
trained      every task of the client from its own start: base + λ m ⊙ τ
aggregated   per task over its holders (Eq. 3, 4), then across similar tasks (Eq. 5-7)
kept         at the server: mean, task mask, new task vector and head of every task seen; at clients: nothing

With `unification` off, a control, every task's vector is a unified vector of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.methods.base import Local, Means, Method, Problem, State, adapter_parts, head_parts
from matu.methods.per_task_fedavg import plain
from matu.training import Weights
from matu.vectors import RoundAccumulator, Unified, transfer_rows, unify
from matu.wire import MAX_RESCALER, Kind, Part


class Matu(Method):
    """The method of the paper, as docs/method.md states it."""

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        super().__init__(problem, config)
        self.settings = config.matu

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self._pack({task: self._server(state, task) for task in tasks})

    def downlink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        k, d, heads = len(tasks), self.problem.dim, head_parts(self.problem, tasks)
        if not self.settings.unification:
            return *adapter_parts(tasks, d), *heads
        masks = [Part("masks", Kind.MASKS, (k, d), "masks", of="vector")] if k > 1 else []
        rescalers = Part("rescalers", Kind.RESCALERS, (k,))
        return Part("vector", Kind.VECTOR, (d,), "vector"), *masks, rescalers, *heads

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return self.downlink_parts(tasks)

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        vectors = {
            task: unified.modulate(i) for group, unified in self.open(tasks, tensors) for i, task in enumerate(group)
        }
        return {task: Weights(vectors[task], tensors[f"head/{task}"]) for task in tasks}

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        starts = self.weights(local.tasks, tensors, local.memory)
        return self._pack({task: local.train(task, starts[task]) for task in local.tasks}), {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return self.weights(tasks, tensors, {})

    def begin_round(self, state: State) -> MatuRound:
        return MatuRound(self, state)

    def server_weights(self, state: State) -> dict[str, Weights] | None:
        return {task: self._server(state, task) for task in self.problem.tasks}

    def paper_bits(self, tasks: Sequence[str]) -> int:
        k, d = len(tasks), self.problem.dim
        heads = self.problem.head_numbers(tasks)
        if k == 1 or not self.settings.unification:
            return 32 * (k * d + heads)
        return 32 * (d + k + heads) + k * d

    def _server(self, state: State, task: str) -> Weights:
        if f"vector/{task}" not in state:
            return self.problem.base(task)
        return Weights(state[f"vector/{task}"], state[f"head/{task}"])

    def _pack(self, weights: Mapping[str, Weights]) -> dict[str, Tensor]:
        return pack(weights) if self.settings.unification else plain(weights)

    def open(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], Unified]]:
        """The unified vectors in a message, each with its tasks."""
        if not self.settings.unification:
            return [((task,), unify(tensors[f"adapter/{task}"][None])) for task in tasks]
        vector = tensors["vector"]
        masks = tensors["masks"] if len(tasks) > 1 else vector.ne(0)[None]
        return [(tuple(tasks), Unified(vector, masks, tensors["rescalers"]))]


def pack(weights: Mapping[str, Weights]) -> dict[str, Tensor]:
    """Unify: vector, rescalers, masks, heads. A single task's mask is the support of its vector and not kept.

    A rescaler has no bound where a task disagrees almost everywhere; beyond that of a message it is cut.
    """
    unified = unify(torch.stack([w.vector for w in weights.values()]))
    tensors = {"vector": unified.vector, "rescalers": unified.rescalers.clamp(max=MAX_RESCALER)}
    if len(weights) > 1:
        tensors["masks"] = unified.masks
    return tensors | {f"head/{task}": w.head for task, w in weights.items()}


class MatuRound:
    """Sums of one round; memory O(T·d) whatever the number of clients."""

    def __init__(self, method: Matu, state: State) -> None:
        self.method, self.state, self.heads = method, state, Means()
        problem = method.problem
        self.sums = RoundAccumulator(problem.tasks, problem.dim, method.settings.agreement_threshold)

    def add(self, site: str, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        counts = dict(zip(tasks, samples, strict=True))
        for group, unified in self.method.open(tasks, tensors):
            self.sums.add(group, unified, [counts[task] for task in group])
        for task in tasks:
            self.heads.add(f"head/{task}", tensors[f"head/{task}"], counts[task])

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.sums.add((task,), unify(weights.vector[None]), [samples])
        self.heads.add(f"head/{task}", weights.head, samples)

    def finish(self) -> State:
        """Means of the tasks with holders, the others as they were; then transfer over all tasks seen."""
        if not self.heads:
            return self.state
        state = {**self.state, **self.heads.values()}
        for task, (mean, task_mask) in self.sums.by_task(torch.float32).items():
            state[f"mean/{task}"], state[f"mask/{task}"] = mean, task_mask
        seen = [task for task in self.method.problem.tasks if f"mean/{task}" in state]
        c = self.method.settings
        vectors = transfer_rows(
            [state[f"mean/{task}"] for task in seen], [state[f"mask/{task}"] for task in seen],
            top_k=c.top_k, threshold=c.similarity_threshold, rule=c.rule,
        )  # fmt: skip
        return state | {f"vector/{task}": vector for task, vector in zip(seen, vectors, strict=True)}
