"""Every codec's promise: exact, or an error within its bound, whatever the numbers."""

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from matu.errors import DataError
from matu.wire.numbers import BLOCK, LARGEST, Code, Numbers, read_numbers, write_numbers

ROOT = Path(__file__).parents[2]
QUANTISED = ("8bit", "4bit", "3bit", "2bit")


def numbers(seed: int, size: int, kind: str) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = {
        "normal": draw.normal(size=size),
        "heavy": draw.standard_cauchy(size),
        "wide": draw.normal(size=size) * 10.0 ** draw.uniform(-30, 30, size),
        "sparse": draw.normal(size=size) * (draw.random(size) < 0.02),
        "zero": np.zeros(size),
        "equal": np.full(size, draw.normal()),
    }[kind]
    return values.astype(np.float32)


GOLDEN = ("abaf5e11c1b87a44", "e3f1e4603037dc10")
"""Of decoded numbers: another value here means that two versions of matu do not understand each other."""
KINDS = ("normal", "heavy", "wide", "sparse", "zero", "equal")
cases = given(st.integers(0, 2**32), st.integers(1, 900), st.sampled_from(KINDS))


def there_and_back(values: np.ndarray, codec: Numbers, held=None, draw=None) -> np.ndarray:
    code, data = write_numbers(values, codec, held, draw)
    return read_numbers(memoryview(data), code, len(values), held)


def block_steps(values: np.ndarray, bits: int) -> np.ndarray:
    """By entry, a step that the codec may not exceed: the wanted one, rounded up by an eighth of an octave."""
    size = len(values)
    rows = [values[i : i + BLOCK].astype(np.float64) for i in range(0, size, BLOCK)]
    wanted = np.array([max(np.sqrt((r**2).mean()) * 2 ** (2.0471 - bits), np.abs(r).max() / LARGEST) for r in rows])
    floor = max(wanted.max() * 2.0**-31.75, 0)
    steps = np.maximum(wanted * 2 ** (1 / 8 + 0.01), floor * 1.01)
    return np.repeat(steps, BLOCK)[:size]


@cases
def test_float32_is_exact(seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, kind)
    assert np.array_equal(there_and_back(values, Numbers("float32")), values)


