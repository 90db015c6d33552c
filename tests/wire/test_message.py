import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matu.errors import DataError, RangeError
from matu.wire import NAMES, Codecs, Envelope, Header, Kind, Numbers, Part, arrived, encode
from matu.wire.header import MAX_TASKS

HEADER = Header(
    kind="update", run="0f" * 16, round=3, method="matu", site="nord süd", fingerprint="5a" * 32, tasks=("a", "b"),
    class_lists=("2:x", "3:y"), samples=(5, 7), metrics={"images": 12.0, "loss": 0.25},
)  # fmt: skip


def parts_of(k: int, d: int, classes: int = 2) -> list[Part]:
    masks = [Part("masks", Kind.MASKS, (k, d), "masks", of="vector")]
    heads = [Part(f"head/{i}", Kind.HEAD, (classes, 4), f"head/{i}") for i in range(k)]
    return [Part("vector", Kind.VECTOR, (d,), "vector"), *masks, Part("rescalers", Kind.RESCALERS, (k,)), *heads]


def random_tensors(k: int, d: int, seed: int, classes: int = 2) -> dict[str, Tensor]:
    """A vector some of whose entries are zero, masks, rescalers and heads."""
    draw = torch.Generator().manual_seed(seed)
    vector = torch.randn(d, generator=draw) * (torch.rand(d, generator=draw) < 0.9)
    heads = {f"head/{i}": torch.randn(classes, 4, generator=draw) for i in range(k)}
    masks = torch.rand(k, d, generator=draw) < torch.rand(k, 1, generator=draw)
    return {"vector": vector, "masks": masks, "rescalers": torch.rand(k, generator=draw)} | heads


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


PARTS, TENSORS = parts_of(2, 9), random_tensors(2, 9, 0)
EXACT, SMALL = Codecs(), Codecs(Numbers("4bit", change=True), Numbers("8bit", change=True), coded_masks=True)
HELD = random_tensors(2, 9, 1)


def test_a_message_comes_back_as_it_was() -> None:
    envelope = Envelope(encode(HEADER, PARTS, TENSORS, EXACT))
    assert envelope.header == HEADER
    assert same(envelope.tensors(PARTS), TENSORS)


def test_the_same_message_gives_the_same_bytes() -> None:
    turned = dict(reversed(list(TENSORS.items())))
    for codecs in (EXACT, SMALL):
        assert encode(HEADER, PARTS, turned, codecs, held=HELD) == encode(HEADER, PARTS, TENSORS, codecs, held=HELD)


def test_what_arrives_is_what_is_read_from_the_bytes() -> None:
    for codecs in (EXACT, SMALL, replace(SMALL, coded_masks=False)):
        for held in (None, HELD):
            there = Envelope(encode(HEADER, PARTS, TENSORS, codecs, held=held)).tensors(PARTS, held)
            assert same(there, arrived(PARTS, TENSORS, codecs, held=held))


combinations = st.builds(
    Codecs,
    st.builds(Numbers, st.sampled_from(NAMES), st.booleans()),
    st.builds(Numbers, st.sampled_from(NAMES), st.booleans()),
    st.booleans(),
)


