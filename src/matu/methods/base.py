"""What a federated method is: a few functions over tensors by name. It knows neither transport nor files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import ConfigError, DataError
from matu.training import Objective, Weights
from matu.vectors import Layout, MeanAccumulator

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

    def head_shape(self, task: str) -> list[int]:
        """Classes and features + 1 (the bias is the last column)."""
        return [self.classes[task], self.features + 1]

    def base(self, task: str) -> Weights:
        """The start of a task nobody has trained: no change, head zero."""
        return Weights(torch.zeros(self.dim), torch.zeros(self.head_shape(task)))

    def head_numbers(self, tasks: Sequence[str]) -> int:
        """Numbers in the heads of some tasks."""
        return sum(self.classes[task] for task in tasks) * (self.features + 1)


def check_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Require exactly these names, shapes and types (float32 unless told), and finite values.

    Raises
    ------
    DataError
        Naming what differs.
    """
    if set(tensors) != set(expected):
        raise DataError(f"message holds tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, shape in expected.items():
        found, dtype = tensors[name], (dtypes or {}).get(name, torch.float32)
        if found.dtype != dtype or list(found.shape) != list(shape):
            raise DataError(f"'{name}' is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise DataError(f"'{name}' has entries that are not finite")


def check_plain(problem: Problem, tasks: Sequence[str], tensors: Mapping[str, Tensor], dim: int) -> None:
    """Require `adapter/<task>` float [dim] and `head/<task>` of every task; DataError for anything else."""
    adapters = {f"adapter/{task}": [dim] for task in tasks}
    check_tensors(tensors, adapters | {f"head/{task}": problem.head_shape(task) for task in tasks})


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
        Fine-tunes one of its tasks from some weights.
    """

    tasks: tuple[str, ...]
    samples: Mapping[str, int]
    memory: State
    train: Callable[[str, Weights], Weights]


class Round(Protocol):
    """A round at the server: updates are folded in as they arrive, in any order."""

    def add(self, site: str, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Fold in one site's update; on bad content raise, and change nothing."""

    def finish(self) -> State:
        """The state after the round; the very state before it if nobody answered."""


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


class Method(ABC):
    """A federated method: what is sent, trained, aggregated and kept.

    `downlink` and `local_update` give the tensors of the two messages; `weights` is how a site reads its
    downlink, so evaluation reads what a client really gets.

    Attributes
    ----------
    Options
        Frozen dataclass of the method's own options with their defaults (`--options name=value`).
    personal
        Two clients with the same tasks may get different weights.
    """

    Options: ClassVar[type] = NoOptions
    personal: ClassVar[bool] = False

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        self.problem, self.config = problem, config
        self.options: Any = parse_options(type(self), config.federation.options)

    @property
    def objective(self) -> Objective:
        """How a site trains."""
        return Objective()

    def start(self) -> State:
        """The state before round 1."""
        return {}

    @abstractmethod
    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        """What a client that holds `tasks` is sent."""

    @abstractmethod
    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        """A downlink, opened at a site: its weights of each task; DataError for content that cannot be."""

    @abstractmethod
    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """A client's round: train every task from its downlink; what is sent up, and what is kept there."""

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
        return {name: total.mean().float() for name, total in sorted(self._sums.items())}
