import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DEVICES, KINDS, assert_close, dims, dtypes, kinds, matrix, seeds

import oracle
from matu.vectors import RULES, Agreement, compiled, similarity, similarity_of_rows, transfer, transfer_rows
from matu.vectors.transfer import vote_dtype

tasks = st.integers(1, 12)
rules = st.sampled_from(RULES)
top_ks = st.integers(0, 12)
thresholds = st.sampled_from([0.0, 0.4, 0.5, 0.55, 0.8, 1.0])


def related(seed, count, dim, kind, dtype):
    """Task means that share signs to a degree, so that some S are above a threshold, and their masks."""
    rng = np.random.default_rng(seed)
    vectors = matrix(seed, count, dim, kind)
    common = torch.from_numpy(rng.random((count, dim)) < rng.random((count, 1)))
    vectors = torch.where(common, vectors.abs(), vectors).to(dtype)
    levels = rng.choice([0.0, 0.2, 1 / 3, 1.0], (count, dim), p=[0.1, 0.1, 0.1, 0.7])
    return vectors, torch.from_numpy(levels).to(dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_hand_computed_similarity(device):
    vectors = torch.tensor([[1.0, -2.0, 3.0, 0.0], [2.0, 5.0, 1e-45, 1.0]], device=device)
    # Signs agree twice and differ once; the zero counts for nothing, with itself too.
    expected = [[0.875, 0.625], [0.625, 1.0]]
    assert similarity(vectors).tolist() == expected
    assert similarity(vectors).dtype == torch.float64


@given(seeds, tasks, dims, st.sampled_from(KINDS), dtypes)
def test_similarity_against_the_oracle(seed, count, dim, kind, dtype):
    vectors, _ = related(seed, count, dim, kind, dtype)
    rows = vectors.tolist()
    assert similarity(vectors).tolist() == [[oracle.similarity(a, b) for b in rows] for a in rows]


def test_similarity_over_many_blocks_counts_every_entry():
    signs = torch.ones(2, 1_000_003)
    signs[1, ::3] = -1
    assert similarity(signs)[0, 1].item() == 0.5 * ((1_000_003 - 2 * 333_335) / 1_000_003 + 1)


def test_autocast_and_low_matmul_precision_change_nothing():
    vectors, task_masks = related(1, 3, 70_001, "normal", torch.float32)
    expected = similarity(vectors), transfer(vectors, task_masks)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(similarity(vectors), expected[0])
            assert torch.equal(transfer(vectors, task_masks), expected[1])
    finally:
        torch.set_float32_matmul_precision(precision)


@given(seeds, tasks, dims, kinds, st.integers(-20, 20))
def test_similarity_of_permuted_and_scaled_tasks(seed, count, dim, kind, exponent):
    vectors, _ = related(seed, count, dim, kind, torch.float64)
    expected = similarity(vectors)
    assert torch.equal(expected, expected.T)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(similarity(vectors[order]), expected[order][:, order])
    if kind != "tiny":
        assert torch.equal(similarity(-(2.0**exponent) * vectors), expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("average", [[1.25, 2.5, 1.5, 0.5], [1.5, 2.0, 3.0, -2.0], [1.0, 2.0, -1.0, 1.5]]),
        ("half_sum", [[1.625, 3.25, 1.25, 0.5], [1.375, 1.75, 2.5, -2.0], [0.875, 2.0, -1.5, 1.375]]),
        ("literal", [[3.25, 6.5, 2.5, 1.0], [2.75, 3.5, 5.0, -4.0], [1.75, 4.0, -3.0, 2.75]]),
        ("off", [[1.0, 2.0, 4.0, 1.0], [2.0, 2.0, 2.0, -4.0], [1.0, 4.0, -6.0, 2.0]]),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_hand_computed_rules(rule, expected, device):
    # S(0,1) = S(0,2) = 0.75; S(1,2) = 0.5 is not above the threshold: Z = {1, 2}, {0}, {0}.
    # Eq. 6 as printed for task 0: 0.75 · (3, 6, -4, -2) ⊙ m̂; an average divides it by 1.5.
    vectors = torch.tensor([[1.0, 2, 4, 1], [2, 2, 2, -4], [1, 4, -6, 2]], device=device)
    task_masks = torch.tensor([[1, 1, 0.5, 0], [1, 1, 1, 0], [1, 0, 1, 1]], device=device)
    new = transfer(vectors, task_masks, rule=rule)
    assert new.tolist() == expected
    assert new.device == vectors.device


@given(seeds, tasks, dims, kinds, dtypes, top_ks, thresholds, rules)
def test_oracle(seed, count, dim, kind, dtype, top_k, threshold, rule):
    vectors, task_masks = related(seed, count, dim, kind, dtype)
    new = transfer(vectors, task_masks, top_k, threshold, rule)
    assert new.dtype == dtype
    expected = oracle.transfer(vectors.tolist(), task_masks.tolist(), top_k, threshold, rule)
    assert_close(new, expected, dtype)


@given(seeds, tasks, dims, kinds, dtypes, top_ks, thresholds, rules, st.integers(1, 400))
def test_rows_votes_and_compiled_loops_give_the_same_bits(
    seed, count, dim, kind, dtype, top_k, threshold, rule, holders
):
    rows = list(related(seed, count, dim, kind, dtype)[0])
    votes = torch.randint(0, holders + 1, (count, dim), generator=torch.Generator().manual_seed(seed))
    agreements = [Agreement(row.to(vote_dtype(holders)), holders, 0.4) for row in votes]
    masks = torch.stack([agreement.mask(dtype) for agreement in agreements])
    assert masks.tolist() == [[oracle_mask(v, holders, dtype) for v in row] for row in votes.tolist()]
    options, lists = (top_k, threshold, rule), [row.tolist() for row in rows]
    expected = transfer(torch.stack(rows), masks, *options)
    wanted = range(count)[::-2]
    for from_dim in (compiled.FROM_DIM, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "FROM_DIM", from_dim)
            assert torch.equal(transfer(torch.stack(rows), masks, *options), expected)
            assert similarity_of_rows(rows).tolist() == [[oracle.similarity(a, b) for b in lists] for a in lists]
            found = transfer_rows(rows, agreements, similarity_of_rows(rows), *options, wanted=wanted)
        assert all(torch.equal(new, expected[t]) for new, t in zip(found, wanted, strict=True))


def oracle_mask(votes, holders, dtype):
    """Eq. 3 of one coordinate, rounded to the type."""
    share = votes / holders
    return torch.tensor(1.0 if share >= 0.4 else share, dtype=dtype).item()


def test_more_votes_than_holders_are_refused():
    with pytest.raises(ValueError, match="votes: 0 to 4 of 3 holders"):
        Agreement(torch.tensor([0, 4], dtype=torch.uint8), 3, 0.4)


@given(seeds, tasks, dims, dtypes, top_ks, thresholds, rules)
def test_permuting_tasks_permutes_the_result(seed, count, dim, dtype, top_k, threshold, rule):
    vectors, task_masks = related(seed, count, dim, "normal", dtype)
    rows = similarity(vectors).tolist()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    new = transfer(vectors, task_masks, top_k, threshold, rule)
    permuted = transfer(vectors[order], task_masks[order], top_k, threshold, rule)
    for position, t in enumerate(order.tolist()):
        others = [s for other, s in enumerate(rows[t]) if other != t]
        # Equal similarities go in task order: then which is left out, or added last, may differ.
        if len(set(others)) == len(others):
            assert torch.equal(permuted[position], new[t])


@given(seeds, tasks, dims, top_ks, rules, st.integers(-20, 20))
def test_scaling_scales_the_result(seed, count, dim, top_k, rule, exponent):
    vectors, task_masks = related(seed, count, dim, "normal", torch.float64)
    factor = -(2.0**exponent)
    scaled = transfer(factor * vectors, task_masks, top_k, 0.5, rule)
    assert torch.equal(scaled, factor * transfer(vectors, task_masks, top_k, 0.5, rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"top_k": 0}, {"threshold": 1.0}])
def test_without_similar_tasks_the_mean_stays(rule, options):
    vectors, task_masks = related(3, 4, 50, "normal", torch.float32)
    vectors[1] = vectors[0]
    assert torch.equal(transfer(vectors, task_masks, rule=rule, **options), vectors)
    assert torch.equal(transfer(vectors[:1], task_masks[:1], rule=rule), vectors[:1])


def test_the_threshold_is_strict_and_a_task_is_not_similar_to_itself():
    # One sign of two agrees: S = 0.5 exactly.
    vectors = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    task_masks = torch.ones(2, 2)
    assert torch.equal(transfer(vectors, task_masks, threshold=0.5), vectors)
    assert transfer(vectors, task_masks, threshold=math.nextafter(0.5, 0)).tolist() == [[1, 0], [1, 0]]


def test_equals_go_in_task_order_and_the_rest_is_cut():
    # Tasks 1, 2 and 3 are equally similar to task 0; κ = 2 keeps 1 and 2.
    vectors = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    new = transfer(vectors, torch.ones(4, 1), top_k=2)
    assert new[:, 0].tolist() == [0.5 * (1 + 55), 0.5 * (10 + 50.5), 0.5 * (100 + 5.5), 0.5 * (1000 + 5.5)]


def test_the_most_similar_come_first():
    ones = torch.ones(8)
    vectors = torch.stack([ones, 2 * ones, 3 * ones])
    vectors[1, :2] = -1
    vectors[2, :1] = -1
    new = transfer(vectors, torch.ones(3, 8), top_k=1)
    assert torch.equal(new[0], 0.5 * (vectors[0] + vectors[2]))


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_alone(rule):
    vectors, task_masks = related(4, 5, 40, "normal", torch.float64)
    copies = vectors.clone(), task_masks.clone()
    new = transfer(vectors, task_masks, rule=rule)
    new.zero_()
    assert torch.equal(vectors, copies[0])
    assert torch.equal(task_masks, copies[1])


def test_an_average_of_large_numbers_does_not_overflow():
    vectors = torch.full((4, 3), 1.5e308, dtype=torch.float64)
    new = transfer(vectors, torch.ones(4, 3), rule="average")
    torch.testing.assert_close(new, vectors)
    with pytest.raises(ValueError, match="rule 'literal', beyond the range"):
        transfer(vectors, torch.ones(4, 3), rule="literal")


@pytest.mark.parametrize("rule", ["average", "half_sum", "literal"])
def test_norm_grows_as_the_method_says_without_training(rule):
    """Ten rounds of four equal tasks with κ = 3: S = 1, so the factor a round is 1, 2 or 4."""
    vectors = torch.ones(4, 6, dtype=torch.float64)
    for _ in range(10):
        vectors = transfer(vectors, torch.ones(4, 6), rule=rule)
    factor = {"average": 1, "half_sum": 2, "literal": 4}[rule]
    torch.testing.assert_close(vectors, torch.full((4, 6), float(factor) ** 10, dtype=torch.float64))


GOOD = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("vectors", "task_masks", "options", "message"),
    [
        (torch.ones(3), GOOD, {}, r"task vectors: shape \[3\]"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, r"task vectors: shape \[0, 3\]"),
        (torch.ones(2, 3, dtype=torch.int64), GOOD, {}, "task vectors: got torch.int64"),
        (torch.tensor([[0.0, torch.inf]]), GOOD, {}, r"task vectors: inf at index \[0, 1\]"),
        (GOOD, torch.ones(3, 2), {}, r"task masks: shape \[3, 2\], expected \[2, 3\]"),
        (GOOD, torch.ones(2, 3, dtype=torch.bool), {}, "task masks: got torch.bool"),
        (GOOD, GOOD * torch.nan, {}, "task masks: nan at index"),
        (GOOD, GOOD * 1.5, {}, "task masks: from 1.5 to 1.5, expected numbers from 0 to 1"),
        (GOOD, -GOOD, {}, "task masks: from -1 to -1"),
        (GOOD, GOOD, {"top_k": -1}, "top_k: got -1, expected a whole number of at least 0"),
        (GOOD, GOOD, {"top_k": 1.5}, "top_k: got 1.5"),
        (GOOD, GOOD, {"threshold": float("nan")}, "threshold: got nan, expected a number from 0 to 1"),
        (GOOD, GOOD, {"threshold": -0.1}, "threshold: got -0.1"),
        (GOOD, GOOD, {"rule": "mean"}, "rule: got 'mean', expected one of average, half_sum, literal, off"),
    ],
)
def test_bad_input(vectors, task_masks, options, message):
    with pytest.raises(ValueError, match=message):
        transfer(vectors, task_masks, **options)