@settings(max_examples=200)
@given(combinations, st.integers(1, 5), st.integers(1, 700), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_every_combination_of_codecs_comes_back(
    codecs: Codecs, k: int, d: int, seed: int, with_held: bool, by_chance: bool
) -> None:
    parts, tensors = parts_of(k, d), random_tensors(k, d, seed)
    held = random_tensors(k, d, seed + 1) if with_held else None
    header = replace(HEADER, tasks=tuple(f"{i}" for i in range(k)), class_lists=(), samples=(1,) * k)
    draw = np.random.default_rng(seed) if by_chance else None
    envelope = Envelope(encode(header, parts, tensors, codecs, held=held, draw=draw))
    got = envelope.tensors(parts, held)
    assert envelope.header == header
    assert torch.equal(got["rescalers"], tensors["rescalers"])
    # a mask matters where its vector is not zero: coded or not, what the task gets back is the same
    vector, live = got["vector"], got["vector"] != 0
    assert torch.equal(got["masks"] * vector, tensors["masks"] * vector)
    if codecs.coded_masks:
        assert not (got["masks"] & ~live).any()
    else:
        assert torch.equal(got["masks"], tensors["masks"])
    for codec, names in ((codecs.vectors, ["vector"]), (codecs.heads, [f"head/{i}" for i in range(k)])):
        for name in names:
            assert got[name].shape == tensors[name].shape
            if codec.name == "float32":
                assert torch.equal(got[name], tensors[name])


def test_a_mask_costs_one_bit_an_entry() -> None:
    sizes = [Envelope(encode(HEADER, p, random_tensors(2, d, 0), EXACT)).sizes(p) for d in (8, 8008)
             for p in [parts_of(2, d)]]  # fmt: skip
    assert sizes[1]["masks"] - sizes[0]["masks"] == 2000
    assert sizes[0]["vectors"] == 32


def test_bytes_are_counted_by_what_they_are_for() -> None:
    payload = encode(HEADER, PARTS, TENSORS, EXACT)
    sizes = Envelope(payload).sizes(PARTS)
    assert sizes | {"header": 0} == {"header": 0, "vectors": 36, "heads": 64, "rescalers": 8, "masks": 3}
    assert sum(sizes.values()) == len(payload)


def signed(body: bytes) -> bytes:
    """The body with a checksum that fits: what a liar would send."""
    return body + hashlib.blake2b(body, digest_size=16).digest()


GOOD = encode(HEADER, PARTS, TENSORS, EXACT)
BODY = GOOD[:-16]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "checksum"),
        (GOOD[:-1], "checksum"),
        (GOOD + b"\x00", "checksum"),
        (GOOD[:50] + bytes([GOOD[50] ^ 1]) + GOOD[51:], "checksum"),
        (signed(b""), "0 are there"),
        (signed(b"X" + BODY[1:]), "begins with"),
        (signed(BODY[:4] + b"\x03" + BODY[5:]), "format 3"),
        (signed(BODY[:5] + b"\x03" + BODY[6:]), "kind 3"),
        (signed(BODY[:6] + bytes(4) + BODY[10:]), "round 0"),
        (signed(BODY[:58] + b"\x04\xff\xfe\xfd\xfc" + BODY[63:]), "no UTF-8"),
        (signed(BODY[:58] + b"\x04ma\x00u" + BODY[63:]), "printable"),
        (signed(BODY[:58] + b"\x00" + BODY[63:]), "expected 1 to 255 bytes"),
        (signed(BODY.replace(b"\x01a\x01b", b"\x01a\x01a", 1)), "distinct"),
        (signed(BODY.replace(b"\x02\x00\x01a", (MAX_TASKS + 1).to_bytes(2, "little") + b"\x01a", 1)), "4097 tasks"),
        (signed(BODY + b"\x00"), "1 bytes too many"),
        (signed(BODY[:-1]), "bytes expected"),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(payload: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Envelope(payload)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "eval"}, "kind 'eval'"),
        ({"run": "0F" * 16}, "32 hex digits"),
        ({"fingerprint": "5a"}, "64 hex digits"),
        ({"round": 0}, "round 0"),
        ({"round": 1 << 32}, "round 4294967296"),
        ({"site": ""}, "printable"),
        ({"site": "x" * 256}, "printable"),
        ({"site": "\ud800"}, "printable"),
        ({"tasks": ()}, "0 tasks"),
        ({"tasks": ("a", "a")}, "distinct"),
        ({"class_lists": ("2:x",)}, "1 class lists for 2 tasks"),
        ({"samples": (1,)}, "1 sample counts for 2 tasks"),
        ({"samples": (0, 1)}, "not 1 to"),
        ({"samples": (1 << 32, 1)}, "not 1 to"),
        ({"metrics": {"loss": float("nan")}}, "finite"),
        ({"metrics": {f"m{i}": 0.0 for i in range(17)}}, "17 metrics"),
    ],
)
def test_a_header_that_cannot_be_is_not_made(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        replace(HEADER, **changes)  # type: ignore[arg-type]


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return TENSORS | {name: change(TENSORS[name])}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds tensors"),
        (TENSORS | {"more": torch.zeros(1)}, "holds tensors"),
        (with_tensor("vector", lambda t: t[:-1]), r"'vector' is torch.float32 \[8\], expected torch.float32 \[9\]"),
        (with_tensor("vector", lambda t: t.double()), "float64"),
        (with_tensor("masks", lambda t: t.float()), "'masks' is"),
    ],
)
def test_tensors_that_are_not_those_of_the_parts_are_not_sent(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        encode(HEADER, PARTS, tensors, EXACT)
    assert not isinstance(refused.value, RangeError)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (with_tensor("head/1", lambda t: t / 0), "not finite"),
        (with_tensor("rescalers", lambda t: -t), "'rescalers' goes from"),
        (with_tensor("rescalers", lambda t: t + 2**21), "expected 0 to 1.04858e\\+06"),
        (with_tensor("vector", lambda t: t + 2.0**41), "'vector' goes from"),
    ],
)
def test_numbers_out_of_range_are_not_sent(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(RangeError, match=said):
        encode(HEADER, PARTS, tensors, EXACT)


def test_a_change_needs_what_it_is_counted_from() -> None:
    payload = encode(HEADER, PARTS, TENSORS, SMALL, held=HELD)
    with pytest.raises(DataError, match="part 'vector': a change, but nothing that it is counted from"):
        Envelope(payload).tensors(PARTS)
