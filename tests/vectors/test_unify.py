import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DEVICES, KINDS, assert_close, dims, dtypes, kinds, matrix, seeds

import oracle
from matu.vectors import compiled, unify

tasks = st.integers(1, 12)
# Not the tiny ones: their halves are rounded.
scalable_kinds = st.sampled_from(["normal", "grid", "sparse", "ties"])


def same(first, second):
    """Equal to the last bit, signs of zeros included."""
    return torch.equal(first, second) and torch.equal(first.signbit(), second.signbit())


@pytest.mark.parametrize("device", DEVICES)
def test_hand_computed(device):
    vectors = torch.tensor([[1.0, -2.0, 3.0, 0.0, 1.0], [2.0, 1.0, -1.0, 0.0, -1.0]], device=device)
    unified = unify(vectors)
    assert unified.vector.tolist() == [2.0, -2.0, 3.0, 0.0, 0.0]
    assert unified.masks.tolist() == [[True, True, True, False, False], [True, False, False, False, False]]
    assert unified.rescalers.tolist() == [7 / 7, 5 / 2]
    assert unified.modulate(1).tolist() == [5.0, 0.0, 0.0, 0.0, 0.0]
    assert unified.vector.device == unified.masks.device == unified.rescalers.device == vectors.device
    assert (unified.count, unified.dim) == (2, 5)


@given(seeds, tasks, dims, kinds, dtypes)
def test_oracle(seed, count, dim, kind, dtype):
    vectors = matrix(seed, count, dim, kind, dtype)
    unified = unify(vectors)
    vector, masks, rescalers = oracle.unify(vectors.tolist())
    assert unified.vector.dtype == unified.rescalers.dtype == dtype
    # Elected entries are entries of the input: nothing is rounded.
    assert unified.vector.tolist() == vector
    assert unified.masks.tolist() == masks
    torch.testing.assert_close(
        unified.rescalers.double(),
        torch.tensor(rescalers, dtype=torch.float64),
        rtol=1e-12 if dtype == torch.float64 else 1e-6,
        atol=torch.finfo(dtype).tiny,
    )
    for i in range(count):
        expected = oracle.modulate(vector, masks[i], rescalers[i])
        assert_close(unified.modulate(i), expected, dtype)
        assert unified.modulate(i).dtype == dtype


@given(seeds, dims, kinds, dtypes)
def test_one_task_comes_back_unchanged(seed, dim, kind, dtype):
    vectors = matrix(seed, 1, dim, kind, dtype)
    unified = unify(vectors)
    assert torch.equal(unified.modulate(0), vectors[0])
    assert torch.equal(unified.masks[0], vectors[0] != 0)
    assert unified.rescalers.tolist() == [1.0 if vectors.any() else 0.0]


@given(seeds, tasks, dims, kinds, dtypes)
def test_permuting_tasks_permutes_modulators_and_no_bit_changes(seed, count, dim, kind, dtype):
    vectors = matrix(seed, count, dim, kind, dtype)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    unified, permuted = unify(vectors), unify(vectors[order])
    assert same(permuted.vector, unified.vector)
    assert torch.equal(permuted.masks, unified.masks[order])
    assert same(permuted.rescalers, unified.rescalers[order])


@given(seeds, tasks, dims, scalable_kinds, dtypes, st.integers(-20, 20))
def test_scaling_scales_the_vector_alone(seed, count, dim, kind, dtype, exponent):
    vectors = matrix(seed, count, dim, kind, dtype)
    for factor in (2.0**exponent, -(2.0**exponent)):
        unified, scaled = unify(vectors), unify(factor * vectors)
        assert torch.equal(scaled.vector, factor * unified.vector)
        assert torch.equal(scaled.masks, unified.masks)
        assert torch.equal(scaled.rescalers, unified.rescalers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_vectors(dtype):
    unified = unify(torch.tensor([[0.0, -0.0], [-0.0, 0.0]], dtype=dtype))
    assert same(unified.vector, torch.zeros(2, dtype=dtype))
    assert not unified.masks.any()
    assert unified.rescalers.tolist() == [0.0, 0.0]
    assert same(unified.modulate(0), torch.zeros(2, dtype=dtype))


def test_a_task_without_agreement_gets_rescaler_zero():
    unified = unify(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]))
    assert unified.masks.tolist() == [[True, False], [False, False]]
    assert unified.rescalers.tolist() == [1.0, 0.0]


def test_masks_survive_products_that_underflow():
    unified = unify(torch.tensor([[1e-45, -1e-30], [1e-40, -1e-38]]))
    assert unified.masks.all()


