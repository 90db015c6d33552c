"""The tensors of an artifact: every task's vector and head, in one of two forms.

unified     one vector for all tasks: that of task t is rescaler^t · mask^t ⊙ vector
separate    a vector a task, in few bits: that of task t is rescaler^t · vector^t
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from matu.errors import DataError
from matu.methods.matu import pack as unified
from matu.training import Weights
from matu.wire import MAX_RESCALER, Numbers, pack, unpack
from matu.wire.numbers import Code, read_numbers, write_numbers

CODEC = Numbers("5bit")
"""Of separate vectors."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Vectors and heads of some tasks, as they lie on disk.

    Attributes
    ----------
    tasks
        Names, in the order of the rows.
    dim
        LoRA parameters, d.
    tensors
        `rescalers` float32 [T] and `head/<task>` float32 [classes, features + 1]; unified: `vector` float32 [d] and
        `masks` uint8 [T, ceil(d / 8)], a bit an entry, lowest first; separate: `vector/<task>` uint8 [n], numbers
        quantised as docs/wire.md says.
    """

    tasks: tuple[str, ...]
    dim: int
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, weights: Mapping[str, Weights], *, separate: bool) -> Packed:
        """Pack the weights of tasks, unified in one vector or each with its own."""
        tasks, dim = tuple(weights), len(next(iter(weights.values())).vector)
        if not separate:
            tensors = unified(weights)
            masks = tensors.get("masks", tensors["vector"].ne(0)[None])
            tensors["masks"] = torch.stack([_bytes(pack(row.numpy())) for row in masks])
        else:
            coded = {f"vector/{task}": _coded(one.vector) for task, one in weights.items()}
            heads = {f"head/{task}": one.head for task, one in weights.items()}
            tensors = coded | heads | {"rescalers": torch.ones(len(weights))}
        return cls(tasks, dim, {name: tensor.contiguous() for name, tensor in tensors.items()})

    @property
    def separate(self) -> bool:
        """Every task has a vector of its own."""
        return "vector" not in self.tensors

    def weights(self) -> dict[str, Weights]:
        """What each task gets back."""
        return {task: Weights(self.vector(task), self.tensors[f"head/{task}"]) for task in self.tasks}

    def vector(self, task: str) -> Tensor:
        """A task's vector, float32 [d]; DataError for bytes that are none."""
        rescaler = self.tensors["rescalers"][self.tasks.index(task)]
        if self.separate:
            coded = memoryview(self.tensors[f"vector/{task}"].numpy().tobytes())
            return rescaler * torch.from_numpy(read_numbers(coded, Code.QUANTISED, self.dim, None))
        return rescaler * torch.where(self.mask(task), self.tensors["vector"], 0)

    def mask(self, task: str) -> Tensor:
        """Which entries of the unified vector are a task's, bool [d]."""
        row = self.tensors["masks"][self.tasks.index(task)]
        return torch.from_numpy(unpack(row.numpy().tobytes(), self.dim).copy())

    def bytes_of(self, task: str) -> int:
        """Bytes that are a task's alone."""
        own = [tensor for name, tensor in self.tensors.items() if name in (f"vector/{task}", f"head/{task}")]
        rows = [self.tensors[name][0] for name in ("rescalers", "masks") if name in self.tensors]
        return sum(tensor.nbytes for tensor in [*own, *rows])

    def check(self, heads: Mapping[str, tuple[int, int]]) -> None:
        """Require tensors of the right names, types and shapes, and finite numbers; `heads`: shapes by task.

        Raises
        ------
        DataError
            With the first thing that is wrong.
        """
        count, wanted = len(self.tasks), _wanted(self.tasks, self.dim, separate=self.separate)
        wanted |= {f"head/{task}": (torch.float32, shape) for task, shape in heads.items()}
        wanted["rescalers"] = (torch.float32, (count,))
        if set(self.tensors) != set(wanted):
            raise DataError(f"tensors {_few(set(self.tensors) ^ set(wanted))}: missing, or of no task")
        for name, (kind, shape) in wanted.items():
            tensor = self.tensors[name]
            if tensor.dtype != kind or (shape is not None and tuple(tensor.shape) != shape) or tensor.ndim == 0:
                expected = f"{kind} {list(shape) if shape is not None else '[n]'}"
                raise DataError(f"tensor '{name}': {tensor.dtype} {list(tensor.shape)}, expected {expected}")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise DataError(f"tensor '{name}': not finite")
        if not bool(((rescalers := self.tensors["rescalers"]) >= 0).all() and (rescalers <= MAX_RESCALER).all()):
            raise DataError(f"rescalers {rescalers.tolist()[:8]}: expected 0 to {MAX_RESCALER:g}")


def _wanted(tasks: Sequence[str], dim: int, *, separate: bool) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
    """Types and shapes of the vectors' tensors by name; None: of any length."""
    if separate:
        return {f"vector/{task}": (torch.uint8, None) for task in tasks}
    return {"vector": (torch.float32, (dim,)), "masks": (torch.uint8, (len(tasks), (dim + 7) // 8))}


def _coded(vector: Tensor) -> Tensor:
    return _bytes(write_numbers(vector.contiguous().numpy(), CODEC, None, None)[1])


def _bytes(data: bytes | memoryview) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _few(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)[:3])
