"""What a message consists of: parts whose shapes both ends know before a byte is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What the numbers of a part are, and so how they may be coded."""

    VECTOR = 1
    """float32: an adapter's numbers."""
    HEAD = 2
    """float32: a linear head."""
    RESCALERS = 3
    """float32, none below 0: always exact."""
    MASKS = 4
    """bool [k, d]: which entries of a vector belong to a task."""


@dataclass(frozen=True)
class Part:
    """One tensor of a message.

    Attributes
    ----------
    name
        Of the tensor.
    kind
        What it holds.
    shape
        Its shape, known to both ends.
    against
        The part of the same round's downlink that its changes are counted from; empty: none.
    of
        Masks: the vector part they belong to.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    against: str = ""
    of: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"part '{self.name}': shape {self.shape}, expected at least one entry")

    @property
    def size(self) -> int:
        """How many entries."""
        return math.prod(self.shape)
