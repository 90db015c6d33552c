"""What a federated method is: a few functions over tensors by name. It knows neither transport nor files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import ConfigError
from matu.training import Objective, Weights
from matu.vectors import Layout, MeanAccumulator
from matu.wire import Kind, Part

State = Mapping[str, Tensor]
"""What a server, or a site, keeps between rounds: tensors by name, so that a checkpoint is one safetensors file."""


@dataclass(frozen=True)
class Problem:
    """The sizes that all sites agree on.

    Attributes
    ----------
    classes
        Number of classes by task name; its order is the order of the tasks.
    layout
        Names and shapes of the LoRA parameters in the flat vector.
    features
        Width of the image feature a head reads.
    """

    classes: Mapping[str, int]
    layout: Layout
    features: int

    @property
    def dim(self) -> int:
        """LoRA parameters, d."""
        return self.layout.dim

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task names, in order."""
        return tuple(self.classes)

    def head_shape(self, task: str) -> tuple[int, int]:
        """Classes and features + 1 (the bias is the last column)."""
        return self.classes[task], self.features + 1

    def base(self, task: str) -> Weights:
        """The start of a task nobody has trained: no change, head zero."""
        return Weights(torch.zeros(self.dim), torch.zeros(self.head_shape(task)))

    def head_numbers(self, tasks: Sequence[str]) -> int:
        """Numbers in the heads of some tasks."""
        return sum(self.classes[task] for task in tasks) * (self.features + 1)


def adapter_parts(tasks: Sequence[str], dim: int, against: str = "") -> tuple[Part, ...]:
    """`adapter/<task>` of every task, changes counted from the downlink's part `against` (empty: of that name)."""
    names = [f"adapter/{task}" for task in tasks]
    return tuple(Part(name, Kind.VECTOR, (dim,), against or name) for name in names)


def head_parts(problem: Problem, tasks: Sequence[str]) -> tuple[Part, ...]:
    """`head/<task>` of every task."""
    return tuple(Part(f"head/{task}", Kind.HEAD, problem.head_shape(task), f"head/{task}") for task in tasks)


@dataclass(frozen=True)
class Local:
    """What a site lends its method for a round.

    Attributes
    ----------
    tasks
        Its tasks, in order.
    samples
        By task, its training images.
    memory
        What the method kept at this site after its last round; empty before the first.
    train
        Fine-tunes tasks that do not wait for each other, each from its weights: from starts to ends, by task.
    """

    tasks: tuple[str, ...]
    samples: Mapping[str, int]
    memory: State
    train: Callable[[Mapping[str, Weights]], dict[str, Weights]]


class Round(ABC):
    """A round at the server: updates are folded in as they arrive, in any order.

    Tensors have the names, types and shapes of `Method.uplink_parts`, and finite numbers.

    Attributes
    ----------
    method
        Whose round it is.
    """

    method: Method

    def add(self, site: str, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Fold in one site's update, task by task as `Method.reported` reads it."""
        reported = self.method.reported(tasks, tensors)
        for task, count in zip(tasks, samples, strict=True):
            self.add_weights(site, task, count, reported[task])

    @abstractmethod
    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        """Fold in one task of a site as `Method.reported` gives it."""

    @abstractmethod
    def finish(self) -> State:
        """The state after the round; the very state before it if nobody answered."""


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


class Method(ABC):
    """A federated method: what is sent, trained, aggregated and kept.

    `downlink` and `local_update` give the tensors of the two messages, `downlink_parts` and `uplink_parts` what
    they are; `weights` is how a site reads its downlink, so evaluation reads what a client really gets.

    Attributes
    ----------
    Options
        Frozen dataclass of the method's own options with their defaults (`--options name=value`).
    personal
        Two clients with the same tasks may get different weights.
    revision
        Of a built-in method's numbers: one more whenever they, or an option's default, change, so that results of
        before are not taken for its own.
    """

    Options: ClassVar[type] = NoOptions
    personal: ClassVar[bool] = False
    revision: ClassVar[int] = 0

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        self.problem, self.config = problem, config
        self.options: Any = self.options_of(config)

    @classmethod
    def options_of(cls, config: RunConfig) -> Any:
        """The options that a run gives it; ConfigError for what cannot work, before data are read."""
        return parse_options(cls, config.federation.options)

    @property
    def objective(self) -> Objective:
        """How a site trains."""
        return Objective()

    @property
    def separate(self) -> bool:
        """Artifacts keep a vector a task, in few bits, and not one unified vector of all."""
        return False

    def start(self) -> State:
        """The state before round 1."""
        return {}

    @abstractmethod
    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        """What a client that holds `tasks` is sent."""

    @abstractmethod
    def downlink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        """Names, kinds and shapes of the tensors of `downlink`."""

    @abstractmethod
    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        """The same of `local_update`, and the part of the downlink that each is a change of."""

    @abstractmethod
    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        """A downlink, opened at a site: its weights of each task."""

    @abstractmethod
    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """A client's round: train every task from its downlink; what is sent up, and what is kept there.

        Sites are asked at the same time, in threads or other processes: nothing may be kept on `self`.
        """

    @abstractmethod
    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        """An update, opened at the server: the task vectors (what travels of them) and heads that it stands for."""

    @abstractmethod
    def begin_round(self, state: State) -> Round:
        """A fresh round on top of `state`."""

    @abstractmethod
    def server_weights(self, state: State) -> dict[str, Weights] | None:
        """The server's own weights of every task, before they are packed for anybody; None if it has none."""

    @abstractmethod
    def paper_bits(self, tasks: Sequence[str]) -> int:
        """Uplink of a client in the paper's accounting: 32 bits a number, 1 bit a mask entry."""


def parse_options(method: type, words: Sequence[str]) -> Any:
    """The method's options from words such as "mu=0.1".

    Raises
    ------
    ConfigError
        For an unknown option or a value of another type; the message lists what there is.
    """
    fields = {field.name: field for field in dataclasses.fields(method.Options)}  # type: ignore[attr-defined]
    known = ", ".join(f"{name}={field.default}" for name, field in fields.items()) or "no option"
    kinds: dict[str, Any] = {name: type(field.default) for name, field in fields.items()}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name in values:
            raise ConfigError(f"options: {name} is given twice")
        if not equals or name not in fields:
            raise ConfigError(f"options: {word!r}; {method.__name__} takes {known}")
        try:
            values[name] = {"true": True, "false": False}[text.lower()] if kinds[name] is bool else kinds[name](text)
        except (ValueError, KeyError):
            raise ConfigError(f"options: {name} = {text!r}; expected something like {fields[name].default}") from None
    try:
        return method.Options(**values)  # type: ignore[attr-defined]
    except ValueError as error:
        raise ConfigError(f"options: {error}") from None


class Means:
    """Sample-weighted means by name, equal to the last bit in any order of arrival."""

    def __init__(self) -> None:
        self._sums: dict[str, MeanAccumulator] = {}

    def add(self, name: str, values: Tensor, samples: int) -> None:
        """Fold in one value of a name."""
        self._sums.setdefault(name, MeanAccumulator(tuple(values.shape))).add(values, samples)

    def __bool__(self) -> bool:
        return bool(self._sums)

    def values(self) -> dict[str, Tensor]:
        """float32 means of all names that were added."""
        return {name: total.mean(torch.float32) for name, total in sorted(self._sums.items())}
