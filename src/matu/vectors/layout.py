"""Adapter parameters as one flat vector in a fixed order, with a fingerprint two sites can compare."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from matu.vectors.checks import require_float, require_shape


@dataclass(frozen=True)
class Layout:
    """Names and shapes of parameters, in the order in which they lie in a flat vector.

    Attributes
    ----------
    names : tuple of str
        Sorted, each once.
    shapes : tuple of tuple of int
        Shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.shapes):
            raise ValueError(f"layout: {len(self.names)} names, {len(self.shapes)} shapes, expected one each")
        if list(self.names) != sorted(set(self.names)):
            raise ValueError("layout: expected sorted names, each once")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if math.prod(shape) < 1:
                raise ValueError(f"layout: parameter {name!r} of shape {list(shape)} has no entries")

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Self:
        """Return the layout of named tensors, in sorted order of names."""
        names = tuple(sorted(parameters))
        return cls(names, tuple(tuple(parameters[name].shape) for name in names))

    @property
    def dim(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return named tensors as one new vector without gradient, float [d].

        Raises
        ------
        ValueError
            Names missing or extra, a shape or dtype that differs.
        """
        missing = sorted(set(self.names) - set(parameters))
        extra = sorted(set(parameters) - set(self.names))
        if missing or extra:
            raise ValueError(f"parameters: missing {missing}, not in the layout {extra}")
        first = parameters[self.names[0]]
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = require_float(parameters[name], f"parameter {name!r}")
            require_shape(tensor, shape, f"parameter {name!r}")
            if tensor.dtype != first.dtype:
                raise ValueError(f"parameter {name!r}: {tensor.dtype}, {self.names[0]!r} is {first.dtype}")
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the named parts of a flat vector as views of it; ValueError if it is not float [d]."""
        require_shape(require_float(vector, "flat vector"), (self.dim,), "flat vector")
        parts = torch.split(vector, [math.prod(shape) for shape in self.shapes])
        named = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.view(shape) for name, shape, part in named}

    def where(self, holds: Callable[[str], bool]) -> Tensor:
        """Return which coordinates are of parameters whose name `holds` accepts, bool [d]."""
        return torch.cat([torch.full((math.prod(s),), holds(n)) for n, s in zip(self.names, self.shapes, strict=True)])

    def fingerprint(self, **facts: str | int | float) -> str:
        """Return SHA-256 in hex over names, shapes and facts such as rank, seed and backbone.

        Raises
        ------
        ValueError
            A fact that is not a finite number or a string.
        """
        for name, fact in facts.items():
            number = isinstance(fact, int | float) and math.isfinite(fact)
            if not number and not isinstance(fact, str):
                raise ValueError(f"fact {name!r}: got {fact!r}, expected a string or a finite number")
        content = {"names": self.names, "shapes": self.shapes, "facts": facts}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
