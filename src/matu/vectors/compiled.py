"""The innermost loops over coordinates, compiled by numba where it is installed (`pip install 'matu[fast]'`).

Each gives the same bits as the torch operations that its caller falls back to: no fused or reordered arithmetic.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

FROM_DIM = 1 << 17
"""Shorter vectors are not worth the seconds that compiling takes."""
GROUP = 16
"""Terms folded at once: at most 2^9, so that sums of 44-bit digits are exact in float64."""
_TILE = 4096
_LOOK = 16
_SHIFT = 1023 - 33  # as in `exact_sum`: exponents from 33 on, 44 a bin


def pays(dim: int, *tensors: Tensor) -> bool:
    """Whether to use what is here: numba is installed, the vector is long, and it lies in ordinary memory."""
    return dim >= FROM_DIM and importlib.util.find_spec("numba") is not None and all(t.is_cpu for t in tensors)


def fold(
    terms: Sequence[tuple[Tensor, float, Tensor | None]],
    bins: Tensor, high: Tensor, low: Tensor, signs: Tensor | None,
) -> None:  # fmt: skip
    """Fold (values, weight, mask) into the digits of an exact sum, and their signs into counts (`exact_sum`)."""
    state = [*(part.numpy() for part in (bins, high, low)), None if signs is None else signs.numpy()]
    kinds: dict[tuple[Any, bool], list[tuple[Tensor, float, Tensor | None]]] = {}
    for term in terms:
        kinds.setdefault((term[0].dtype, term[2] is None), []).append(term)
    for (_, whole), alike in kinds.items():
        for first in range(0, len(alike), GROUP):
            group = alike[first : first + GROUP]
            padded = [*group, *[group[0]] * (GROUP - len(group))]
            _kernels()["fold"](
                tuple(values.numpy() for values, _, _ in padded),
                None if whole else tuple(mask.numpy() for _, _, mask in padded if mask is not None),
                np.array([weight for _, weight, _ in padded]), len(group), *state,
            )  # fmt: skip


def value(bins: Tensor, high: Tensor, low: Tensor, divisor: float, out: Tensor) -> None:
    """What digits stand for, over `divisor`, float64."""
    _kernels()["value"](bins.numpy(), high.numpy(), low.numpy(), float(divisor), out.numpy())


def agreement(signs: Tensor, holders: int, threshold: float, values: Tensor, masks: Tensor, means: Tensor) -> None:
    """Eq. 3 and the mask of Eq. 4: from counts of signs and float64 sums to task masks and task means."""
    _kernels()["agreement"](signs.numpy(), float(holders), threshold, values.numpy(), masks.numpy(), means.numpy())


def unify(vectors: Tensor, vector: Tensor, masks: Tensor, doubtful: Tensor) -> bool:
    """Eq. 2 over columns of float [k, b]; whether some elected sign is within rounding of 0, and which (bool [b])."""
    return bool(_kernels()["unify"](vectors.numpy(), vector.numpy(), masks.numpy(), doubtful.numpy()))


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Callable[..., Any]]:
    import numba

    compile_ = numba.njit(nogil=True, error_model="numpy")
    return {kernel.__name__.strip("_"): compile_(kernel) for kernel in (_fold, _value, _agreement, _unify)}


def _fold(
    values: Any, masks: Any, weights: Any, count: int, bins: Any, high: Any, low: Any, signs: Any
) -> None:  # fmt: skip
    # Nearly all coordinates of a tile end in one bin, which a few of its terms tell: all are folded as if in that bin,
    # and those of another are folded again. Loops without branches are what the compiler vectorises.
    sums, one = np.empty((3, _TILE)), np.empty(1)  # one array, so that few overlaps have to be ruled out for that
    largest, whole, rest = sums[0], sums[1], sums[2]
    largest_bits, one_bits = largest.view(np.int64), one.view(np.int64)
    found = np.empty(_TILE, np.int64)
    for start in range(0, bins.shape[0], _TILE):
        n = min(_TILE, bins.shape[0] - start)
        b, up, down = bins[start : start + n], high[start : start + n], low[start : start + n]
        for j in range(n):
            largest[j] = 0.0
            whole[j] = 0.0
            rest[j] = 0.0
        one[0] = 0.0
        for i in range(count):
            v, w = values[i], weights[i]
            for j in range(start, start + min(n, _LOOK)):
                one[0] = max(one[0], abs(np.float64(v[j]) * w))
        tried = max(((((one_bits[0] >> 52) & 0x7FF) - 33) * 745) >> 15, 0)
        one_bits[0] = (_SHIFT - 44 * tried + 1023) << 52
        inverse = one[0]
        for i in range(count):
            v, w = values[i][start : start + n], weights[i]
            if masks is None:
                for j in range(n):
                    term = np.float64(v[j]) * w
                    largest[j] = max(largest[j], abs(term))
                    digit = np.trunc(term * inverse)
                    whole[j] += digit
                    rest[j] += np.trunc((term * inverse - digit) * 17592186044416.0)
            else:
                m = masks[i][start : start + n]
                for j in range(n):
                    term = (
                        np.float64(v[j]) * np.float64(m[j]) * w
                    )  # a branch would keep the processor from reading ahead
                    largest[j] = max(largest[j], abs(term))
                    digit = np.trunc(term * inverse)
                    whole[j] += digit
                    rest[j] += np.trunc((term * inverse - digit) * 17592186044416.0)
            if signs is not None:
                c = signs[start : start + n]
                if masks is None:
                    for j in range(n):
                        c[j] += np.int32(v[j] > 0) - np.int32(v[j] < 0)
                else:
                    m = masks[i][start : start + n]
                    for j in range(n):
                        c[j] += (np.int32(v[j] > 0) - np.int32(v[j] < 0)) * np.int32(m[j])
        others = 0
        for j in range(n):
            bin_ = max(((((largest_bits[j] >> 52) & 0x7FF) - 33) * 745) >> 15, np.int64(b[j]))
            found[j] = bin_
            others += (bin_ != tried) & (largest_bits[j] != 0)
        if others:
            for j in range(n):
                if found[j] != tried and largest[j] != 0:
                    one_bits[0] = (_SHIFT - 44 * found[j] + 1023) << 52
                    whole[j] = 0.0
                    rest[j] = 0.0
                    for i in range(count):
                        if masks is None or masks[i][start + j]:
                            scaled = np.float64(values[i][start + j]) * weights[i] * one[0]
                            digit = np.trunc(scaled)
                            whole[j] += digit
                            rest[j] += np.trunc((scaled - digit) * 17592186044416.0)
        for j in range(n):
            rise = found[j] - b[j]
            down[j] = (down[j] if rise == 0 else (up[j] if rise == 1 else 0)) + np.int64(rest[j])
            up[j] = (up[j] if rise == 0 else 0) + np.int64(whole[j])
            b[j] = found[j]


def _value(bins: Any, high: Any, low: Any, divisor: float, out: Any) -> None:
    first, second = np.empty(_TILE), np.empty(_TILE)
    first_bits, second_bits = first.view(np.int64), second.view(np.int64)
    for start in range(0, bins.shape[0], _TILE):
        n = min(_TILE, bins.shape[0] - start)
        b, up, down, o = bins[start:][:n], high[start:][:n], low[start:][:n], out[start:][:n]
        for j in range(n):
            exponent = 44 * (np.int64(b[j]) - 1) - _SHIFT
            half = exponent >> 1
            first_bits[j] = (half + 1023) << 52
            second_bits[j] = (exponent - half + 1023) << 52
        for j in range(n):
            carry = down[j] >> 44
            digits = (np.float64(up[j] + carry) * 17592186044416.0 + np.float64(down[j] - (carry << 44))) / divisor
            o[j] = digits * first[j] * second[j]


def _agreement(signs: Any, holders: float, threshold: float, values: Any, masks: Any, means: Any) -> None:
    for j in range(signs.shape[0]):
        share = abs(np.float64(signs[j])) / holders
        mask = 1.0 if share >= threshold else share
        masks[j] = mask
        means[j] = values[j] * mask


def _unify(vectors: Any, vector: Any, masks: Any, doubtful: Any) -> bool:
    count, dim = vectors.shape
    total, mass = np.empty(_TILE), np.empty(_TILE)
    elected, largest = np.empty(_TILE, vectors.dtype), np.empty(_TILE, vectors.dtype)
    doubts = False
    for start in range(0, dim, _TILE):
        n = min(_TILE, dim - start)
        for j in range(n):
            total[j] = 0.0
            mass[j] = 0.0
            largest[j] = 0
        for t in range(count):
            v = vectors[t, start : start + n]
            for j in range(n):
                total[j] += np.float64(v[j])
                mass[j] += abs(np.float64(v[j]))
        found = 0
        for j in range(n):
            elected[j] = (total[j] > 0) - (total[j] < 0)
            sure = count < 3 or mass[j] == 0 or abs(total[j]) > count * 2.220446049250313e-16 * mass[j]
            doubtful[start + j] = not sure
            found += not sure
        doubts |= found > 0
        for t in range(count):
            v, m = vectors[t, start : start + n], masks[t, start : start + n]
            for j in range(n):
                agrees = v[j] * elected[j] > 0
                m[j] = agrees
                largest[j] = max(largest[j], abs(v[j])) if agrees else largest[j]
        o = vector[start : start + n]
        for j in range(n):
            o[j] = elected[j] * largest[j]
    return doubts
