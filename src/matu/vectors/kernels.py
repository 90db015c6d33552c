"""The loops of `compiled`, which numba compiles when they are first called: arrays in, arrays written to.

A mask multiplies: a branch becomes a masked load, which the processor does not read ahead for.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_TILE = 4096
_LOOK = 16
_DIGIT = 2.0**44
_SHIFT = 1023 - 33  # as in `exact_sum`: exponents from 33 on, 44 a bin

compiled_loop = numba.njit(nogil=True, error_model="numpy")


@compiled_loop
def _sign(x: Any) -> Any:
    return np.int32(x > 0) - np.int32(x < 0)


@compiled_loop
def tile(
    values: Any, masks: Any, weights: Any, count: int, start: int, n: int, sums: Any, signs: Any, bins: Any
) -> None:  # fmt: skip
    # Nearly all coordinates of a tile end in one bin, which a few of its terms tell: all are folded as if in that bin,
    # and those of another are folded again. Loops without branches are what the compiler vectorises.
    one = np.empty(1)
    largest, whole, rest = sums[0, :n], sums[1, :n], sums[2, :n]  # one array: few overlaps have to be ruled out
    largest_bits, one_bits = largest.view(np.int64), one.view(np.int64)
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
    for i in range(0, count, 2):  # two at once: sums are loaded and stored half as often
        two = i + 1 < count
        i2 = i + 1 if two else i
        v, w = values[i][start : start + n], weights[i]
        v2, w2 = values[i2][start : start + n], weights[i2] if two else 0.0
        if masks is None:
            for j in range(n):
                term, term2 = np.float64(v[j]) * w, np.float64(v2[j]) * w2
                largest[j] = max(largest[j], max(abs(term), abs(term2)))
                digit, digit2 = np.trunc(term * inverse), np.trunc(term2 * inverse)
                whole[j] += digit + digit2
                below, below2 = (term * inverse - digit) * _DIGIT, (term2 * inverse - digit2) * _DIGIT
                rest[j] += np.trunc(below) + np.trunc(below2)
        else:
            m, m2 = masks[i][start : start + n], masks[i2][start : start + n]
            for j in range(n):
                term, term2 = np.float64(v[j]) * np.float64(m[j]) * w, np.float64(v2[j]) * np.float64(m2[j]) * w2
                largest[j] = max(largest[j], max(abs(term), abs(term2)))
                digit, digit2 = np.trunc(term * inverse), np.trunc(term2 * inverse)
                whole[j] += digit + digit2
                below, below2 = (term * inverse - digit) * _DIGIT, (term2 * inverse - digit2) * _DIGIT
                rest[j] += np.trunc(below) + np.trunc(below2)
        if signs is not None and masks is None:
            for j in range(n):
                signs[j] += _sign(v[j]) + _sign(v2[j]) * np.int32(two)
        elif signs is not None:
            m, m2 = masks[i][start : start + n], masks[i2][start : start + n]
            for j in range(n):
                signs[j] += _sign(v[j]) * np.int32(m[j]) + _sign(v2[j]) * (np.int32(m2[j]) * np.int32(two))
    others = 0
    for j in range(n):
        bin_ = max(((((largest_bits[j] >> 52) & 0x7FF) - 33) * 745) >> 15, np.int64(bins[j]))
        bins[j] = bin_
        others += (bin_ != tried) & (largest_bits[j] != 0)
    if others:
        for j in range(n):
            if bins[j] != tried and largest[j] != 0:
                one_bits[0] = (_SHIFT - 44 * np.int64(bins[j]) + 1023) << 52
                whole[j] = 0.0
                rest[j] = 0.0
                for i in range(count):
                    if masks is None or masks[i][start + j]:
                        scaled = np.float64(values[i][start + j]) * weights[i] * one[0]
                        digit = np.trunc(scaled)
                        whole[j] += digit
                        rest[j] += np.trunc((scaled - digit) * _DIGIT)


@compiled_loop
def fold(
    values: Any, masks: Any, weights: Any, count: int, bins: Any, high: Any, low: Any, signs: Any
) -> None:  # fmt: skip
    sums, found = np.empty((3, _TILE)), np.empty(_TILE, np.int8)
    for start in range(0, bins.shape[0], _TILE):
        n = min(_TILE, bins.shape[0] - start)
        b, up, down = bins[start : start + n], high[start : start + n], low[start : start + n]
        for j in range(n):
            found[j] = b[j]
        votes = None if signs is None else signs[start : start + n]
        tile(values, masks, weights, count, start, n, sums, votes, found)
        whole, rest = sums[1], sums[2]
        for j in range(n):
            rise = np.int64(found[j]) - b[j]
            down[j] = (down[j] if rise == 0 else (up[j] if rise == 1 else 0)) + np.int64(rest[j])
            up[j] = (up[j] if rise == 0 else 0) + np.int64(whole[j])
            b[j] = found[j]


@compiled_loop
def means(
    values: Any, masks: Any, weights: Any, count: int, samples: float, holders: float, threshold: float,
    votes: Any, means: Any, first: int, last: int,
) -> None:  # fmt: skip
    sums, found, signs = np.empty((3, _TILE)), np.empty(_TILE, np.int8), np.empty(_TILE, np.int32)
    digits, total = np.empty((2, _TILE), np.int64), np.empty(_TILE)
    for start in range(first, last, _TILE):
        n = min(_TILE, last - start)
        for j in range(n):
            found[j] = 0
            signs[j] = 0
        tile(values, masks, weights, count, start, n, sums, signs, found)
        for j in range(n):
            digits[0, j] = np.int64(sums[1, j])
            digits[1, j] = np.int64(sums[2, j])
        value(found[:n], digits[0, :n], digits[1, :n], samples, total[:n])
        agreement(signs[:n], holders, threshold, total[:n], votes[start : start + n], means[start : start + n])


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
def agreement(signs: Any, holders: float, threshold: float, values: Any, votes: Any, means: Any) -> None:
    for j in range(signs.shape[0]):
        votes[j] = abs(signs[j])
        share = abs(np.float64(signs[j])) / holders
        means[j] = values[j] * (1.0 if share >= threshold else share)


@compiled_loop
def borrow(own: Any, others: Any, shares: Any, count: int, keep: float, mask: Any, levels: Any, out: Any) -> None:
    borrowed = np.empty(_TILE)
    for start in range(0, own.shape[0], _TILE):
        n = min(_TILE, own.shape[0] - start)
        mine, kept, result = own[start : start + n], mask[start : start + n], out[start : start + n]
        for j in range(n):
            borrowed[j] = 0.0
        for i in range(count):
            row, share = others[i][start : start + n], shares[i]
            for j in range(n):
                borrowed[j] += np.float64(row[j]) * share
        for j in range(n):
            level = np.float64(kept[j]) if levels is None else levels[kept[j]]
            result[j] = borrowed[j] * level + np.float64(mine[j]) * keep


@compiled_loop
def unify(vectors: Any, vector: Any, masks: Any, doubtful: Any) -> bool:
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
