"""Codecs of floating-point parts: exact, bfloat16, or quantised in blocks, perhaps as a change.

A quantised number is x ≈ step · q with a whole q from -127 to 127 and one step for each block of 256. The step is
that of the entropy-coded uniform quantiser: a fixed share of the block's root mean square, 2^(2.047 - b) for b
nominal bits, where 2.047 = log2 sqrt(2 π e) makes b the entropy of Gaussian numbers. Steps are 2^(-i/8) of the
part's largest; q travels through Zstandard.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from matu.errors import DataError
from matu.wire.streams import Reader, read_bytes, write_bytes

BLOCK = 256
LARGEST = 127
NEAR = 7
"""Quantised numbers up to this fit in half a byte; -8 stands for one further away, which follows in a byte."""
_FEW = 0.01
"""Share of numbers further away up to which halves are smaller than bytes: symbols of a byte are then two numbers,
and lose nothing where one alone would be worth less than a bit."""
_ZERO = 255
"""The step of a block of zeros."""
_EIGHTHS = (0x3F800000, 0x3F6AC0C7, 0x3F5744FD, 0x3F45672A, 0x3F3504F3, 0x3F25FED7, 0x3F1837F0, 0x3F0B95C2)
"""2^(-i/8) for i from 0 to 7, the bits of the nearest float32: the same on any machine."""
_STEPS = np.append(
    np.ldexp(np.array(_EIGHTHS, np.uint32).view(np.float32)[np.arange(_ZERO) % 8], -(np.arange(_ZERO) // 8)), 0
).astype(np.float32)
"""float32 [256]: the steps, relative to the largest."""
_TINY = 2.0**-90
"""A part whose steps would all be smaller (its numbers below 2^-83) is sent as zeros: its steps would leave float32."""
_NOTHING = np.float32(2.0**-100)
"""Sums below this read as 0: a machine that flushes subnormal numbers must find the same zeros."""
_GAUSSIAN = math.log2(math.sqrt(2 * math.pi * math.e))
_HEAD = struct.Struct("<BBff")


NAMES = ("float32", "bfloat16", "8bit", "7bit", "6bit", "5bit", "4bit", "3bit", "2bit", "ternary")


class Code(IntEnum):
    """How a floating-point part travels."""

    FLOAT32 = 0
    BFLOAT16 = 1
    QUANTISED = 2
    CHANGE = 3
    """Quantised difference from a multiple of what both ends hold."""


@dataclass(frozen=True)
class Numbers:
    """How to send floating-point parts.

    Attributes
    ----------
    name
        "float32", "bfloat16", "8bit" to "2bit", or "ternary": -1, 0, 1 times one scale, for the
        half of largest magnitude (after T-Switch).
    change
        Quantise the change against what both ends hold, where there is such a thing.
    """

    name: str
    change: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"codec '{self.name}': expected one of {', '.join(NAMES)}")


EXACT = Numbers("float32")


def write_numbers(
    values: np.ndarray, codec: Numbers, held: np.ndarray | None, draw: np.random.Generator | None
) -> tuple[Code, bytes | memoryview]:
    """float32 [n] as bytes; without a copy where they are what lies in memory.

    Parameters
    ----------
    values, codec
        What to send, and how.
    held
        float32 [n] that the other end holds too, or None.
    draw
        Rounds up or down by chance, so that the mean is right; None: to the nearest.
    """
    if codec.name == "float32":
        return Code.FLOAT32, values.astype("<f4", copy=False).view(np.uint8).data
    if codec.name == "bfloat16":
        return Code.BFLOAT16, _to_bfloat16(values).tobytes()
    factor = 0.0
    if codec.change and held is not None:
        factor = _factor(values, held)
        change = values - np.float32(factor) * held
        factor, values = (factor, change) if np.isfinite(change).all() else (0.0, values)
    code = Code.CHANGE if codec.change and held is not None else Code.QUANTISED
    block = max(len(values), 1) if codec.name == "ternary" else BLOCK
    rows = np.pad(values, (0, -len(values) % block)).reshape(-1, block)
    largest, steps, q = (
        _ternary(rows) if codec.name == "ternary" else _quantise(rows, len(values), int(codec.name[0]), draw)
    )
    whole = q.reshape(-1)[: len(values)]
    far = (whole > NEAR) | (whole < -NEAR)
    pairs = bool(np.count_nonzero(far) <= _FEW * len(whole))
    head = _HEAD.pack(pairs, codec.name != "ternary", largest, factor) + write_bytes(steps.tobytes())
    if not pairs:
        return code, head + write_bytes(whole.tobytes())
    near = np.where(far, np.int8(-NEAR - 1), whole)
    return code, head + write_bytes(_pairs(near)) + write_bytes(whole[far].tobytes())


def read_numbers(data: memoryview, code: int, size: int, held: np.ndarray | None) -> np.ndarray:
    """The inverse of `write_numbers`: float32 [size], all finite; DataError for anything else."""
    reader = Reader(data)
    if code == Code.FLOAT32:
        values = np.frombuffer(reader.take(4 * size), "<f4").astype(np.float32)
    elif code == Code.BFLOAT16:
        values = (np.frombuffer(reader.take(2 * size), "<u2").astype(np.uint32) << 16).view(np.float32)
    elif code in (Code.QUANTISED, Code.CHANGE):
        values = _read_quantised(reader, size, held if code == Code.CHANGE else None, code)
    else:
        raise DataError(f"code {code} of numbers, expected 0 to {max(Code)}")
    reader.end()
    if not np.isfinite(values).all():
        raise DataError(f"an entry is {values[~np.isfinite(values)][0]}, expected finite numbers")
    return values


def _read_quantised(reader: Reader, size: int, held: np.ndarray | None, code: int) -> np.ndarray:
    if code == Code.CHANGE and held is None:
        raise DataError("a change, but nothing that it is counted from")
    pairs, blocks, largest, factor = reader.unpack(_HEAD)
    if pairs not in (0, 1) or blocks not in (0, 1):
        raise DataError(f"flags {pairs}, {blocks} of quantised numbers, expected 0 or 1")
    if not (math.isfinite(largest) and largest >= 0 and math.isfinite(factor)) or (held is None and factor):
        raise DataError(f"step {largest} and factor {factor} of quantised numbers")
    block = BLOCK if blocks else max(size, 1)
    count = -(-size // block)
    steps = np.frombuffer(read_bytes(reader, count), np.uint8)
    q = _unpair(reader, size) if pairs else np.frombuffer(read_bytes(reader, size), np.int8)
    scales = np.repeat(_STEPS[steps] * np.float32(largest), block)[:size]
    if (q == -LARGEST - 1).any():
        raise DataError("a quantised number is -128, expected -127 to 127")
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float32 is refused with its value
        values = q.astype(np.float32) * scales
        if held is not None:
            values += np.float32(factor) * held
            values[np.abs(values) < _NOTHING] = 0
    return values


def _quantise(
    rows: np.ndarray, size: int, bits: int, draw: np.random.Generator | None
) -> tuple[float, np.ndarray, np.ndarray]:
    """float32 [m, 256], zeros behind `size` numbers -> largest step, index below it by block, q int8 [m, 256]."""
    largest_entry = np.abs(rows).max(axis=1)
    counts = np.minimum(size - BLOCK * np.arange(len(rows)), BLOCK)
    mean_square = np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / counts
    wanted = np.maximum(np.sqrt(mean_square) * 2.0 ** (_GAUSSIAN - bits), largest_entry.astype(np.float64) / LARGEST)
    top = float(np.float32(wanted.max(initial=0.0) * (1 + 2.0**-20)))  # rounding must not make it smaller
    if top < _TINY:
        return 0.0, np.full(len(rows), _ZERO, np.uint8), np.zeros(rows.shape, np.int8)
    with np.errstate(divide="ignore"):
        index = np.floor(8 * np.log2(top / wanted) - 2.0**-10)
    index = np.where(wanted > 0, index.clip(0, _ZERO - 1), _ZERO).astype(np.uint8)
    steps = _STEPS[index] * np.float32(top)
    scaled = rows / np.where(steps > 0, steps, np.float32(1))[:, None]
    if draw is not None:
        scaled = np.floor(scaled + draw.random(scaled.shape, np.float32))
    return top, index, np.rint(scaled).clip(-LARGEST, LARGEST).astype(np.int8)


def _ternary(rows: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """float32 [1, n] -> scale, its index, and q: the half of largest magnitude keeps its sign."""
    size = np.abs(rows)
    active = (size >= np.median(size)) & (size > 0) if rows.size else size > 0
    scale = float(size[active].mean(dtype=np.float64)) if active.any() else 0.0
    if scale < _TINY:
        return 0.0, np.full(len(rows), _ZERO, np.uint8), np.zeros(rows.shape, np.int8)
    return scale, np.zeros(len(rows), np.uint8), (np.sign(rows) * active).astype(np.int8)


def _factor(values: np.ndarray, held: np.ndarray) -> float:
    """About the multiple of `held` that is nearest to `values`, float32; it travels, so rounding does not matter."""
    with np.errstate(over="ignore", invalid="ignore"):
        there = float(np.dot(held, held))
        factor = float(np.float32(np.dot(values, held) / there)) if there > 0 else 0.0
    return factor if math.isfinite(factor) else 0.0


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as uint16; what would round to infinity is cut off."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    infinite = (rounded & 0x7FFF) >= 0x7F80
    return np.where(infinite, (rounded & 0x8000) | 0x7F7F, rounded).astype("<u2")


def _pairs(q: np.ndarray) -> bytes:
    """int8 in -8..7, two a byte, the first in the low half."""
    padded = np.pad(q, (0, len(q) % 2)).view(np.uint8) & 15
    return (padded[::2] | (padded[1::2] << 4)).tobytes()


def _unpair(reader: Reader, size: int) -> np.ndarray:
    """int8 [size] from pairs, and from the bytes that follow where a pair holds -8."""
    found = np.frombuffer(read_bytes(reader, (size + 1) // 2), np.uint8)
    halves = np.empty(2 * len(found), np.uint8)
    halves[::2], halves[1::2] = found & 15, found >> 4
    if halves[size:].any():
        raise DataError("padding behind the last number, expected zeros")
    q: np.ndarray = ((halves ^ 8).astype(np.int8) - 8)[:size]
    far = q == -NEAR - 1
    beyond = np.frombuffer(read_bytes(reader, int(np.count_nonzero(far))), np.int8)
    if len(beyond) and np.abs(beyond.astype(np.int16)).min() <= NEAR:
        raise DataError(f"a number of {NEAR} or less among the far ones")
    q[far] = beyond
    return q
