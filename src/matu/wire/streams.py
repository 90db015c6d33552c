"""Runs of bytes and of bits inside a message: as they are, or compressed where that is smaller."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from matu.errors import DataError

_FRAME = b"\x28\xb5\x2f\xfd"
_LENGTH = struct.Struct("<BI")
_ENTROPY_ALONE = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7,
    write_content_size=True, write_checksum=False,
)  # fmt: skip
"""Symbols drawn at random have no repeats worth looking for: the usual levels find some and spend up to 20 % more."""
RAW, ZSTD, GAPS_ONE, GAPS_ZERO = 0, 1, 2, 3
_SPARSE = 0.2
"""Below this share of ones, or of zeros, distances between them are smaller than packed bits."""


class Reader:
    """Bytes read from front to back; asking for more than there are is an error, not a wait."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.left:
            raise DataError(f"{count} bytes expected at byte {self._at}, {self.left} are there")
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """The next numbers."""
        return form.unpack(self.take(form.size))

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def end(self) -> None:
        """Require that nothing is left."""
        if self.left:
            raise DataError(f"{self.left} bytes too many")


def write_bytes(data: bytes) -> bytes:
    """A form (0 as it is, 1 Zstandard), a length, and the bytes."""
    packed = _compress(data)
    return _framed(RAW, data) if len(packed) >= len(data) else _framed(ZSTD, packed)


def read_bytes(reader: Reader, size: int) -> bytes:
    """The inverse of `write_bytes`, for a size known beforehand; DataError for anything else."""
    form, data = _unframed(reader)
    if form not in (RAW, ZSTD):
        raise DataError(f"form {form} of a byte stream, expected {RAW} or {ZSTD}")
    found = _decompress(data, size, size) if form == ZSTD else bytes(data)
    if len(found) != size:
        raise DataError(f"{len(found)} bytes in a stream of {size}")
    return found


def write_bits(bits: np.ndarray) -> bytes:
    """bool [n] as packed bits, or as the distances between the rarer value; nothing for n = 0."""
    if not len(bits):
        return b""
    ones = int(np.count_nonzero(bits))
    rare = min(ones, len(bits) - ones)
    if rare < _SPARSE * len(bits):
        inverted = ones > len(bits) - ones
        gaps = _gaps(~bits if inverted else bits)
        return _framed(GAPS_ZERO if inverted else GAPS_ONE, _compress(gaps) if gaps else b"")
    return write_bytes(pack(bits))


def read_bits(reader: Reader, count: int) -> np.ndarray:
    """The inverse of `write_bits`; DataError for bits that do not fit `count`, or set padding."""
    if not count:
        return np.zeros(0, bool)
    form, data = _unframed(reader)
    if form in (GAPS_ONE, GAPS_ZERO):
        bits = _from_gaps(_decompress(data, 1, count + 1) if len(data) else b"", count)
        return ~bits if form == GAPS_ZERO else bits
    if form not in (RAW, ZSTD):
        raise DataError(f"form {form} of a bit stream, expected 0 to 3")
    size = (count + 7) // 8
    return unpack(_decompress(data, size, size) if form == ZSTD else bytes(data), count)


def pack(bits: np.ndarray) -> bytes:
    """bool, any shape -> bytes: row-major, lowest bit first, padding 0."""
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: bytes, count: int) -> np.ndarray:
    """bool [count] of packed bits, lowest first; DataError unless size and padding fit."""
    if len(data) != (count + 7) // 8:
        raise DataError(f"{len(data)} bytes cannot hold {count} bits")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[count:].any():
        raise DataError("padding bits are set, expected zeros")
    return bits[:count].view(bool)


def _gaps(bits: np.ndarray) -> bytes:
    """Zeros before each one; 255 stands for 255 zeros and no one yet."""
    gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1
    long = gaps // 255
    out = np.full(len(gaps) + int(long.sum()), 255, np.uint8)
    out[np.arange(len(gaps)) + np.cumsum(long)] = gaps % 255
    return out.tobytes()


def _from_gaps(data: bytes, count: int) -> np.ndarray:
    """The inverse; DataError for a one past the end, or a long gap that no one ends."""
    gaps = np.frombuffer(data, np.uint8)
    bits = np.zeros(count, bool)
    if not len(gaps):
        return bits
    ends = gaps != 255
    if not ends[-1]:
        raise DataError("a gap without an end")
    at = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(np.count_nonzero(ends))
    if at[-1] >= count:
        raise DataError(f"a bit at {at[-1]} of {count}")
    bits[at] = True
    return bits


def _framed(form: int, data: bytes) -> bytes:
    return _LENGTH.pack(form, len(data)) + data


def _unframed(reader: Reader) -> tuple[int, memoryview]:
    form, length = reader.unpack(_LENGTH)
    return form, reader.take(length)


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_ENTROPY_ALONE).compress(data)


def _decompress(data: memoryview, least: int, most: int) -> bytes:
    """One whole Zstandard frame that says its size, between `least` >= 1 and `most`: looked at before any is made."""
    if data[:4] != _FRAME:
        raise DataError(f"{len(data)} bytes that are no Zstandard frame")
    try:
        frame = zstandard.get_frame_parameters(data)
        if not least <= frame.content_size <= most:  # an unknown size reads as 2^64 - 1
            raise DataError(f"a compressed stream of {frame.content_size} bytes, expected {least} to {most}")
        if frame.dict_id or frame.window_size > 2 * most + (1 << 10):
            raise DataError(f"a compressed stream with dictionary {frame.dict_id} and window {frame.window_size}")
        if len(data) > most + most // 64 + 64:
            raise DataError(f"{len(data)} bytes for {frame.content_size} in a compressed stream")
        return bytes(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise DataError(f"a compressed stream cannot be read ({error})") from error
