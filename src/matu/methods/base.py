"""What a method is: a few functions over tensors by name. It knows neither transport nor files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import DataError
from matu.training import Weights

State = Mapping[str, Tensor]
"""What the server keeps between rounds: tensors by name, so that a checkpoint is one safetensors file."""


@dataclass(frozen=True)
class Problem:
    """The sizes that all sites agree on.

    Attributes
    ----------
    classes
        Number of classes by task name; its order is the order of the tasks.
    dim
        LoRA parameters, d.
    features
        Width of the image feature a head reads.
    """

    classes: Mapping[str, int]
    dim: int
    features: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task names, in order."""
        return tuple(self.classes)

    def base(self, task: str) -> Weights:
        """The start of a task nobody has trained: no change, head zero."""
        return Weights(torch.zeros(self.dim), torch.zeros(self.classes[task], self.features + 1))

    def head_of(self, tensors: Mapping[str, Tensor], task: str) -> Tensor:
        """The head of a task among a message's tensors, its shape and values checked."""
        head = tensors.get(f"head/{task}")
        expected = (self.classes[task], self.features + 1)
        if head is None or head.dtype != torch.float32 or tuple(head.shape) != expected:
            found = "nothing" if head is None else f"{head.dtype} {list(head.shape)}"
            raise DataError(f"task '{task}': head is {found}, expected torch.float32 {list(expected)}")
        if not bool(torch.isfinite(head).all()):
            raise DataError(f"task '{task}': head has entries that are not finite")
        return head


class Local(Protocol):
    """What a site offers its method: training of one of its tasks."""

    def __call__(self, task: str, start: Weights) -> Weights: ...


class Round(Protocol):
    """A round at the server: updates are folded in as they arrive, in any order, and freed."""

    def add(self, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Fold in one site's update; on bad content raise, and change nothing."""

    def finish(self) -> State:
        """The state after the round."""


class Method(Protocol):
    """A federated method.

    `downlink` and `local_update` give the tensors of the two messages; `weights` is how a site reads
    its downlink, so evaluation reads the very bytes' worth that a client gets.
    """

    def __init__(self, problem: Problem, config: RunConfig) -> None: ...

    def start(self) -> State:
        """The state before round 1."""

    def downlink(self, state: State, tasks: Sequence[str]) -> dict[str, Tensor]:
        """What a client that holds `tasks` is sent."""

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        """A downlink, opened: the start of each task; DataError for content that cannot be."""

    def local_update(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], train: Local) -> dict[str, Tensor]:
        """A client's round: train every task from its downlink, and return what is sent up."""

    def begin_round(self, state: State) -> Round:
        """A fresh round on top of `state`."""

    def server_weights(self, state: State) -> dict[str, Weights]:
        """The server's own model of every task, before it is packed for anybody."""

    def paper_bits(self, tasks: Sequence[str]) -> int:
        """Uplink of a client in the paper's accounting: 32 bits a number, 1 bit a mask entry."""
