"""Codecs of masks: one bit an entry, or, coded, what the other end cannot know.

Coded masks say nothing where their vector is zero: there a mask changes nothing, and reads as 0. Elsewhere entries
are sorted by what both ends know, and each class travels as a stream of its own: whether the task's mask of the
same round's downlink is set, and whether the vector still has the sign it had there. What travels is the
difference from that mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np

from matu.errors import DataError
from matu.wire.streams import Reader, pack, read_bits, unpack, write_bits


class Form(IntEnum):
    """How masks travel."""

    PACKED = 0
    CODED = 1
    FLIPS = 2
    """Coded, against the masks of the downlink."""


Held = tuple[np.ndarray, np.ndarray]
"""Masks bool [k, d] and vector float32 [d] of the downlink, as both ends hold them."""


def write_masks(masks: np.ndarray, *, coded: bool, vector: np.ndarray, held: Held | None) -> tuple[Form, bytes]:
    """bool [k, d] as bytes; `vector` float32 [d] is theirs, as the other end will read it."""
    if not coded:
        return Form.PACKED, pack(masks)
    streams = [
        write_bits((row ^ old)[members])
        for row, (old, ways) in zip(masks, _classes(len(masks), vector, held), strict=True)
        for members in ways
    ]
    return Form.CODED if held is None else Form.FLIPS, b"".join(streams)


def read_masks(
    data: memoryview, form: int, shape: tuple[int, ...], vector: np.ndarray, held: Held | None
) -> np.ndarray:
    """The inverse of `write_masks`, 0 where the vector is zero if they were coded; DataError for anything else."""
    k, d = shape
    reader = Reader(data)
    if form == Form.PACKED:
        masks = unpack(bytes(reader.take((k * d + 7) // 8)), k * d).reshape(k, d)
    elif form in (Form.CODED, Form.FLIPS):
        if form == Form.FLIPS and held is None:
            raise DataError("flips, but no masks that they are counted from")
        masks = np.zeros((k, d), bool)
        for row, (old, ways) in zip(masks, _classes(k, vector, held if form == Form.FLIPS else None), strict=True):
            for members in ways:
                row[members] = read_bits(reader, len(members)) ^ old[members]
    else:
        raise DataError(f"form {form} of masks, expected 0 to {max(Form)}")
    reader.end()
    return masks


def _classes(count: int, vector: np.ndarray, held: Held | None) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Task by task: its mask as both ends hold it, or zeros; and the positions of each class, ascending."""
    signs = _signs(vector)
    live = signs != 0
    if held is None:
        alone = np.zeros(len(vector), bool), [np.flatnonzero(live)]
        yield from (alone for _ in range(count))
        return
    masks, before = held
    kept = signs == _signs(before)
    sides = [live & kept, live & ~kept]
    for row in masks:
        yield row, [np.flatnonzero(side & way) for way in (row, ~row) for side in sides]


def _signs(vector: np.ndarray) -> np.ndarray:
    """int8 -1, 0 or 1, from the bits: also right where a machine takes subnormal numbers for zeros."""
    bits = np.ascontiguousarray(vector, np.float32).view(np.int32)
    return np.where(bits & 0x7FFFFFFF == 0, 0, (bits >> 31) | 1).astype(np.int8)
