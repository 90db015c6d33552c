import dataclasses
import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file
from vector_cases import DEVICES, assert_close, dims, dtypes, held_tasks, kinds, matrix, message, seeds

import oracle
from matu.vectors import ExactSum, MeanAccumulator, RoundAccumulator, Unified, compiled, unify
from matu.vectors.accumulate import WAITING_BYTES

clients = st.integers(1, 40)
task_counts = st.integers(1, 12)


def names(count):
    return [f"task{i}" for i in range(count)]


def unified(vector, masks, rescalers):
    return Unified(torch.tensor(vector), torch.tensor(masks), torch.tensor(rescalers))


def updates_of(seed, tasks, count, dim, exact=False, dtype=torch.float64):
    """Return [(tasks, Unified, samples)], one a client."""
    rng = np.random.default_rng(seed)
    updates = []
    for i, held in enumerate(held_tasks(seed, tasks, count, dim)):
        vector, masks, rescalers = message((seed, i), len(held), dim, exact)
        samples = rng.integers(1, 100, len(held)).tolist()
        updates.append((held, Unified(vector.to(dtype), masks, rescalers.to(dtype)), samples))
    return updates


def trained_updates(rng, seed, tasks, count, dim, kind, dtype):
    """The same of vectors that clients unify themselves."""
    updates = []
    for i, held in enumerate(held_tasks(seed, tasks, count, dim)):
        u = unify(matrix((seed, i), len(held), dim, kind, dtype))
        updates.append((held, u, rng.integers(1, 1000, len(held)).tolist()))
    return updates


def as_lists(updates):
    return [(held, u.vector.tolist(), u.masks.tolist(), u.rescalers.tolist(), samples) for held, u, samples in updates]


def means_of(tasks, dim, updates, threshold=0.4, device="cpu"):
    accumulator = RoundAccumulator(tasks, dim, threshold, device)
    for held, u, samples in updates:
        accumulator.add(held, u, samples)
    return accumulator.means()


def assert_same(first, second):
    assert (first.tasks, first.samples, first.holders) == (second.tasks, second.samples, second.holders)
    assert torch.equal(first.vectors.view(torch.int64), second.vectors.view(torch.int64))
    assert torch.equal(first.task_masks, second.task_masks)


@pytest.mark.parametrize("device", DEVICES)
def test_hand_computed(device):
    accumulator = RoundAccumulator(tasks=["a", "b", "c"], dim=3, agreement_threshold=0.4, device=device)
    first = unified([1.0, -2.0, 4.0], [[True, True, False], [True, True, True]], [2.0, 1.0])
    second = unified([1.0, 2.0, 8.0], [[True, True, True]], [0.5])
    accumulator.add(tasks=["c", "a"], unified=first, samples=[1, 30])
    accumulator.add(tasks=["a"], unified=second, samples=[10])
    means = accumulator.means()
    assert means.tasks == ("a", "c")
    assert means.samples == (40, 1)
    assert means.holders == (2, 1)
    # Task a: (30 · 1 · 1 + 10 · 0.5 · 1) / 40; opposite signs; (30 · 4 + 10 · 0.5 · 8) / 40.
    assert means.vectors.tolist() == [[0.875, 0.0, 4.0], [2.0, -4.0, 0.0]]
    assert means.task_masks.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert means.vectors.dtype == means.task_masks.dtype == torch.float64
    assert means.vectors.device.type == torch.device(device).type


@pytest.mark.parametrize(("threshold", "expected"), [(0.4, 1.0), (0.41, 0.4), (0.0, 1.0), (1.0, 0.4), (0.39999, 1.0)])
def test_agreement_at_the_threshold_counts(threshold, expected):
    signs = [1.0, 1.0, 1.0, -1.0, 0.0]
    updates = [(["a"], unified([s], [[True]], [1.0]), [1]) for s in signs]
    means = means_of(["a"], 1, updates, threshold)
    assert means.task_masks.item() == expected
    assert means.vectors.item() == pytest.approx(expected * 0.4)


@given(seeds, task_counts, clients, dims, dtypes, st.sampled_from([0.0, 0.4, 0.5, 1.0]))
def test_oracle(seed, task_count, count, dim, dtype, threshold):
    tasks = names(task_count)
    updates = updates_of(seed, tasks, count, dim, dtype=dtype)
    means = means_of(tasks, dim, updates, threshold)
    expected = oracle.round_means(tasks, as_lists(updates), threshold)
    assert list(means.tasks) == list(expected)
    # The sums are float64 whatever the dtype that arrives.
    assert_close(means.vectors, [vector for vector, _ in expected.values()], torch.float64)
    assert means.task_masks.tolist() == [task_mask for _, task_mask in expected.values()]


