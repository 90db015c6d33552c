"""The one message between server and site, and its one pair of `encode` and `Envelope`.

docs/wire.md has every field. Shapes and types are never taken from a message: the method says which parts there
are for the tasks in the header (`Part`), so a message holds their codes and lengths alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from matu.errors import DataError, RangeError
from matu.wire.header import Header, read_header, write_header
from matu.wire.masks import Form, Held, read_masks, write_masks
from matu.wire.numbers import EXACT, Code, Numbers, read_numbers, write_numbers
from matu.wire.parts import Kind, Part
from matu.wire.streams import Reader

CHECKSUM_BYTES = 16
MAX_RESCALER = float(1 << 20)
"""Larger ones are refused: an honest one is the ratio of two sums of magnitudes."""
MAX_NUMBER = {"train": 2.0**64, "evaluate": 2.0**64, "update": 2.0**40}
"""Larger ones are refused. An update's numbers count with its largest rescaler: a server's means of them, and what it
makes of a few of them, then stay within what a downlink may hold."""
_COUNT = struct.Struct("<H")
_PART = struct.Struct("<BI")


@dataclass(frozen=True)
class Codecs:
    """How the parts of one direction's messages travel.

    Attributes
    ----------
    vectors, heads
        Of floating-point parts.
    coded_masks
        Masks by what the other end cannot know, or one bit an entry.
    """

    vectors: Numbers = EXACT
    heads: Numbers = EXACT
    coded_masks: bool = False


def encode(
    header: Header,
    parts: Sequence[Part],
    tensors: Mapping[str, Tensor],
    codecs: Codecs,
    *,
    held: Mapping[str, Tensor] | None = None,
    draw: np.random.Generator | None = None,
) -> bytes:
    """A message as bytes; the same arguments give the same bytes.

    Parameters
    ----------
    header, parts, tensors
        What it says: one tensor of each part, float32 or (masks) bool.
    codecs
        How.
    held
        The tensors of the round's downlink as the site opened it, which both ends hold.
    draw
        Rounds by chance in place of to the nearest.

    Raises
    ------
    RangeError
        For numbers that are not finite, or beyond what a message may carry.
    DataError
        For tensors that are not those of the parts.
    """
    chunks = _chunks(parts, tensors, codecs, held or {}, draw, header.kind)
    body: list[bytes | memoryview] = [write_header(header), _COUNT.pack(len(parts))]
    for code, data in chunks:
        body += [_PART.pack(code, len(data)), data]
    return b"".join([*body, _checksum(body)])


def arrived(
    parts: Sequence[Part],
    tensors: Mapping[str, Tensor],
    codecs: Codecs,
    *,
    held: Mapping[str, Tensor] | None = None,
    draw: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """What a site reads of these tensors in a downlink; arguments as for `encode`."""
    return _opened(parts, _chunks(parts, tensors, codecs, held or {}, draw, "train"), held or {}, "train")


class Envelope:
    """A message whose header has been read and whose parts have not.

    Parameters
    ----------
    payload
        The bytes as they arrived.

    Attributes
    ----------
    header
        Complete and within its limits; whether it is for this run, round and site is the reader's to check.

    Raises
    ------
    DataError
        If the bytes are no message of this format, are cut off, changed on the way, or too many.
    """

    def __init__(self, payload: bytes) -> None:
        body, check = memoryview(payload)[:-CHECKSUM_BYTES], payload[-CHECKSUM_BYTES:]
        if _checksum([body]) != check:
            raise DataError(f"message: {len(payload)} bytes whose checksum is another: cut off, or changed on the way")
        reader = Reader(body)
        self.header: Header = read_header(reader)
        (count,) = reader.unpack(_COUNT)
        self._chunks: list[Chunk] = []
        for _ in range(count):
            code, length = reader.unpack(_PART)
            self._chunks.append((code, reader.take(length)))
        reader.end()
        self._bytes = len(payload)

    def needs_held(self, parts: Sequence[Part]) -> bool:
        """Whether some part can be read only beside what both ends hold."""
        kinds = zip(parts, self._chunks_of(parts), strict=True)
        return any(code == (Form.FLIPS if part.kind == Kind.MASKS else Code.CHANGE) for part, (code, _) in kinds)

    def tensors(self, parts: Sequence[Part], held: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors by name: float32 of finite numbers, and bool masks.

        Parameters
        ----------
        parts
            What the reader expects for the header's tasks.
        held
            As for `encode`.

        Raises
        ------
        DataError
            Naming the part that cannot be what it should be.
        """
        return _opened(parts, self._chunks_of(parts), held or {}, self.header.kind)

    def sizes(self, parts: Sequence[Part]) -> dict[str, int]:
        """Bytes by what they are for: vectors, masks, heads, rescalers, and the header (all the rest)."""
        found = dict.fromkeys(SHARES, 0)
        for part, (_, data) in zip(parts, self._chunks_of(parts), strict=True):
            found[SHARES[part.kind]] += len(data)
        found["header"] = self._bytes - sum(found.values())
        return found

    def _chunks_of(self, parts: Sequence[Part]) -> list[Chunk]:
        if len(parts) != len(self._chunks):
            names = ", ".join(part.name for part in parts)
            raise DataError(f"message: {len(self._chunks)} parts, expected {len(parts)}: {names}")
        return self._chunks


