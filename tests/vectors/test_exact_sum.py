import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DEVICES, seeds

from matu.vectors.blocks import BLOCK
from matu.vectors.exact_sum import DIGIT_BITS, MAX_TERMS, ExactSum

LOWEST = Fraction(1, 2**1034)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-22, 2.0**22, -(2.0**22), 5e-324, -1e-310, 1e-300, 1e300, -1e300, 1e-30]


def exact_sum(terms, device="cpu"):
    total = ExactSum(terms[0].shape[0], device)
    for term in terms:
        total.add(term.to(device))
    return total


def bits(total):
    return total.value().cpu().view(torch.int64)


def wild(seed, count, dim):
    """Terms of any magnitude, some equal and opposite."""
    rng = np.random.default_rng(seed)
    spread = rng.choice([1, 10, 50, 300])
    terms = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-spread, spread, (count, dim))
    special = rng.random((count, dim)) < 0.2
    terms[special] = rng.choice(SPECIAL, int(special.sum()))
    opposite = (rng.random(dim) < 0.3) & (count > 1)
    terms[-1, opposite] = -terms[0, opposite]
    return torch.from_numpy(terms)


@given(seeds, st.integers(1, 40), st.integers(1, 60))
def test_against_fractions(seed, count, dim):
    terms = wild(seed, count, dim)
    value = exact_sum(terms).value().tolist()
    for column, actual in zip(terms.T.tolist(), value, strict=True):
        exact = sum(map(Fraction, column))
        largest = max(abs(Fraction(x)) for x in column)
        bound = count * max(largest / 2**DIGIT_BITS, LOWEST) + abs(exact) / 2**51
        assert abs(Fraction(actual) - exact) <= bound


@given(seeds, st.integers(1, 40), st.integers(1, 60))
def test_same_bits_in_any_order_and_grouping(seed, count, dim):
    terms = wild(seed, count, dim)
    generator = torch.Generator().manual_seed(seed)
    expected = bits(exact_sum(terms))
    shuffled = terms[torch.randperm(count, generator=generator)]
    assert torch.equal(bits(exact_sum(shuffled)), expected)
    cut = int(torch.randint(count + 1, (1,), generator=generator))
    left, right = ExactSum(dim), ExactSum(dim)
    for i, term in enumerate(shuffled):
        (left if i < cut else right).add(term)
    left.merge(right)
    assert left.count == count
    assert torch.equal(bits(left), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_every_order_of_wild_terms(device):
    column = [1e300, -1e300, 1e-300, 3.0, 2.0**-40, -5e-324]
    expected = None
    for order in itertools.permutations(column):
        total = bits(exact_sum(torch.tensor(order, dtype=torch.float64)[:, None], device))
        assert expected is None or torch.equal(total, expected)
        expected = total


def test_terms_far_apart_keep_44_bits_below_the_largest():
    total = exact_sum(torch.tensor([[2.0**22], [1.0], [2.0**-22], [2.0**-23]], dtype=torch.float64))
    # 2^22 opens the bin above 2^22, whose lower digit counts in steps of 2^-22.
    assert total.value().item() == 2.0**22 + 1 + 2.0**-22


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_power_of_two_is_kept(sign):
    powers = sign * torch.tensor([2.0**e for e in range(-1034, 1024)], dtype=torch.float64)
    total = exact_sum([powers, torch.zeros_like(powers)])
    assert torch.equal(total.value(), powers)
    total.add(-powers)
    assert torch.equal(bits(total), torch.zeros(len(powers), dtype=torch.int64))


def test_numbers_within_44_bits_are_summed_exactly_when_they_cancel():
    total = exact_sum(torch.tensor([[1.0], [2.0**-40], [-1.0]], dtype=torch.float64))
    assert total.value().item() == 2.0**-40


def test_division_comes_before_overflow():
    total = exact_sum(torch.full((3, 2), 1.5e308, dtype=torch.float64))
    assert total.value(3).tolist() == [1.5e308] * 2
    assert total.value().tolist() == [torch.inf] * 2


def test_weights_multiply_in_float64():
    total = ExactSum(1)
    total.add(torch.tensor([0.1], dtype=torch.float32), 3.0)
    assert total.value().item() == float(np.float32(0.1)) * 3.0


def test_bins_that_rise_in_one_block_leave_the_others_alone():
    dim = 2 * BLOCK + 3
    terms = torch.ones(3, dim, dtype=torch.float64)
    terms[1, BLOCK + 1] = 1e100
    terms[2, BLOCK + 1] = -1e100
    expected = torch.full((dim,), 3.0, dtype=torch.float64)
    # Below the grid of 1e100 nothing is left of the ones.
    expected[BLOCK + 1] = 0
    assert torch.equal(exact_sum(terms).value(), expected)


def test_no_more_terms_than_fit():
    total = ExactSum(2)
    total.count = MAX_TERMS - 1
    # The largest digit there is, as if all terms had been so.
    term = torch.tensor([2.0**66 - 2.0**14, -(2.0**22) + 2.0**-30], dtype=torch.float64)
    total.add(term)
    with pytest.raises(ValueError, match=f"{MAX_TERMS} \\+ 1 terms, at most {MAX_TERMS}"):
        total.add(term)
    with pytest.raises(ValueError, match="terms, at most"):
        exact_sum([term]).merge(total)
    assert total.value().tolist() == term.tolist()


def test_digits_do_not_wrap_at_the_largest_count():
    total = ExactSum(1)
    term = torch.tensor([2.0**66 - 2.0**14], dtype=torch.float64)
    total.add(term)
    # Doubling by merging with itself reaches the limit in few steps.
    while total.count < MAX_TERMS:
        total.merge(total)
    assert total.count == MAX_TERMS
    assert total.value().item() == pytest.approx(MAX_TERMS * term.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "weight", "message"),
    [
        (torch.ones(2), 1.0, r"values: shape \[2\], expected \[3\]"),
        (torch.ones(1, 3), 1.0, r"shape \[1, 3\]"),
        (torch.ones(3, dtype=torch.int32), 1.0, "got torch.int32"),
        (torch.tensor([0.0, torch.nan, 1.0]), 1.0, r"nan at index \[1\]"),
        (torch.tensor([0.0, 1.0, torch.inf]), 1.0, r"inf at index \[2\]"),
        (torch.full((3,), 1e300, dtype=torch.float64), 1e10, r"weight 1e\+10 times 1e\+300 overflows"),
        (torch.ones(3), float("nan"), "weight nan"),
    ],
)
def test_bad_terms_change_nothing(values, weight, message):
    total = exact_sum(torch.ones(1, 3, dtype=torch.float64))
    before = bits(total)
    with pytest.raises(ValueError, match=message):
        total.add(values, weight)
    assert total.count == 1
    assert torch.equal(bits(total), before)