@given(seeds, task_counts, clients, dims, dtypes)
def test_signs_are_exact_where_products_and_sums_are(seed, task_count, count, dim, dtype):
    tasks = names(task_count)
    updates = updates_of(seed, tasks, count, dim, exact=True, dtype=dtype)
    means = means_of(tasks, dim, updates)
    expected = oracle.round_means(tasks, as_lists(updates), 0.4)
    vectors = torch.tensor([vector for vector, _ in expected.values()], dtype=torch.float64)
    assert torch.equal(means.vectors.sign(), vectors.sign())
    torch.testing.assert_close(means.vectors, vectors, rtol=1e-15, atol=0)


@given(seeds, task_counts, clients, st.integers(1, 60), kinds, dtypes)
def test_same_bits_in_any_order_of_arrival(seed, task_count, count, dim, kind, dtype):
    tasks, rng = names(task_count), np.random.default_rng(seed)
    updates = trained_updates(rng, seed, tasks, count, dim, kind, dtype)
    shuffled = [updates[i] for i in rng.permutation(len(updates))]
    assert_same(means_of(tasks, dim, shuffled), means_of(tasks, dim, updates))


def test_every_order_of_wild_updates():
    vectors = [1e30, -1e30, 1e-30, 1.0, -1e-12]
    updates = [(["a"], unified([x], [[True]], [1 / 3]), [7]) for x in vectors]
    expected = means_of(["a"], 1, updates)
    for order in itertools.permutations(updates):
        assert_same(means_of(["a"], 1, order), expected)


@given(seeds, task_counts, clients, st.integers(1, 60))
def test_permuting_tasks_permutes_the_means(seed, task_count, count, dim):
    tasks = names(task_count)
    updates = updates_of(seed, tasks, count, dim)
    means, reverse = means_of(tasks, dim, updates), means_of(tasks[::-1], dim, updates)
    assert reverse.tasks == means.tasks[::-1]
    assert torch.equal(reverse.vectors, means.vectors.flip(0))
    assert torch.equal(reverse.task_masks, means.task_masks.flip(0))


@given(seeds, task_counts, st.integers(1, 10), st.integers(1, 60), st.integers(-20, 20))
def test_scaling_scales_the_means_alone(seed, task_count, count, dim, exponent):
    tasks = names(task_count)
    updates = updates_of(seed, tasks, count, dim, exact=True)
    factor = -(2.0**exponent)
    scaled = [(held, dataclasses.replace(u, vector=factor * u.vector), n) for held, u, n in updates]
    first, second = means_of(tasks, dim, updates), means_of(tasks, dim, scaled)
    assert torch.equal(second.vectors, factor * first.vectors)
    assert torch.equal(second.task_masks, first.task_masks)


@given(seeds, dims, kinds, dtypes, st.integers(1, 10**6))
def test_one_holder_of_one_task_gives_its_vector(seed, dim, kind, dtype, samples):
    vectors = matrix(seed, 1, dim, kind, dtype)
    means = means_of(["a"], dim, [(["a"], unify(vectors), [samples])])
    error = (means.vectors[0] - vectors[0].double()).abs()
    # Where bins are at their widest, 44 bits are left of an entry; below 2^-1034 nothing.
    assert bool((error <= 2.0**-44 * vectors[0].double().abs() + 2.0**-1034).all())
    assert torch.equal(means.task_masks[0] == 1, vectors[0] != 0)


def test_no_update_gives_no_means():
    means = RoundAccumulator(["a"], 5).means()
    assert means.tasks == means.samples == means.holders == ()
    assert means.vectors.shape == means.task_masks.shape == (0, 5)


def test_means_may_be_taken_between_updates():
    tasks = names(3)
    updates = updates_of(5, tasks, 6, 20)
    accumulator = RoundAccumulator(tasks, 20)
    for i, (held, u, samples) in enumerate(updates, start=1):
        accumulator.add(held, u, samples)
        assert_same(accumulator.means(), means_of(tasks, 20, updates[:i]))


