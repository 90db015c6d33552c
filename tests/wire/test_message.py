import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from matu.errors import DataError
from matu.wire import Message, decode, encode, pack_bits, unpack_bits

MESSAGE = Message(
    method="matu", kind="update", round=3, site="north", fingerprint="f00d", tasks=("a", "b"),
    class_lists=("2:x", "3:y"), samples=(5, 7),
    metrics={"loss": 0.25},
    tensors={"vector": torch.tensor([1.5, -2.0, 0.0]), "masks": torch.tensor([[True, False, True], [False] * 3])},
)  # fmt: skip


def test_a_message_comes_back_as_it_was() -> None:
    got = decode(encode(MESSAGE))
    assert replace(got, tensors={}) == replace(MESSAGE, tensors={})
    assert got.tensors.keys() == MESSAGE.tensors.keys()
    for name, tensor in MESSAGE.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)


def test_the_same_message_gives_the_same_bytes_whatever_the_order_of_its_tensors() -> None:
    turned = replace(MESSAGE, tensors=dict(reversed(list(MESSAGE.tensors.items()))))
    assert encode(turned) == encode(MESSAGE)


def test_a_mask_costs_one_bit_an_entry() -> None:
    small = encode(replace(MESSAGE, tensors={"m": torch.ones(2, 8, dtype=torch.bool)}))
    large = encode(replace(MESSAGE, tensors={"m": torch.ones(2, 8008, dtype=torch.bool)}))
    assert 2000 <= len(large) - len(small) < 2016


@given(st.integers(0, 70), st.integers(0, 2**32))
def test_bits_round_trip_at_any_length(count: int, seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random(count) < 0.5)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count // 8)
    assert torch.equal(unpack_bits(packed, [count]), mask)


def test_bits_are_row_major_and_lowest_first() -> None:
    assert pack_bits(torch.tensor([[True, False, False], [False, False, True]])).tolist() == [0b100001]


def header_of(**changes: object) -> bytes:
    header = {
        "format": 1, "method": "matu", "kind": "train", "round": 1, "site": "s", "fingerprint": "f",
        "tasks": ["a"], "class_lists": [], "samples": [], "metrics": {}, "bits": {},
    } | changes  # fmt: skip
    return save({"x": torch.zeros(1)}, {"matu": json.dumps(header)})


def test_the_header_as_written_by_hand_is_read() -> None:
    assert decode(header_of()).tasks == ("a",)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "no matu message"),
        (b"\x00" * 40, "no matu message"),
        (encode(MESSAGE)[:-1], "no matu message"),
        (encode(MESSAGE) + b"\x00", "no matu message"),
        (save({"x": torch.zeros(1)}), "no matu message"),
        (save({"x": torch.zeros(1)}, {"matu": "{}"}), "fields"),
        (save({"x": torch.zeros(1)}, {"matu": "[1"}), "no matu message"),
        (header_of(format=2), "format 2"),
        (header_of(kind="eval"), "kind 'eval'"),
        (header_of(round=-1), "round -1"),
        (header_of(round=True), "round True"),
        (header_of(site=4), "site 4"),
        (header_of(tasks=["a", "a"]), "distinct"),
        (header_of(tasks="a"), "distinct"),
        (header_of(class_lists=["2:a", "2:b"]), "one text a task"),
        (header_of(samples=[0]), "from 1 to"),
        (header_of(samples=[1 << 60]), "from 1 to"),
        (header_of(samples=[1, 2]), "2 sample counts for 1 tasks"),
        (header_of(metrics={"loss": "low"}), "finite"),
        (header_of(metrics={"loss": float("nan")}), "finite"),
        (header_of(bits={"y": [8]}), "'y'"),
        (header_of(bits={"x": [8]}), "cannot hold"),
        (header_of(bits=3), "bits 3"),
        (header_of(surprise=1), "fields"),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(payload: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        decode(payload)


@pytest.mark.parametrize(
    ("packed", "shape", "said"),
    [
        (torch.tensor([8], dtype=torch.uint8), [3], "padding"),
        (torch.zeros(2, dtype=torch.uint8), [3], "cannot hold"),
        (torch.zeros(1), [3], "cannot hold"),
        (torch.zeros(1, dtype=torch.uint8), [-3], "whole numbers"),
        (torch.zeros(1, dtype=torch.uint8), [10**12, 10**12], "cannot hold"),
    ],
)
def test_bits_that_do_not_fit_their_shape_are_refused(packed: torch.Tensor, shape: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        unpack_bits(packed, shape)
