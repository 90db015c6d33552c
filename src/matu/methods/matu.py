"""MaTU: one unified vector with a mask and a rescaler per task.

sent up      unified vector of the client's task vectors, masks, rescalers, heads
sent down    the same form of the server's new task vectors
trained      every task of the client from its own start: base + λ m ⊙ τ
aggregated   per task over its holders (Eq. 3, 4), then across similar tasks (Eq. 5-7)
kept         at the server: mean, votes and head of every task seen, and their similarities; at clients: nothing

New task vectors (Eq. 6, 7) are worked out from that when they are asked for: kept, they would double what is kept.

With `unification` off, a control, every task's vector is a unified vector of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.methods.base import Local, Means, Method, Problem, Round, State, adapter_parts, head_parts
from matu.methods.per_task_fedavg import plain
from matu.training import Weights
from matu.vectors import Agreement, RoundAccumulator, Unified, similarity_of_rows, transfer_rows, unify
from matu.wire import MAX_RESCALER, Kind, Part


class Matu(Method):
    """The method of the paper, as docs/method.md states it."""

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        super().__init__(problem, config)
        self.settings = config.matu

    @property
    def separate(self) -> bool:
        return not self.settings.unification

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self._pack(self.new_weights(state, tasks))

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
        return self._pack(local.train(starts)), {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return self.weights(tasks, tensors, {})

    def begin_round(self, state: State) -> MatuRound:
        return MatuRound(self, state)

    def server_weights(self, state: State) -> dict[str, Weights] | None:
        return self.new_weights(state, self.problem.tasks)

    def paper_bits(self, tasks: Sequence[str]) -> int:
        k, d = len(tasks), self.problem.dim
        heads = self.problem.head_numbers(tasks)
        if k == 1 or not self.settings.unification:
            return 32 * (k * d + heads)
        return 32 * (d + k + heads) + k * d

    def new_weights(self, state: State, tasks: Sequence[str]) -> dict[str, Weights]:
        """The server's new vector (Eq. 6, 7) and head of tasks; the start, of those that nobody has trained."""
        seen = seen_tasks(state)
        wanted = [task for task in tasks if task in seen]
        settings, vectors = self.settings, []
        if wanted:
            vectors = transfer_rows(
                [state[f"mean/{task}"] for task in seen], [self._agreement(state, task) for task in seen],
                state["similarity"], settings.top_k, settings.similarity_threshold, settings.rule,
                wanted=[seen.index(task) for task in wanted],
            )  # fmt: skip
        found = {task: Weights(vector, state[f"head/{task}"]) for task, vector in zip(wanted, vectors, strict=True)}
        return {task: found[task] if task in found else self.problem.base(task) for task in tasks}

    def _agreement(self, state: State, task: str) -> Agreement:
        return Agreement(state[f"votes/{task}"], int(state[f"holders/{task}"]), self.settings.agreement_threshold)

    def _pack(self, weights: Mapping[str, Weights]) -> dict[str, Tensor]:
        return pack(weights) if self.settings.unification else plain(weights)

    def open(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], Unified]]:
        """The unified vectors in a message, each with its tasks."""
        if not self.settings.unification:
            return [((task,), unify(tensors[f"adapter/{task}"][None])) for task in tasks]
        vector = tensors["vector"]
        masks = tensors["masks"] if len(tasks) > 1 else vector.ne(0)[None]
        return [(tuple(tasks), Unified(vector, masks, tensors["rescalers"]))]


def seen_tasks(state: State) -> list[str]:
    """The tasks that some round had an update of; by name, so that it is the same whoever came first."""
    return sorted(name.removeprefix("mean/") for name in state if name.startswith("mean/"))


def pack(weights: Mapping[str, Weights]) -> dict[str, Tensor]:
    """Unify: vector, rescalers, masks, heads. A single task's vector is as it was, its mask not kept.

    A rescaler has no bound where a task disagrees almost everywhere; beyond that of a message it is cut.
    """
    if len(weights) == 1:
        ((task, alone),) = weights.items()
        return {"vector": alone.vector, "rescalers": alone.vector.any().float()[None], f"head/{task}": alone.head}
    unified = unify(torch.stack([w.vector for w in weights.values()]), most=MAX_RESCALER)
    tensors = {"vector": unified.vector, "masks": unified.masks, "rescalers": unified.rescalers}
    return tensors | {f"head/{task}": w.head for task, w in weights.items()}


class MatuRound(Round):
    """Sums of one round; memory O(T·d) whatever the number of clients."""

    method: Matu

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
        """Means of the tasks with holders, the others as they were; how similar all tasks seen are."""
        if not self.heads:
            return self.state
        state = {**self.state, **self.heads.values()}
        for task, (mean, agreement) in self.sums.by_task(torch.float32).items():
            state[f"mean/{task}"], state[f"votes/{task}"] = mean, agreement.votes
            state[f"holders/{task}"] = torch.tensor(agreement.holders)
        seen = seen_tasks(state)
        return state | {"similarity": similarity_of_rows([state[f"mean/{task}"] for task in seen])}
