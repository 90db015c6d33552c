"""The innermost loops over coordinates, compiled by numba where it is installed (the extra `fast`).

Each gives the same bits as the torch operations that its caller falls back to: no fused or reordered arithmetic.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

FROM_DIM = 1 << 17
"""Shorter vectors are not worth the seconds that compiling takes."""
MAX_FOLDED = 255
"""Terms folded at once: at most 2^9, so that sums of 44-bit digits are exact in float64, and votes fit a byte."""


def pays(dim: int, *tensors: Tensor) -> bool:
    """Whether to use what is here: numba is installed, the vector is long, and lies in ordinary memory in one piece."""
    here = all(t.is_cpu and t.is_contiguous() and t.dtype == tensors[0].dtype for t in tensors)
    return here and dim >= FROM_DIM and importlib.util.find_spec("numba") is not None


def fold(
    terms: Sequence[tuple[Tensor, float, Tensor | None]],
    bins: Tensor, high: Tensor, low: Tensor, signs: Tensor | None,
) -> None:  # fmt: skip
    """Fold (values, weight, mask) into the digits of an exact sum, and their signs into counts (`exact_sum`)."""
    state = [*(part.numpy() for part in (bins, high, low)), None if signs is None else signs.numpy()]
    for first in range(0, len(terms), MAX_FOLDED):
        _kernels().fold(*_arrays(terms[first : first + MAX_FOLDED]), *state)


def means(
    terms: Sequence[Sequence[tuple[Tensor, float, Tensor | None]]], samples: Sequence[int], levels: Sequence[Tensor],
    votes: Sequence[Tensor], out: Sequence[Tensor],
) -> Callable[[slice], None]:  # fmt: skip
    """Eq. 3 and 4 by task, a block at a time: what `fold`, `value` and `agreement` give, no digits kept.

    The terms are masked, of one type, and at most `MAX_FOLDED` a task.
    """
    flat = [term for of_task in terms for term in of_task]
    values, masks, weights, kind = _arrays(flat)
    firsts = np.cumsum([0, *map(len, terms)])
    arrays = (
        values, masks, weights, firsts, kind, np.array(samples, np.float64), _table(levels),
        _addresses(votes), _addresses(out), out[0][:0].numpy(),
    )  # fmt: skip

    def fill(at: slice, _alive: object = (flat, votes, out)) -> None:
        _kernels().means(*arrays, at.start, at.stop)

    return fill


def value(bins: Tensor, high: Tensor, low: Tensor, divisor: float, out: Tensor) -> None:
    """What digits stand for, over `divisor`, float64."""
    _kernels().value(bins.numpy(), high.numpy(), low.numpy(), float(divisor), out.numpy())


def agreement(signs: Tensor, levels: Tensor, values: Tensor, votes: Tensor, means: Tensor) -> None:
    """Eq. 3 and the mask of Eq. 4: from sums of signs and of float64 terms to votes and task means."""
    _kernels().agreement(signs.numpy(), levels.numpy(), values.numpy(), votes.numpy(), means.numpy())


def borrow(
    rows: Sequence[Tensor], shares: Mapping[int, tuple[float, Sequence[tuple[int, float]]]],
    masks: Sequence[Tensor], levels: Sequence[Tensor] | None, out: Sequence[Tensor],
) -> Callable[[slice], None]:  # fmt: skip
    """Eq. 6 and 7, a block at a time: keep · own + mask ⊙ Σ share · other, by task.

    Masks of one type, as they are, or as votes with the level of each.
    """
    others = [pair for _, borrowed in shares.values() for pair in borrowed]
    arrays = (
        _addresses(rows), rows[0][:0].numpy(), np.array(list(shares)), np.array([own for own, _ in shares.values()]),
        np.cumsum([0, *(len(borrowed) for _, borrowed in shares.values())]),
        np.array([t for t, _ in others]), np.array([share for _, share in others]),
        _addresses(masks), masks[0][:0].numpy(), None if levels is None else _table(levels), _addresses(out),
    )  # fmt: skip

    def fill(at: slice, _alive: object = (rows, masks, out)) -> None:
        _kernels().borrow(*arrays, at.start, at.stop)

    return fill


def agreeing(rows: Sequence[Tensor], at: slice) -> Tensor:
    """Σ sgn · sgn of all pairs of rows over a block, int64 [T, T]."""
    total = np.zeros((len(rows), len(rows)), np.int64)
    _kernels().agreeing(_addresses(rows), rows[0][:0].numpy(), at.start, at.stop, total)
    return torch.from_numpy(total + np.tril(total, -1).T)


def unify(vectors: Tensor, vector: Tensor, masks: Tensor, at: slice) -> Tensor:
    """Eq. 2 over a block of float [k, d]; which of its columns have an elected sign within rounding of 0, or none."""
    doubtful = torch.empty(at.stop - at.start, dtype=torch.bool)
    arrays = (part.numpy() for part in (vectors, vector, masks, doubtful))
    return doubtful if _kernels().unify(*arrays, at.start, at.stop) else doubtful[:0]


def _arrays(terms: Sequence[tuple[Tensor, float, Tensor | None]]) -> tuple[Any, ...]:
    """Addresses of values and of masks, weights, and an empty array of the values' type."""
    masks = [mask for _, _, mask in terms if mask is not None]
    if len(masks) not in (0, len(terms)):
        raise ValueError(f"{len(masks)} masks of {len(terms)} terms: expected all or none")
    weights = np.array([weight for _, weight, _ in terms], np.float64)
    values = [values for values, _, _ in terms]
    return _addresses(values), _addresses(masks) if masks else None, weights, values[0][:0].numpy()


def _table(levels: Sequence[Tensor]) -> Any:
    """As rows of one array."""
    table = np.zeros((len(levels), max(map(len, levels))))
    for row, level in zip(table, levels, strict=True):
        row[: len(level)] = level.numpy()
    return table


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Where the numbers lie, which are of one type and as many, in one piece each."""
    if any((t.dtype, t.shape) != (tensors[0].dtype, tensors[0].shape) or not t.is_contiguous() for t in tensors):
        raise ValueError(f"tensors of {[(t.dtype, list(t.shape)) for t in tensors]}: expected one type and shape")
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    return importlib.import_module("matu.vectors.kernels")
