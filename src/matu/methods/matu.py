"""MaTU: one unified vector with a mask and a rescaler per task.

sent up      unified vector of the client's task vectors, masks, rescalers, heads
sent down    the same form of the server's new task vectors
trained      every task of the client from its own start: base + λ m ⊙ τ
aggregated   per task over its holders (Eq. 3, 4), then across similar tasks (Eq. 5-7)
kept         at the server: mean, task mask, new task vector and head of every task seen; at clients: nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import DataError
from matu.methods.base import Local, Problem, State
from matu.training import Weights
from matu.vectors import MeanAccumulator, RoundAccumulator, Unified, transfer, unify


class Matu:
    """The method of the paper, as docs/method.md states it."""

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        self.problem, self.config = problem, config.matu

    def start(self) -> State:
        return {}

    def downlink(self, state: State, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self._pack({t: self._server(state, t) for t in tasks})

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        unified = self._open(tasks, tensors)
        return {t: Weights(unified.modulate(i), self.problem.head_of(tensors, t)) for i, t in enumerate(tasks)}

    def local_update(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], train: Local) -> dict[str, Tensor]:
        starts = self.weights(tasks, tensors)
        return self._pack({task: train(task, starts[task]) for task in tasks})

    def begin_round(self, state: State) -> MatuRound:
        return MatuRound(self, state)

    def server_weights(self, state: State) -> dict[str, Weights]:
        return {task: self._server(state, task) for task in self.problem.tasks}

    def paper_bits(self, tasks: Sequence[str]) -> int:
        heads = sum(self.problem.classes[t] for t in tasks) * (self.problem.features + 1)
        numbers, masks = self.problem.dim + heads, 0
        if len(tasks) > 1:
            numbers, masks = numbers + len(tasks), len(tasks) * self.problem.dim
        return 32 * numbers + masks

    def _server(self, state: State, task: str) -> Weights:
        if f"vector/{task}" not in state:
            return self.problem.base(task)
        return Weights(state[f"vector/{task}"], state[f"head/{task}"])

    def _pack(self, weights: Mapping[str, Weights]) -> dict[str, Tensor]:
        """Unify; a single task's mask is the support of its vector and need not be sent."""
        unified = unify(torch.stack([w.vector for w in weights.values()]))
        tensors = {"vector": unified.vector, "rescalers": unified.rescalers}
        if len(weights) > 1:
            tensors["masks"] = unified.masks
        return tensors | {f"head/{task}": w.head for task, w in weights.items()}

    def _open(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> Unified:
        """The unified vector in a message, its names, types and shapes checked."""
        k, d = len(tasks), self.problem.dim
        expected = {"vector": (torch.float32, [d]), "rescalers": (torch.float32, [k])}
        if k > 1:
            expected["masks"] = (torch.bool, [k, d])
        wanted = set(expected) | {f"head/{t}" for t in tasks}
        if set(tensors) != wanted:
            raise DataError(f"message holds tensors {sorted(tensors)}, expected {sorted(wanted)}")
        for name, (dtype, shape) in expected.items():
            found = tensors[name]
            if found.dtype != dtype or list(found.shape) != shape:
                raise DataError(f"'{name}' is {found.dtype} {list(found.shape)}, expected {dtype} {shape}")
        masks = tensors["masks"] if k > 1 else tensors["vector"].ne(0)[None]
        return Unified(tensors["vector"], masks, tensors["rescalers"])


class MatuRound:
    """Sums of one round; memory O(T·d) whatever the number of clients."""

    def __init__(self, method: Matu, state: State) -> None:
        self.method, self.state = method, state
        problem = method.problem
        self.sums = RoundAccumulator(problem.tasks, problem.dim, method.config.agreement_threshold)
        self.heads: dict[str, MeanAccumulator] = {}

    def add(self, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        unified = self.method._open(tasks, tensors)
        heads = {task: self.method.problem.head_of(tensors, task) for task in tasks}
        self.sums.add(tasks, unified, samples)
        for task, count in zip(tasks, samples, strict=True):
            head = heads[task]
            self.heads.setdefault(task, MeanAccumulator(tuple(head.shape))).add(head, count)

    def finish(self) -> State:
        """Means of the tasks with holders, the others as they were; then transfer over all tasks seen."""
        if not self.heads:
            return self.state
        means, state = self.sums.means(), dict(self.state)
        for i, task in enumerate(means.tasks):
            state[f"mean/{task}"] = means.vectors[i].float()
            state[f"mask/{task}"] = means.task_masks[i].float()
            state[f"head/{task}"] = self.heads[task].mean().float()
        seen = [task for task in self.method.problem.tasks if f"mean/{task}" in state]
        c = self.method.config
        vectors = transfer(
            torch.stack([state[f"mean/{task}"] for task in seen]),
            torch.stack([state[f"mask/{task}"] for task in seen]),
            top_k=c.top_k, threshold=c.similarity_threshold, rule=c.rule,
        )  # fmt: skip
        return state | {f"vector/{task}": vector.clone() for task, vector in zip(seen, vectors, strict=True)}