@pytest.mark.parametrize(
    ("column", "sign"),
    [
        ([1e16, 1.0, -1e16], 1),
        ([1e300, -1e-300, -1e300], -1),
        ([0.1, 0.2, -0.3], 1),
        ([1e308, 1e308, -1e308, -1e308], 0),
        ([1e308, 1e308, -1e308, -1e308, 5e-324], 1),
        ([1e308, 1e308, 1e308, -1e308], 1),
        ([2.0**53, 1.0, 1.0, -(2.0**53), -2.0], 0),
    ],
)
def test_elected_sign_is_that_of_the_exact_sum_in_any_order(column, sign):
    for order in itertools.permutations(column):
        vector = unify(torch.tensor(order, dtype=torch.float64)[:, None]).vector
        assert vector.item() == sign * max((abs(x) for x in column if x * sign > 0), default=0)


def test_float32_sum_is_taken_exactly():
    # In float32, and in float64, the second task would be lost beside the first.
    vectors = torch.tensor([[1e30], [1e-30], [-1e30]])
    assert unify(vectors).vector.item() == pytest.approx(1e30)


def test_sums_beyond_float64_do_not_spoil_the_rescaler():
    vectors = torch.full((2, 100_000), 1.5e308, dtype=torch.float64)
    assert unify(vectors).rescalers.tolist() == [1.0, 1.0]
    assert unify(vectors[:1]).rescalers.tolist() == [1.0]


@pytest.mark.parametrize("count", [1, 3])
def test_layout_in_memory_and_gradient_do_not_matter(count):
    vectors = matrix(2, count, 100_003, "normal", torch.float32)
    strided = torch.empty(100_003, 2 * count).T[::2].copy_(vectors).requires_grad_()
    unified, other = unify(vectors), unify(strided)
    assert torch.equal(other.vector, unified.vector)
    assert torch.equal(other.rescalers, unified.rescalers)
    assert other.masks.is_contiguous()
    assert not other.vector.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks(kind):
    vectors = matrix(1, 3, 70_000, kind, torch.float32)
    unified = unify(vectors)
    parts = [unify(part) for part in vectors.split(9_999, dim=1)]
    assert torch.equal(unified.vector, torch.cat([part.vector for part in parts]))
    assert torch.equal(unified.masks, torch.cat([part.masks for part in parts], dim=1))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0]], "got list, expected a torch.Tensor"),
        (torch.ones(3), r"shape \[3\], expected \[tasks, d\]"),
        (torch.ones(0, 3), r"shape \[0, 3\]"),
        (torch.ones(3, 0), r"shape \[3, 0\]"),
        (torch.ones(1, 3, dtype=torch.int64), "got torch.int64, expected torch.float32 or torch.float64"),
        (torch.ones(1, 3, dtype=torch.float16), "got torch.float16"),
        (torch.tensor([[0.0, 1.0], [2.0, torch.nan]]), r"nan at index \[1, 1\]"),
        (torch.tensor([[0.0, 1.0, -torch.inf]]), r"-inf at index \[0, 2\]"),
        (torch.tensor([[1e30, 1e-30], [-2e30, 0.0]]), "row 0 needs the rescaler 1e\\+60, beyond"),
    ],
)
def test_bad_input(vectors, message):
    with pytest.raises(ValueError, match=message):
        unify(vectors)


@given(seeds, tasks, st.integers(1, 300), kinds, dtypes)
def test_compiled_loops_give_the_same_bits(seed, count, dim, kind, dtype):
    vectors = matrix(seed, count, dim, kind, dtype)
    expected = unify(vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "FROM_DIM", 1)
        assert compiled.pays(dim, vectors)
        found = unify(vectors)
    assert same(found.vector, expected.vector)
    assert torch.equal(found.masks, expected.masks)
    assert same(found.rescalers, expected.rescalers)


def test_without_numba_torch_does_it(monkeypatch):
    monkeypatch.setattr(compiled, "FROM_DIM", 1)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert not compiled.pays(1)


def test_a_rescaler_beyond_what_it_may_be_is_cut_before_it_leaves_its_type() -> None:
    """A task that disagrees almost everywhere; its ratio, 7e39, is more than a float32 holds."""
    vectors = torch.tensor([[2.0**38, 0.0], [-1e-5, 1e-45]])
    with pytest.raises(ValueError, match="row 1 needs the rescaler"):
        unify(vectors)
    assert unify(vectors, most=1e6).rescalers.tolist() == [1.0, 1e6]