SHARES = ("header", "vectors", "heads", "rescalers", "masks")
"""What bytes are for; a part's kind is its place."""


Chunk = tuple[int, bytes | memoryview]
"""A part's code and its bytes."""


def _chunks(
    parts: Sequence[Part], tensors: Mapping[str, Tensor], codecs: Codecs, held: Mapping[str, Tensor],
    draw: np.random.Generator | None, kind: str,
) -> list[Chunk]:  # fmt: skip
    values = _checked(parts, tensors, kind)
    chunks: list[Chunk] = []
    read: dict[str, np.ndarray] = {}
    for part in parts:
        code, data = _write(part, values[part.name], codecs, read, held, draw)
        if any(other.of == part.name for other in parts):  # masks are coded beside the vector as it arrives
            read[part.name] = read_numbers(memoryview(data), code, part.size, _held(part, held))
        chunks.append((code, data))
    return chunks


def _opened(parts: Sequence[Part], chunks: Sequence[Chunk], held: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    read: dict[str, np.ndarray] = {}
    for part, (code, data) in zip(parts, chunks, strict=True):
        try:
            read[part.name] = _read(part, code, memoryview(data), read, held).reshape(part.shape)
        except DataError as error:
            raise DataError(f"message part '{part.name}': {error}") from error
    _check_ranges(parts, read, kind)
    return {name: torch.from_numpy(values) for name, values in read.items()}


def _checksum(body: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in body:
        digest.update(part)
    return digest.digest()


def _checked(parts: Sequence[Part], tensors: Mapping[str, Tensor], kind: str) -> dict[str, np.ndarray]:
    """The tensors as arrays; DataError unless they are those of the parts."""
    names = [part.name for part in parts]
    if set(names) != set(tensors):
        raise DataError(f"message holds tensors {sorted(tensors)}, expected {sorted(names)}")
    values: dict[str, np.ndarray] = {}
    for part in parts:
        found, wanted = tensors[part.name], torch.bool if part.kind == Kind.MASKS else torch.float32
        if found.dtype != wanted or tuple(found.shape) != part.shape:
            raise DataError(f"'{part.name}' is {found.dtype} {list(found.shape)}, expected {wanted} {list(part.shape)}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise RangeError(f"'{part.name}' has entries that are not finite")
        values[part.name] = found.detach().cpu().contiguous().numpy()
    _check_ranges(parts, values, kind)
    return values


def _check_ranges(parts: Sequence[Part], values: Mapping[str, np.ndarray], kind: str) -> None:
    """Rescalers from 0 to MAX_RESCALER; no number, times the largest rescaler of an update, beyond MAX_NUMBER."""
    times = 1.0
    for part in parts:
        if part.kind == Kind.RESCALERS:
            low, high = float(values[part.name].min()), float(values[part.name].max())
            if low < 0 or high > MAX_RESCALER:
                raise RangeError(f"'{part.name}' goes from {low:.6g} to {high:.6g}, expected 0 to {MAX_RESCALER:.6g}")
            times = max(high, 1.0) if kind == "update" else 1.0
    for part in parts:
        if part.kind in (Kind.VECTOR, Kind.HEAD) and part.size:
            low, high = float(values[part.name].min()), float(values[part.name].max())
            if times * max(-low, high) > MAX_NUMBER[kind]:
                rescaled = f", times rescalers up to {times:.6g}," if times > 1 else ""
                raise RangeError(
                    f"'{part.name}' goes from {low:.6g} to {high:.6g}{rescaled} expected at most {MAX_NUMBER[kind]:.6g}"
                )


def _write(
    part: Part, values: np.ndarray, codecs: Codecs, read: Mapping[str, np.ndarray], held: Mapping[str, Tensor],
    draw: np.random.Generator | None,
) -> Chunk:  # fmt: skip
    if part.kind == Kind.MASKS:
        return write_masks(values, coded=codecs.coded_masks, vector=read[part.of], held=_held_masks(part, held))
    if part.kind == Kind.RESCALERS:
        return Code.FLOAT32, values.astype("<f4").tobytes()
    codec = codecs.heads if part.kind == Kind.HEAD else codecs.vectors
    return write_numbers(values.reshape(-1), codec, _held(part, held), draw)


def _read(
    part: Part, code: int, data: memoryview, read: Mapping[str, np.ndarray], held: Mapping[str, Tensor]
) -> np.ndarray:
    if part.kind == Kind.MASKS:
        return read_masks(data, code, part.shape, read[part.of], _held_masks(part, held))
    if part.kind == Kind.RESCALERS and code != Code.FLOAT32:
        raise DataError(f"code {code}, rescalers are always float32")
    return read_numbers(data, code, part.size, _held(part, held))


def _held(part: Part, held: Mapping[str, Tensor]) -> np.ndarray | None:
    tensor = held.get(part.against) if part.against else None
    return None if tensor is None else tensor.numpy().reshape(-1)


def _held_masks(part: Part, held: Mapping[str, Tensor]) -> Held | None:
    if not part.against or part.against not in held:
        return None
    return held[part.against].numpy(), held[part.of].numpy()