def live_tensor_bytes():
    gc.collect()
    storages = (t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_clients():
    tasks, dim = names(3), 10_000
    before, sizes = live_tensor_bytes(), []
    accumulator = RoundAccumulator(tasks, dim)
    for client in range(60):
        accumulator.add(tasks, unify(matrix(client, 3, dim, "normal", torch.float32)), [1, 2, 3])
        if client % 7 == 0:
            sizes.append(live_tensor_bytes() - before)
    assert sizes[0] == (4 + 3) * dim, "one client's update is what is held"
    assert max(sizes) <= 3 * (21 + WAITING_BYTES) * dim
    assert max(sizes[:5]) >= max(sizes[5:])
    assert accumulator.means().holders == (60, 60, 60)


@given(seeds, task_counts, clients, st.integers(1, 60), kinds, dtypes)
def test_accumulators_add(seed, task_count, count, dim, kind, dtype):
    """As edge servers or processes fold their sites' updates: one of them passed its sums on as tensors."""
    tasks, rng = names(task_count), np.random.default_rng(seed)
    updates = trained_updates(rng, seed, tasks, count, dim, kind, dtype)
    parts = [RoundAccumulator(tasks, dim) for _ in range(4)]
    for update in updates:
        parts[rng.integers(4)].add(*update)
    passed_on = RoundAccumulator(tasks, dim)
    passed_on.restore(load(save(parts[0].tensors())))
    whole = (passed_on + parts[1]) + (parts[2] + parts[3])
    assert_same(whole.means(), means_of(tasks, dim, updates))
    assert_same(parts[1].means(), RoundAccumulator.__add__(parts[1], RoundAccumulator(tasks, dim)).means())


FOLD = """
import sys
import torch
from safetensors.torch import load_file, save_file
from matu.vectors import RoundAccumulator, unify

sums = RoundAccumulator(["a", "b"], 1000)
for i, vectors in sorted(load_file(sys.argv[1]).items()):
    sums.add(["a", "b"], unify(vectors), [int(i) + 1, 7])
save_file(sums.tensors(), sys.argv[2])
"""


def test_four_processes_fold_a_round_to_the_bits_of_one(tmp_path):
    whole, running = RoundAccumulator(["a", "b"], 1000), []
    for process in range(4):
        mine = {str(i): matrix(i, 2, 1000, "wide", torch.float32) for i in range(process, 10, 4)}
        save_file(mine, tmp_path / f"in-{process}")
        for i, vectors in mine.items():
            whole.add(["a", "b"], unify(vectors), [int(i) + 1, 7])
        files = [str(tmp_path / f"{name}-{process}") for name in ("in", "out")]
        running.append(subprocess.Popen([sys.executable, "-c", FOLD, *files]))
    total = RoundAccumulator(["a", "b"], 1000)
    for process, ended in enumerate(running):
        assert ended.wait(120) == 0
        part = RoundAccumulator(["a", "b"], 1000)
        part.restore(load_file(tmp_path / f"out-{process}"))
        total = total + part
    assert_same(total.means(), whole.means())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (RoundAccumulator(["a", "c"], 2), "expected the same"),
        (RoundAccumulator(["a", "b"], 3), "expected the same"),
        (RoundAccumulator(["a", "b"], 2, 0.5), "expected the same"),
    ],
)
def test_accumulators_of_different_rounds_do_not_add(other, message):
    with pytest.raises(ValueError, match=message):
        RoundAccumulator(["a", "b"], 2) + other


def changed(tensors, **parts):
    return {name: parts.get(name.rpartition("/")[2], tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {name.replace("a/", "x/"): part for name, part in t.items()}, "task 'x' is unknown"),
        (lambda t: {name: part for name, part in t.items() if name != "a/high"}, "high"),
        (lambda t: {name: part for name, part in t.items() if name != "a/signs"}, "parts bins"),
        (lambda t: {name: part for name, part in t.items() if name != "a/samples"}, "parts bins"),
        (lambda t: changed(t, low=t["a/low"].float()), "low"),
        (lambda t: changed(t, low=t["a/low"][:1]), "lengths"),
        (lambda t: changed(t, count=torch.tensor([-1])), "count: got -1"),
        (lambda t: changed(t, bins=torch.tensor([46, 0], dtype=torch.int8)), "bins from 0 to 46"),
        (lambda t: changed(t, high=torch.tensor([0, -(1 << 45)])), "high from"),
        (lambda t: changed(t, signs=torch.tensor([2, 0], dtype=torch.int32)), "signs from 0 to 2, no sum of 1 terms"),
        (lambda t: changed(t, count=torch.tensor([1 << 40])), "at most"),
        (lambda t: changed(t, samples=torch.tensor([0])), "samples of task 'a': got 0"),
        (lambda t: {name: part[:1] for name, part in t.items()}, "1 coordinates"),
    ],
)
def test_tensors_that_are_no_sums_are_refused_and_change_nothing(change, message):
    accumulator = RoundAccumulator(["a", "b"], 2)
    accumulator.add(["a"], unified([0.5, 0.25], [[True, True]], [1.0]), [3])
    before = accumulator.means()
    with pytest.raises(ValueError, match=message):
        accumulator.restore(change(accumulator.tensors()))
    assert_same(accumulator.means(), before)


