"""Rounds of a method without a model: every training ends where the test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from matu.config import FederationConfig, RunConfig
from matu.methods import Local, Method, Problem, State, find_method
from matu.training import Weights
from matu.vectors import Layout

Ends = Mapping[str, Weights]


def build(name: str, problem: Problem, *options: str) -> Any:
    """The method of a name, with its own options ("mu=0.1")."""
    return find_method(name)(problem, RunConfig(federation=FederationConfig(method=name, options=options)))  # type: ignore[call-arg, arg-type]


def at(vector: Sequence[float], head: Sequence[Sequence[float]]) -> Weights:
    """Weights from plain numbers."""
    return Weights(torch.tensor(vector, dtype=torch.float32), torch.tensor(head, dtype=torch.float32))


def block_problem(classes: Mapping[str, int], blocks: Sequence[str], features: int = 1, width: int = 1) -> Problem:
    """A problem whose adapter has matrices A and B of `width` numbers in each of the named blocks."""
    names = sorted(f"encoder.layer.{block}.q.lora_{half}.default.weight" for block in blocks for half in "AB")
    return Problem(classes, Layout(tuple(names), tuple((width, 1) for _ in names)), features)


def random_ends(problem: Problem, tasks: Sequence[str], seed: int) -> dict[str, Weights]:
    """Somewhere to end for each task."""
    draw = torch.Generator().manual_seed(seed)
    return {
        t: Weights(torch.randn(problem.dim, generator=draw), torch.randn(problem.head_shape(t), generator=draw))
        for t in tasks
    }


def one_by_one(train: Callable[[str, Weights], Weights]) -> Callable[[Mapping[str, Weights]], dict[str, Weights]]:
    """A training of one task as `Local.train`."""
    return lambda starts: {task: train(task, start) for task, start in starts.items()}


@dataclass
class Player:
    """A site; `starts` tells where its last trainings began."""

    name: str
    samples: Mapping[str, int]
    memory: State = field(default_factory=dict)
    starts: dict[str, Weights] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.samples)

    def answer(self, method: Method, state: State, ends: Ends) -> dict[str, Tensor]:
        """Its update to the downlink of `state`."""

        def train(task: str, start: Weights) -> Weights:
            self.starts[task] = Weights(start.vector.clone(), start.head.clone())
            return ends[task]

        sent = method.downlink(state, self.name, self.tasks)
        local = Local(self.tasks, self.samples, self.memory, one_by_one(train))
        tensors, self.memory = method.local_update(local, sent)
        return tensors

    def gets(self, method: Method, state: State) -> dict[str, Weights]:
        """Its weights, as they are evaluated."""
        return method.weights(self.tasks, method.downlink(state, self.name, self.tasks), self.memory)


def play(method: Method, state: State, answers: Sequence[tuple[Player, Ends]]) -> State:
    """The state after a round with these trainings."""
    gathering = method.begin_round(state)
    for player, ends in answers:
        update = player.answer(method, state, ends)
        gathering.add(player.name, player.tasks, tuple(player.samples.values()), update)
    return gathering.finish()


def equal(first: State, second: State) -> bool:
    """The same names, and the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(found: Tensor, expected: Any) -> None:
    """Equal to numbers computed by hand, up to float32."""
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).to(found.dtype), rtol=1e-6, atol=1e-6)
