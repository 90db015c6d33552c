"""TIES, on vectors that may come in parts: what is kept is found without sorting, or holding, whole vectors."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

KEEP = 0.2
"""Share of entries that survives the trim, as the authors of TIES set it."""
SCALE = 0.3
"""λ of task arithmetic, as its authors set it for eight tasks."""

_HALF = 16


def ties(vectors: Tensor, keep: float) -> Tensor:
    """Merge task vectors, float32 [T, d] -> [d] (Yadav et al. 2023).

    Of each vector the ⌈keep · d⌉ entries of largest magnitude survive (among equals, those that come first).
    Where the survivors' sum is zero no sign is elected, and the result is zero.
    """
    return agreeing_mean(Trim(lambda: [vectors], keep)(vectors))


class Trim:
    """The trim of TIES, for vectors in parts: call it on every part, in order.

    Parameters
    ----------
    parts
        Gives the parts, float32 [T, n], from the first on each time it is called: twice, here.
    keep
        Share of entries that survive, more than 0, at most 1.
    """

    def __init__(self, parts: Callable[[], Iterable[Tensor]], keep: float) -> None:
        # The bits of a magnitude, read as a whole number, have its order: the least that survives is found by its
        # upper half, then by the lower half of those that share that.
        uppers = sum(torch.stack([_counted(row >> _HALF) for row in _bits(part)]) for part in parts())
        assert isinstance(uppers, Tensor)
        left = torch.full((len(uppers),), math.ceil(round(keep * int(uppers[0].sum()), 6)))  # 0.28 · 100 > 28
        upper, left = _place(uppers, left)
        lowers = torch.zeros_like(uppers)
        for part in parts():
            for counts, row, bin_ in zip(lowers, _bits(part), upper, strict=True):
                counts += _counted(row[row >> _HALF == bin_] & ((1 << _HALF) - 1))
        lower, self._left = _place(lowers, left)
        self._least = (upper << _HALF | lower)[:, None]

    def __call__(self, part: Tensor) -> Tensor:
        """The next part, float32 [T, n], with 0 for what does not survive."""
        bits = _bits(part)
        equal = bits == self._least
        kept = (bits > self._least) | (equal & (equal.cumsum(dim=1) <= self._left[:, None]))
        self._left = self._left - (equal & kept).sum(dim=1)
        return torch.where(kept, part, 0)


def agreeing_mean(trimmed: Tensor) -> Tensor:
    """Elect a sign by the sum, and average the entries of that sign, float [T, d] -> [d]."""
    elected = trimmed.double().sum(dim=0).sign().to(trimmed.dtype)
    agreeing = (trimmed.sign() == elected) & (elected != 0)
    total = torch.where(agreeing, trimmed, 0).double().sum(dim=0)
    return (total / agreeing.sum(dim=0).clamp(min=1)).to(trimmed.dtype)


def _bits(part: Tensor) -> Tensor:
    if part.dtype != torch.float32:
        raise ValueError(f"task vectors: got {part.dtype}, expected torch.float32")
    return part.abs().contiguous().view(torch.int32).long()


def _counted(halves: Tensor) -> Tensor:
    return torch.bincount(halves, minlength=1 << _HALF)


def _place(counts: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """By task, the bin that holds the `left`-th largest, and how many of that bin belong to the `left` largest."""
    at_least = counts.flip(1).cumsum(1).flip(1)
    bin_ = (at_least >= left[:, None]).sum(dim=1) - 1
    here = bin_[:, None]
    return bin_, left - (at_least - counts).gather(1, here)[:, 0]