@given(seeds, st.sampled_from([1, 2, 3]), st.integers(1, 40), st.integers(1, 200), kinds, dtypes)
def test_compiled_loops_give_the_same_bits(seed, task_count, count, dim, kind, dtype):
    """Numbers of every size side by side, zeros, masks; more holders than are folded at once."""
    tasks = names(task_count)
    rng = np.random.default_rng(seed)
    updates = []
    for i in range(count):
        held = sorted(rng.choice(tasks, rng.integers(1, task_count + 1), replace=False))
        vectors = matrix((seed, i), len(held), dim, kind, dtype)
        vectors[:, :: int(rng.integers(1, 9))] = 0
        updates.append((held, unify(vectors), rng.integers(1, 1000, len(held)).tolist()))
    expected, parts = means_of(tasks, dim, updates), RoundAccumulator(tasks, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "FROM_DIM", 1)
        assert compiled.pays(dim)
        assert_same(means_of(tasks, dim, updates), expected)
        for number, update in enumerate(updates):
            parts.add(*update)
            if number % 5 == 0:
                parts.tensors()  # folds what waits
        assert_same(parts.means(), expected)
        narrow = parts.means(torch.float32)
        assert torch.equal(narrow.vectors, expected.vectors.float())
        assert torch.equal(narrow.task_masks, expected.task_masks.float())
        heads = MeanAccumulator((dim,))
        plain = ExactSum(dim)
        for _, u, samples in updates:
            heads.add(u.vector, samples[0])
            plain.add(u.vector, samples[0])
        assert torch.equal(heads.mean(), plain.value(heads.samples))


GOOD = unified([1.0, -2.0], [[True, True], [True, False]], [1.0, 2.0])
HUGE = dataclasses.replace(GOOD, vector=torch.full((2,), 1e308, dtype=torch.float64))


def good_but(**parts):
    return dataclasses.replace(GOOD, **parts)


@pytest.mark.parametrize(
    ("tasks", "update", "samples", "message"),
    [
        (["a", "x"], GOOD, [1, 1], "task 'x' is unknown, expected one of a, b, c"),
        (["a", "a"], GOOD, [1, 1], "task 'a' is named 2 times"),
        ("ab", GOOD, [1, 1], "expected a list of at least one task name"),
        ([], GOOD, [], "expected a list of at least one task name"),
        (["a"], GOOD, [1], r"masks: shape \[2, 2\], expected \[1, 2\]"),
        (["a", "b", "c"], GOOD, [1, 1, 1], r"masks: shape \[2, 2\], expected \[3, 2\]"),
        (["a", "b"], GOOD, [1], "samples: 1 counts for 2 tasks"),
        (["a", "b"], GOOD, [1, 0], "samples of task 'b': got 0, expected a whole number of at least 1"),
        (["a", "b"], GOOD, [1, -3], "samples of task 'b': got -3"),
        (["a", "b"], GOOD, [1, 2.5], "samples of task 'b': got 2.5"),
        (["a", "b"], GOOD, [1, True], "samples of task 'b': got True"),
        (["a", "b"], GOOD, [1, 2**54], "samples of task 'b': .* expected at most"),
        (["a", "b"], GOOD, [1, "3"], "samples of task 'b': got '3'"),
        (["a", "b"], good_but(vector=torch.ones(3)), [1, 1], r"unified vector: shape \[3\]"),
        (["a", "b"], good_but(vector=torch.ones(2, 1)), [1, 1], r"shape \[2, 1\]"),
        (["a", "b"], good_but(vector=torch.ones(2).half()), [1, 1], "got torch.float16"),
        (["a", "b"], good_but(vector=torch.tensor([1.0, torch.nan])), [1, 1], "nan at index"),
        (["a", "b"], good_but(vector=torch.tensor([-torch.inf, 1])), [1, 1], "-inf at index"),
        (["a", "b"], good_but(masks=GOOD.masks.float()), [1, 1], "masks: expected a bool"),
        (["a", "b"], good_but(masks=GOOD.masks[:, :1]), [1, 1], r"masks: shape \[2, 1\]"),
        (["a", "b"], good_but(rescalers=torch.ones(3)), [1, 1], r"rescalers: shape \[3\]"),
        (["a", "b"], good_but(rescalers=torch.tensor([1, 2])), [1, 1], "got torch.int64"),
        (["a", "b"], good_but(rescalers=torch.tensor([1.0, -0.5])), [1, 1], "-0.5 at index"),
        (["a", "b"], good_but(rescalers=torch.tensor([1, torch.nan])), [1, 1], "nan at index"),
        (["a", "b"], HUGE, [1, 1], r"task 'b': weight 2 times 1e\+308 overflows float64"),
    ],
)
def test_a_bad_update_changes_nothing(tasks, update, samples, message):
    accumulator = RoundAccumulator(["a", "b", "c"], 2)
    accumulator.add(["a"], unified([0.5, 0.25], [[True, True]], [1.0]), [3])
    before = accumulator.means()
    with pytest.raises(ValueError, match=message):
        accumulator.add(tasks, update, samples)
    assert_same(accumulator.means(), before)


