import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import seeds

from matu.vectors import Layout

SHAPES = {"b.lora_B": (4, 2), "a.lora_A": (2, 3), "a.lora_B": (1,), "scale": ()}


def parameters(shapes=SHAPES, dtype=torch.float32):
    start, named = 0, {}
    for name, shape in sorted(shapes.items()):
        count = int(torch.Size(shape).numel())
        named[name] = torch.arange(start, start + count, dtype=dtype).reshape(shape)
        start += count
    return dict(reversed(named.items()))


def test_order_is_that_of_the_names():
    layout = Layout.of(parameters())
    assert layout.names == ("a.lora_A", "a.lora_B", "b.lora_B", "scale")
    assert layout.shapes == ((2, 3), (1,), (4, 2), ())
    assert layout.dim == 16
    assert layout.flatten(parameters()).tolist() == list(range(16))


@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(1, 4), max_size=3), min_size=1), seeds)
def test_there_and_back(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    named = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    layout = Layout.of(named)
    back = layout.unflatten(layout.flatten(named))
    assert back.keys() == named.keys()
    assert all(torch.equal(back[name], named[name]) for name in named)


def test_parts_are_views_and_flattening_copies():
    named = parameters()
    layout = Layout.of(named)
    vector = layout.flatten(named)
    layout.unflatten(vector)["a.lora_A"][1, 0] = -5
    assert vector[3] == -5
    assert named["a.lora_A"][1, 0] == 3


def test_strided_parameters_with_gradient_and_double_precision():
    named = {"x": torch.arange(6, dtype=torch.float64).reshape(2, 3).T.requires_grad_()}
    vector = Layout.of(named).flatten(named)
    assert vector.tolist() == [0, 3, 1, 4, 2, 5]
    assert vector.dtype == torch.float64
    assert not vector.requires_grad


def test_fingerprint_is_stable_over_versions():
    layout = Layout(("a", "b"), ((2, 3), (1,)))
    text = '{"facts":{"backbone":"vit-mini","rank":16,"seed":0},"names":["a","b"],"shapes":[[2,3],[1]]}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert layout.fingerprint(rank=16, seed=0, backbone="vit-mini") == expected


def test_fingerprint_knows_names_shapes_and_facts_and_no_order():
    layout = Layout.of(parameters())
    same = Layout.of(dict(sorted(parameters().items())))
    assert layout.fingerprint(rank=2, seed=1) == same.fingerprint(seed=1, rank=2)
    others = [
        layout.fingerprint(),
        layout.fingerprint(rank=2),
        layout.fingerprint(rank=2, seed=2),
        layout.fingerprint(rank="2", seed=1),
        Layout.of(parameters({**SHAPES, "scale": (1,)})).fingerprint(rank=2, seed=1),
        Layout.of(parameters({**SHAPES, "a.lora_A": (3, 2)})).fingerprint(rank=2, seed=1),
        Layout.of(parameters({**SHAPES, "z": ()})).fingerprint(rank=2, seed=1),
    ]
    assert len({layout.fingerprint(rank=2, seed=1), *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, r"missing \['scale'\], not in the layout \[\]"),
        ({"z": torch.ones(1)}, r"missing \[\], not in the layout \['z'\]"),
        ({"a.lora_A": torch.ones(3, 2)}, r"parameter 'a.lora_A': shape \[3, 2\], expected \[2, 3\]"),
        (
            {"a.lora_A": torch.ones(2, 3, dtype=torch.float64)},
            "'a.lora_B': torch.float32, 'a.lora_A' is",
        ),
        ({"a.lora_A": torch.ones(2, 3, dtype=torch.int64)}, "parameter 'a.lora_A': got torch.int64"),
        ({"a.lora_A": [1.0]}, "parameter 'a.lora_A': got list"),
    ],
)
def test_parameters_that_do_not_fit(change, message):
    layout = Layout.of(parameters())
    changed = {name: value for name, value in {**parameters(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        layout.flatten(changed)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(15), r"flat vector: shape \[15\], expected \[16\]"),
        (torch.ones(1, 16), r"shape \[1, 16\]"),
        (torch.ones(16, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_vectors_that_do_not_fit(vector, message):
    with pytest.raises(ValueError, match=message):
        Layout.of(parameters()).unflatten(vector)


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        ((), (), "0 names, 0 shapes"),
        (("a",), (), "1 names, 0 shapes"),
        (("b", "a"), ((1,), (1,)), "expected sorted names"),
        (("a", "a"), ((1,), (1,)), "expected sorted names, each once"),
        (("a",), ((2, 0),), r"parameter 'a' of shape \[2, 0\] has no entries"),
    ],
)
def test_bad_layouts(names, shapes, message):
    with pytest.raises(ValueError, match=message):
        Layout(names, shapes)


@pytest.mark.parametrize("fact", [float("nan"), float("inf"), None, [1], b"x"])
def test_bad_facts(fact):
    with pytest.raises(ValueError, match=r"fact 'rank': got .*, expected a string or a finite number"):
        Layout.of(parameters()).fingerprint(rank=fact)


def test_where_says_which_coordinates_are_of_which_parameters() -> None:
    layout = Layout(("a.lora_A.w", "a.lora_B.w", "b"), ((2, 3), (1, 2), (1,)))
    assert layout.where(lambda name: ".lora_B." in name).tolist() == 6 * [False] + 2 * [True] + [False]
    parts = layout.unflatten(layout.where(lambda name: name == "b").float())
    assert {name: bool(part.all()) for name, part in parts.items()} == {
        "a.lora_A.w": False, "a.lora_B.w": False, "b": True,
    }  # fmt: skip
