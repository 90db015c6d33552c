import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from matu.errors import DataError
from matu.wire.masks import Form, read_masks, write_masks
from matu.wire.streams import Reader, pack, read_bits, read_bytes, unpack, write_bits, write_bytes


def framed(form: int, data: bytes) -> memoryview:
    return memoryview(struct.pack("<BI", form, len(data)) + data)


@given(st.binary(max_size=400), st.integers(0, 300))
def test_bytes_come_back(data: bytes, more: int) -> None:
    data += b"ab" * more
    reader = Reader(memoryview(write_bytes(data)))
    assert read_bytes(reader, len(data)) == data
    reader.end()


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 2**32))
def test_bits_come_back_at_any_length_and_share(count: int, share: float, seed: int) -> None:
    bits = np.random.default_rng(seed).random(count) < share**3
    for one in (bits, ~bits):
        reader = Reader(memoryview(write_bits(one)))
        assert np.array_equal(read_bits(reader, count), one)
        reader.end()
        assert np.array_equal(unpack(pack(one), count), one)


def test_bits_are_row_major_and_lowest_first() -> None:
    assert pack(np.array([[True, False, False], [False, False, True]])) == bytes([0b100001])


def test_rare_bits_cost_about_their_entropy() -> None:
    bits = np.random.default_rng(0).random(200_000) < 0.02
    assert 8 * len(write_bits(bits)) / len(bits) < 1.05 * 0.1414
    assert 8 * len(write_bits(~bits)) / len(bits) < 1.05 * 0.1414
    assert len(write_bits(np.random.default_rng(0).random(8000) < 0.5)) <= 1005


def compressed(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


def unsized(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def with_dictionary() -> bytes:
    """A frame of two bytes that says it needs dictionary 7."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b00100001, 7, 2]) + b"\x11\0\0ab"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (framed(1, compressed(1 << 20)), "stream of 1048576 bytes, expected 2 to 2"),
        (framed(1, unsized(b"abcdefgh" * 100)), "expected 2 to 2"),
        (framed(1, b"no frame"), "no Zstandard frame"),
        (framed(1, compressed(2)[:-1]), "cannot be read"),
        (framed(1, compressed(2) + compressed(2)), "cannot be read"),
        (framed(0, b"\0"), "1 bytes cannot hold 12 bits"),
        (framed(0, b"\0\x10"), "padding"),
        (framed(4, b""), "form 4"),
        (framed(2, b"\x0c"), "no Zstandard frame"),
        (framed(2, zstandard.ZstdCompressor().compress(b"\x0c")), "a bit at 12 of 12"),
        (framed(2, zstandard.ZstdCompressor().compress(b"\x00\xff")), "without an end"),
        (framed(2, compressed(0)), "stream of 0 bytes, expected 1 to 13"),
        (framed(1, with_dictionary()), "dictionary 7"),
        (framed(1, b"\x28\xb5\x2f\xfd\x80\xa8\x02\0\0\0" + bytes(30)), "window 2147483648"),
        (framed(2, compressed(14)), "stream of 14 bytes, expected 1 to 13"),
        (memoryview(b"\0\xff\xff\xff\xff"), "4294967295 bytes expected"),
        (memoryview(b"\0"), "5 bytes expected"),
    ],
)
def test_bytes_that_are_no_bits_are_refused(data: memoryview, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_bits(Reader(data), 12)


def case(seed: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    vector = (draw.normal(size=d) * (draw.random(d) < 0.8)).astype(np.float32)
    return draw.random((k, d)) < draw.random((k, 1)), vector


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 300), st.booleans())
def test_coded_masks_come_back_where_their_vector_is_not_zero(seed: int, k: int, d: int, against: bool) -> None:
    masks, vector = case(seed, k, d)
    held = case(seed + 1, k, d) if against else None
    form, data = write_masks(masks, coded=True, vector=vector, held=held)
    assert form == (Form.FLIPS if against else Form.CODED)
    assert np.array_equal(read_masks(memoryview(data), form, (k, d), vector, held), masks & (vector != 0))


def test_masks_like_those_of_the_downlink_cost_little() -> None:
    draw = np.random.default_rng(0)
    masks, vector = case(0, 3, 50_000)
    old = masks ^ (draw.random(masks.shape) < 0.02)
    vector[vector == 0] = 1
    packed = write_masks(masks, coded=False, vector=vector, held=None)[1]
    flips = write_masks(masks, coded=True, vector=vector, held=(old, vector))[1]
    assert len(packed) == 3 * 50_000 // 8
    assert len(flips) < 0.16 * len(packed)


@pytest.mark.parametrize(("form", "said"), [(3, "form 3"), (Form.FLIPS, "flips, but no masks"), (Form.PACKED, "bytes")])
def test_bytes_that_are_no_masks_are_refused(form: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_masks(memoryview(b""), form, (1, 9), np.ones(9, np.float32), None)