def page_decoder(data: bytes, size: int, held: np.ndarray | None) -> np.ndarray:
    """Quantised numbers as docs/wire.md says, one at a time."""
    pairs, blocks, largest, factor = struct.unpack_from("<BBff", data)
    at = 10

    def stream(wanted: int | None) -> bytes:
        nonlocal at
        form, length = struct.unpack_from("<BI", data, at)
        content = data[at + 5 : at + 5 + length]
        at += 5 + length
        found = zstandard.ZstdDecompressor().decompress(content) if form else content
        assert wanted in (None, len(found))
        return found

    width = 256 if blocks else size
    indices = stream(-(-size // width))
    if pairs:
        halves = [half for byte in stream((size + 1) // 2) for half in (byte & 15, byte >> 4)][:size]
        q = [half - 16 if half > 7 else half for half in halves]
        further = iter(struct.unpack(f"{q.count(-8)}b", stream(q.count(-8))))
        q = [next(further) if one == -8 else one for one in q]
    else:
        q = list(struct.unpack(f"{size}b", stream(size)))
    assert at == len(data)
    (page,) = re.findall(r"bits ((?:[0-9A-F]{8}, ){7}[0-9A-F]{8})", (ROOT / "docs/wire.md").read_text())
    eighths = np.array([int(bits, 16) for bits in page.split(", ")], np.uint32).view(np.float32)
    values = []
    for place, one in enumerate(q):
        i = indices[place // width]
        r = np.float32(0) if i == 255 else eighths[i % 8] * np.float32(2.0 ** -(i // 8))
        x = np.float32(one) * (np.float32(largest) * r)
        if held is not None:
            x = x + np.float32(factor) * held[place]
            x = x if abs(x) >= 2.0**-100 else np.float32(0)
        values.append(x)
    return np.array(values, np.float32)


@pytest.mark.parametrize("codec", [*QUANTISED, "ternary"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_written_from_the_page_reads_them(codec: str, kind: str) -> None:
    for size in (1, 256, 777):
        values, held = numbers(3, size, kind), numbers(4, size, "normal")
        for change in (None, held):
            code, data = write_numbers(values, Numbers(codec, change=change is not None), change, None)
            read = read_numbers(memoryview(data), code, size, change)
            assert np.array_equal(page_decoder(bytes(data), size, change), read)


@cases
def test_bfloat16_is_the_nearest(seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, kind)
    got = there_and_back(values, Numbers("bfloat16"))
    assert (np.abs(got - values) <= np.abs(values) * 2.0**-8 + 2.0**-133).all()
    assert np.array_equal(there_and_back(got, Numbers("bfloat16")), got)


def test_bfloat16_rounds_ties_to_even_and_never_to_infinity() -> None:
    largest = np.finfo(np.float32).max
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, largest, -largest, 0.0], np.float32)
    got = there_and_back(values, Numbers("bfloat16"))
    assert got.tolist() == [1.0, 1 + 2**-6, 2.0**127 * (2 - 2**-7), -(2.0**127) * (2 - 2**-7), 0.0]


@settings(max_examples=60)
@pytest.mark.parametrize("name", QUANTISED)
@cases
def test_quantised_numbers_are_within_half_a_step(name: str, seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, kind)
    error = np.abs(there_and_back(values, Numbers(name)).astype(np.float64) - values)
    assert (error <= block_steps(values, int(name[0])) * (0.5 + 2.0**-14) + 2.0**-83).all()


@settings(max_examples=60)
@pytest.mark.parametrize("name", QUANTISED)
@cases
def test_rounded_by_chance_they_are_within_a_step(name: str, seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, kind)
    error = np.abs(there_and_back(values, Numbers(name), draw=np.random.default_rng(seed)).astype(np.float64) - values)
    assert (error <= block_steps(values, int(name[0])) * (1 + 2.0**-14) + 2.0**-83).all()


def test_rounded_by_chance_they_are_right_on_average() -> None:
    values, draw = numbers(0, 600, "normal"), np.random.default_rng(1)
    found = [there_and_back(values, Numbers("2bit"), draw=draw) for _ in range(3000)]
    spread = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - values) <= 5 * spread + 1e-6).all()


@settings(max_examples=60)
@pytest.mark.parametrize("name", QUANTISED)
@cases
def test_a_change_is_within_half_a_step_of_the_change(name: str, seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, "normal")
    held = numbers(seed + 1, size, kind) if kind != "wide" else numbers(seed + 1, size, "normal")
    there = float(np.dot(held.astype(np.float64), held))
    factor = np.float32(np.dot(values.astype(np.float64), held) / there) if there else np.float32(0)
    bound = block_steps(values - factor * held, int(name[0]))
    error = np.abs(there_and_back(values, Numbers(name, change=True), held).astype(np.float64) - values)
    largest = np.abs(values).max() + np.abs(factor * held).max()
    assert (error <= 0.51 * bound + largest * 2.0**-18).all()


@cases
def test_ternary_is_a_projection(seed: int, size: int, kind: str) -> None:
    values = numbers(seed, size, kind) if kind != "wide" else numbers(seed, size, "normal")
    got = there_and_back(values, Numbers("ternary"))
    assert len(np.unique(np.abs(got[got != 0]))) <= 1
    assert (got * values >= 0).all()
    assert np.linalg.norm(got - values) <= np.linalg.norm(values) * (1 + 1e-5)


def test_a_step_is_a_fixed_share_of_the_root_mean_square() -> None:
    values = numbers(0, 256 * 400, "normal")
    for bits in (2, 3, 4):
        error = there_and_back(values, Numbers(f"{bits}bit")) - values
        assert 1.0 <= np.mean(error**2) / (2 ** (2.047 - bits)) ** 2 * 12 <= 1.2  # step² / 12; steps go in eighths
        size = len(write_numbers(values, Numbers(f"{bits}bit"), None, None)[1])
        assert 8 * size / len(values) == pytest.approx(bits, abs=0.15)


def test_a_small_change_costs_no_more_than_it_must() -> None:
    held = numbers(0, 5000, "normal")
    values = (1.5 * held + 0.01 * numbers(1, 5000, "normal")).astype(np.float32)
    direct = there_and_back(values, Numbers("4bit"), held)
    change = there_and_back(values, Numbers("4bit", change=True), held)
    assert np.linalg.norm(change - values) < 0.02 * np.linalg.norm(direct - values)


def test_a_few_far_numbers_cost_little() -> None:
    values = numbers(0, 256 * 400, "normal")
    near = len(write_numbers(values, Numbers("2bit"), None, None)[1])
    values[::2560] = 12.0
    assert len(write_numbers(values, Numbers("2bit"), None, None)[1]) < 1.03 * near
    assert np.abs(there_and_back(values, Numbers("2bit")) - values).max() < 0.7


def test_numbers_out_of_range_are_refused() -> None:
    code, data = write_numbers(np.full(3, 1e38, np.float32), Numbers("8bit"), None, None)
    hostile = data[:2] + np.float32(3e38).tobytes() + data[6:]
    with pytest.raises(DataError, match="an entry is inf"):
        read_numbers(memoryview(hostile), code, 3, None)


@pytest.mark.parametrize(
    ("code", "data", "said"),
    [
        (9, b"", "code 9"),
        (Code.FLOAT32, b"\0" * 11, "12 bytes expected"),
        (Code.FLOAT32, b"\0" * 13, "1 bytes too many"),
        (Code.FLOAT32, np.array([0, np.nan, 0], "<f4").tobytes(), "an entry is nan"),
        (Code.BFLOAT16, b"\x80\x7f" * 3, "an entry is inf"),
        (Code.QUANTISED, b"", "10 bytes expected"),
        (Code.QUANTISED, b"\x02\x01" + bytes(8), "flags 2, 1"),
        (Code.QUANTISED, b"\x01\x01" + np.array([np.inf, 0], "<f4").tobytes(), "step inf"),
        (Code.QUANTISED, b"\x01\x01" + np.array([-1, 0], "<f4").tobytes(), "step -1.0"),
        (Code.QUANTISED, b"\x01\x01" + np.array([1, 1], "<f4").tobytes(), "factor 1.0"),
        (Code.QUANTISED, b"\x01\x01" + bytes(8) + b"\x00\x02\0\0\0" + b"\0\0", "2 bytes in a stream of 1"),
        (Code.QUANTISED, b"\x01\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x02\0\0\0\x08\x00", "5 bytes expected"),
        (
            Code.QUANTISED,
            b"\x01\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x02\0\0\0\x08\x00\x00\x02\0\0\0\x09\x09",
            "2 bytes in a stream of 1",
        ),
        (
            Code.QUANTISED,
            b"\x01\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x02\0\0\0\x08\x00\x00\x01\0\0\0\xf9",
            "7 or less among the far",
        ),
        (Code.QUANTISED, b"\x01\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x02\0\0\0\x00\x10", "padding"),
        (Code.QUANTISED, b"\x01\x01" + bytes(8) + b"\x07\x01\0\0\0\0", "form 7"),
        (Code.QUANTISED, b"\x00\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x03\0\0\0\x01\x80\x01", "is -128"),
        (
            Code.QUANTISED,
            b"\x01\x01" + bytes(8) + b"\x00\x01\0\0\0\0" + b"\x00\x02\0\0\0\x81\x01" + b"\x00\x01\0\0\0\x80",
            "is -128",
        ),
        (Code.CHANGE, b"\x01\x01" + bytes(8), "nothing that it is counted from"),
    ],
)
def test_bytes_that_are_no_numbers_are_refused(code: int, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_numbers(memoryview(data), code, 3, None)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of float32, bfloat16"):
        Numbers("9bit")


@pytest.mark.parametrize("size", [1, 16, 64, 256, 260])
def test_a_part_of_a_block_has_the_step_of_its_own_numbers(size: int) -> None:
    draw = np.random.default_rng(size)
    values = draw.normal(size=4000)[:size].astype(np.float32) * 3
    last = values[(size - 1) // BLOCK * BLOCK :]
    got = there_and_back(values, Numbers("4bit"))[-len(last) :]
    levels = np.unique(np.abs(got[got != 0]))
    step = np.gcd.reduce(np.rint(levels / levels.min() * 1000).astype(int)) / 1000 * levels.min() if size > 1 else None
    wanted = np.sqrt((last.astype(np.float64) ** 2).mean()) * 2 ** (2.047 - 4)
    assert np.abs(got - last).max() <= wanted * 0.56
    assert step is None or len(last) < 16 or step == pytest.approx(wanted, rel=0.1)


def test_the_bits_that_both_ends_hold_are_these() -> None:
    values = np.linspace(-1, 1, 300, dtype=np.float32) ** 3
    held = np.linspace(-1, 1.2, 300, dtype=np.float32)
    code, data = write_numbers(values, Numbers("4bit"), None, None)
    assert hashlib.sha256(read_numbers(memoryview(data), code, 300, None).tobytes()).hexdigest()[:16] == GOLDEN[0]
    head = b"\x00\x01" + np.array([0.125, 0.75], "<f4").tobytes()
    payload = head + b"\x00\x02\0\0\0\x00\x05" + b"\x00\x2c\x01\0\0" + bytes(i % 100 for i in range(300))
    found = read_numbers(memoryview(payload), Code.CHANGE, 300, held)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == GOLDEN[1]
