"""The loops of `compiled`, which numba compiles when they are first called: arrays in, arrays written to.

Where there are as many arrays as there are clients or tasks, they come as addresses. A mask multiplies: a branch
becomes a masked load, which the processor does not read ahead for.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

_TILE = 2048
_LOOK = 16
_DIGIT, _BELOW = 2.0**44, 2.0**-44
_SHIFT = 1023 - 33  # as in `exact_sum`: exponents from 33 on, 44 a bin

compiled_loop = numba.njit(nogil=True, error_model="numpy")


def _to_pointer(_: Any, address: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


def _population(_: Any, word: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), code


_pointer: Any = intrinsic(_to_pointer)
_ones: Any = intrinsic(_population)
"""Bits that are set in a word."""


@compiled_loop
def part(address: Any, kind: Any, start: int, n: int) -> Any:
    """Some numbers of an array of the type that `kind` has."""
    return numba.carray(_pointer(address), start + n, kind.dtype)[start:]


@compiled_loop
def _bin(number: float) -> Any:
    bits = np.empty(1)
    bits[0] = number
    return max(((((bits.view(np.int64)[0] >> 52) & 0x7FF) - 33) * 745) >> 15, 0)


@compiled_loop
def _inverse_grid(bin_: Any) -> Any:
    bits = np.empty(1, np.int64)
    bits[0] = (_SHIFT - 44 * bin_ + 1023) << 52
    return bits.view(np.float64)[0]


@compiled_loop
def _look(values: Any, weights: Any, kind: Any, start: int, n: int, bins: Any) -> Any:
    """The bin that most coordinates of a tile end in, as a few of them tell."""
    found: Any = 0
    largest = 0.0
    for j in range(0, n, max(n // _LOOK, 1)):
        found = max(found, np.int64(bins[j]))
        for i in range(values.shape[0]):
            largest = max(largest, abs(np.float64(part(values[i], kind, start + j, 1)[0]) * weights[i]))
    return max(found, _bin(largest))


@compiled_loop
def tile(
    values: Any, masks: Any, weights: Any, kind: Any, start: int, n: int, sums: Any, signs: Any, largest: Any, bins: Any
) -> Any:  # fmt: skip
    """Fold `n` coordinates of all terms from `start` on, as if all ended in the bin that a sample suggests.

    That bin is returned (0: none is believed). Coordinates of another bin are folded again one by one, by `_alone`.
    Writes sums[0] and sums[1], the high and low digits, and bins; adds to signs. Afterwards largest[j] != 0 says that
    coordinate j is in bins[j], and not in the bin returned.
    """
    # Loops without branches, over few arrays, are what the compiler vectorises; two terms at once: sums are loaded and
    # stored half as often.
    count = values.shape[0]
    tried = _look(values, weights, kind, start, n, bins)
    inverse = _inverse_grid(tried)
    heaviest = 0.0
    for i in range(count):
        heaviest = max(heaviest, abs(weights[i]))
        if weights[i] != 0 and not 1e-300 < abs(weights[i]) * inverse < 1e300:
            tried = 0
    if tried == 0:  # products with a weight in grid units might be rounded otherwise: none is believed
        inverse = 0.0
    kept, mask = np.empty((2, _TILE), kind.dtype), np.empty(0, np.bool_)
    whole, rest, one, two = sums[0, :n], sums[1, :n], kept[0, :n], kept[1, :n]
    for j in range(n):
        whole[j] = 0.0
        rest[j] = 0.0
        largest[j] = 0
    for i in range(0, count, 2):
        for both in range(2):
            into = kept[both, :n]
            if i + both == count:
                for j in range(n):
                    into[j] = 0
            elif masks is None:
                v = part(values[i + both], kind, start, n)
                for j in range(n):
                    into[j] = v[j]
            else:
                v, m = part(values[i + both], kind, start, n), part(masks[i + both], mask, start, n)
                for j in range(n):
                    into[j] = v[j] * kind.dtype.type(m[j])
        w, w2 = weights[i] * inverse, weights[min(i + 1, count - 1)] * inverse
        for j in range(n):
            largest[j] = max(largest[j], max(abs(one[j]), abs(two[j])))
        if signs is not None:
            for j in range(n):
                signs[j] += np.int32(one[j] > 0) - np.int32(one[j] < 0) + np.int32(two[j] > 0) - np.int32(two[j] < 0)
        for j in range(n):
            scaled, scaled2 = np.float64(one[j]) * w, np.float64(two[j]) * w2
            digit, digit2 = np.trunc(scaled), np.trunc(scaled2)
            whole[j] += digit + digit2
            rest[j] += np.trunc((scaled - digit) * _DIGIT) + np.trunc((scaled2 - digit2) * _DIGIT)
    others, reach = 0, heaviest * inverse
    for j in range(n):
        there = (whole[j] != 0) & (bins[j] <= tried) | (bins[j] == tried) & (tried > 0)
        if there & (np.float64(largest[j]) * reach < 0.5 * _DIGIT):
            bins[j] = tried
            largest[j] = 0
        others += largest[j] != 0
    for j in range(n if others else 0):
        if largest[j] != 0:
            _alone(values, masks, weights, kind, start + j, sums[:, j], bins[j : j + 1])
    return tried


@compiled_loop
def _alone(values: Any, masks: Any, weights: Any, kind: Any, at: int, sums: Any, bins: Any) -> None:
    """One coordinate, in the bin that it belongs to."""
    largest, mask = 0.0, np.empty(0, np.bool_)
    for _again in range(2):
        inverse = _inverse_grid(np.int64(bins[0]))
        sums[:] = 0.0
        for i in range(values.shape[0]):
            if masks is None or part(masks[i], mask, at, 1)[0]:
                term = np.float64(part(values[i], kind, at, 1)[0]) * weights[i]
                largest = max(largest, abs(term))
                digit = np.trunc(term * inverse)
                sums[0] += digit
                sums[1] += np.trunc((term * inverse - digit) * _DIGIT)
        bins[0] = max(_bin(largest), np.int64(bins[0]))


@compiled_loop
def fold(
    values: Any, masks: Any, weights: Any, kind: Any, bins: Any, high: Any, low: Any, signs: Any
) -> None:  # fmt: skip
    sums, found, largest = np.empty((2, _TILE)), np.empty(_TILE, np.int8), np.empty(_TILE, kind.dtype)
    for start in range(0, bins.shape[0], _TILE):
        n = min(_TILE, bins.shape[0] - start)
        b, up, down = bins[start : start + n], high[start : start + n], low[start : start + n]
        for j in range(n):
            found[j] = b[j]
        votes = None if signs is None else signs[start : start + n]
        tile(values, masks, weights, kind, start, n, sums, votes, largest, found)
        whole, rest = sums[0], sums[1]
        for j in range(n):
            rise = np.int64(found[j]) - b[j]
            down[j] = (down[j] if rise == 0 else (up[j] if rise == 1 else 0)) + np.int64(rest[j])
            up[j] = (up[j] if rise == 0 else 0) + np.int64(whole[j])
            b[j] = found[j]


@compiled_loop
def means(
    values: Any, masks: Any, weights: Any, firsts: Any, kind: Any, samples: Any, levels: Any,
    votes: Any, means: Any, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    sums, found, signs = np.empty((2, _TILE)), np.empty(_TILE, np.int8), np.empty(_TILE, np.int32)
    largest, total, counts = np.empty(_TILE, kind.dtype), np.empty(_TILE), np.empty(0, np.uint8)
    for start in range(first, last, _TILE):  # task by task in a tile: what tasks share is read once
        n = min(_TILE, last - start)
        for t in range(samples.shape[0]):
            terms = slice(firsts[t], firsts[t + 1])
            for j in range(n):
                found[j] = 0
                signs[j] = 0
            tried = tile(values[terms], masks[terms], weights[terms], kind, start, n, sums, signs, largest, found)
            _values(tried, sums[0, :n], sums[1, :n], samples[t], total[:n])
            for j in range(n):
                if largest[j] != 0:
                    _values(np.int64(found[j]), sums[0, j : j + 1], sums[1, j : j + 1], samples[t], total[j : j + 1])
            agreement(signs[:n], levels[t], total[:n], part(votes[t], counts, start, n), part(means[t], out, start, n))


@compiled_loop
def _values(bin_: Any, whole: Any, rest: Any, divisor: float, out: Any) -> None:
    """As `value`, of digits in one bin that are whole numbers below 2^53."""
    scales = np.empty(2)
    exponent, bits = 44 * (bin_ - 1) - _SHIFT, scales.view(np.int64)
    bits[0], bits[1] = ((exponent >> 1) + 1023) << 52, (exponent - (exponent >> 1) + 1023) << 52
    first, second = scales[0], scales[1]
    for j in range(out.shape[0]):
        carry = np.floor(rest[j] * _BELOW)
        out[j] = ((whole[j] + carry) * _DIGIT + (rest[j] - carry * _DIGIT)) / divisor * first * second


@compiled_loop
def value(bins: Any, high: Any, low: Any, divisor: float, out: Any) -> None:
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
            digits = (np.float64(up[j] + carry) * _DIGIT + np.float64(down[j] - (carry << 44))) / divisor
            o[j] = digits * first[j] * second[j]


@compiled_loop
def agreement(signs: Any, levels: Any, values: Any, votes: Any, means: Any) -> None:
    for j in range(signs.shape[0]):
        count = np.uint32(abs(signs[j]))
        votes[j] = count
        means[j] = values[j] * levels[count]


@compiled_loop
def borrow(
    rows: Any, kind: Any, wanted: Any, keep: Any, firsts: Any, others: Any, shares: Any,
    masks: Any, mask_kind: Any, levels: Any, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    borrowed = np.empty(_TILE)
    for start in range(first, last, _TILE):  # task by task in a tile: rows are read once
        n = min(_TILE, last - start)
        for t in range(wanted.shape[0]):
            for j in range(n):
                borrowed[j] = 0.0
            for i in range(firsts[t], firsts[t + 1]):
                row, share = part(rows[others[i]], kind, start, n), shares[i]
                for j in range(n):
                    borrowed[j] += np.float64(row[j]) * share
            mine, mask = part(rows[wanted[t]], kind, start, n), part(masks[t], mask_kind, start, n)
            result, own = part(out[t], kind, start, n), keep[t]
            if levels is None:
                for j in range(n):
                    result[j] = borrowed[j] * np.float64(mask[j]) + np.float64(mine[j]) * own
            else:
                table = levels[t]
                for j in range(n):
                    result[j] = borrowed[j] * table[np.uint32(mask[j])] + np.float64(mine[j]) * own


@compiled_loop
def agreeing(rows: Any, kind: Any, first: int, last: int, total: Any) -> None:
    count, size = rows.shape[0], _TILE // 32
    there, below = np.empty((count, size), np.uint32), np.empty((count, size), np.uint32)
    for start in range(first, last, _TILE):
        n = min(_TILE, last - start)
        for t in range(count):
            _pack(part(rows[t], kind, start, n), there[t], below[t])
        for t in range(count):
            for other in range(t + 1):
                both = differ = np.uint32(0)
                for w in range(size):
                    common = there[t, w] & there[other, w]
                    both += _ones(common)
                    differ += _ones(common & (below[t, w] ^ below[other, w]))
                total[t, other] += np.int64(both) - 2 * np.int64(differ)


@compiled_loop
def _pack(row: Any, there: Any, below: Any) -> None:
    """A bit for each number that is not zero, and for each below zero; in the same places for every row."""
    size = there.shape[0]
    for w in range(size):
        there[w] = 0
        below[w] = 0
    for bit in range(32):
        one, numbers = np.uint32(1 << bit), row[bit * size : (bit + 1) * size]
        for w in range(numbers.shape[0]):
            there[w] |= one * np.uint32(numbers[w] != 0)
            below[w] |= one * np.uint32(numbers[w] < 0)


@compiled_loop
def unify(vectors: Any, vector: Any, masks: Any, doubtful: Any, first: int, last: int) -> bool:
    count = vectors.shape[0]
    total, mass = np.empty(_TILE), np.empty(_TILE)
    elected, largest = np.empty(_TILE, vectors.dtype), np.empty(_TILE, vectors.dtype)
    doubts = False
    for start in range(first, last, _TILE):
        n = min(_TILE, last - start)
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
            doubtful[start - first + j] = not sure
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