def test_masked_numbers_do_not_overflow():
    huge = unified([1.0, 1e38], [[True, False]], [1.0])
    huge = dataclasses.replace(huge, vector=huge.vector.double() ** 8)
    assert means_of(["a"], 2, [(["a"], huge, [10**6])]).vectors.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "a"], 3), "task 'a' is named 2 times"),
        (([], 3), "at least one task name"),
        (("abc", 3), "expected a list"),
        (([1], 3), "expected a list"),
        ((["a"], 0), "dim: got 0"),
        ((["a"], 2.0), "dim: got 2.0"),
        ((["a"], 3, 1.5), "agreement_threshold: got 1.5, expected a number from 0 to 1"),
        ((["a"], 3, float("nan")), "agreement_threshold: got nan"),
    ],
)
def test_bad_accumulators(arguments, message):
    with pytest.raises(ValueError, match=message):
        RoundAccumulator(*arguments)


@given(seeds, clients, st.integers(1, 8), st.integers(1, 30), kinds, dtypes)
def test_heads_against_the_oracle_in_any_order(seed, count, rows, columns, kind, dtype):
    rng = np.random.default_rng(seed)
    heads = matrix(seed, count, rows * columns, kind, dtype)
    samples = rng.integers(1, 10_000, count).tolist()
    means = []
    for order in (range(count), rng.permutation(count)):
        accumulator = MeanAccumulator((rows, columns))
        for i in order:
            accumulator.add(heads[i].reshape(rows, columns), samples[i])
        assert (accumulator.count, accumulator.samples) == (count, sum(samples))
        means.append(accumulator.mean())
    assert torch.equal(means[0].view(torch.int64), means[1].view(torch.int64))
    assert means[0].dtype == torch.float64
    assert_close(means[0].reshape(-1), oracle.head_mean(heads.tolist(), samples), torch.float64)


def test_hand_computed_head():
    accumulator = MeanAccumulator((2, 1))
    accumulator.add(torch.tensor([[1.0], [2.0]]), 1)
    accumulator.add(torch.tensor([[5.0], [-2.0]], dtype=torch.float64), 3)
    assert accumulator.mean().tolist() == [[4.0], [-1.0]]


@pytest.mark.parametrize(
    ("values", "samples", "message"),
    [
        (torch.ones(3, 2), 1, r"values: shape \[3, 2\], expected \[2, 3\]"),
        (torch.ones(2, 3), 0, "samples: got 0"),
        (torch.ones(2, 3), 1.5, "samples: got 1.5"),
        (torch.full((2, 3), torch.nan), 1, "nan at index"),
        (torch.ones(2, 3, dtype=torch.bfloat16), 1, "got torch.bfloat16"),
        (torch.full((2, 3), 1e308, dtype=torch.float64), 2, "overflows"),
    ],
)
def test_a_bad_head_changes_nothing(values, samples, message):
    accumulator = MeanAccumulator((2, 3))
    with pytest.raises(ValueError, match=message):
        accumulator.add(values, samples)
    assert (accumulator.count, accumulator.samples) == (0, 0)
    with pytest.raises(ValueError, match="mean of no values"):
        accumulator.mean()
