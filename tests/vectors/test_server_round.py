"""Whole rounds of the server against the oracle: fold in, keep the absent, transfer, unify for clients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_cases import DEVICES, assert_close, dims, dtypes, held_tasks, matrix, message, seeds

import oracle
from matu.vectors import (
    RULES,
    ExactSum,
    RoundAccumulator,
    Unified,
    compiled,
    similarity_of_rows,
    transfer,
    transfer_rows,
    unify,
)
from matu.vectors.exact_sum import Term

task_counts = st.integers(1, 12)
clients = st.integers(1, 40)
rules = st.sampled_from(RULES)
top_ks = st.integers(0, 11)


def updates_of(seed, tasks, count, dim, exact):
    """Messages of one round: drawn so that sums are exact, or from clients that unify what they trained."""
    rng = np.random.default_rng(seed)
    updates = []
    for i, held in enumerate(held_tasks(seed, tasks, count, dim)):
        if exact:
            update = Unified(*message((*seed, i), len(held), dim, exact=True))
        else:
            update = unify(matrix((*seed, i), len(held), dim, "normal"))
        updates.append((held, update, rng.integers(1, 200, len(held)).tolist()))
    return updates


def fast_rounds(tasks, dim, rounds, dtype, **options):
    """Return the tasks seen and their new vectors after some rounds."""
    kept = {}
    for updates in rounds:
        accumulator = RoundAccumulator(tasks, dim)
        for held, update, samples in updates:
            accumulator.add(held, update, samples)
        means = accumulator.means()
        kept |= dict(zip(means.tasks, zip(means.vectors, means.task_masks, strict=True), strict=True))
    seen = [task for task in tasks if task in kept]
    vectors = torch.stack([kept[task][0] for task in seen]).to(dtype)
    task_masks = torch.stack([kept[task][1] for task in seen]).to(dtype)
    return seen, transfer(vectors, task_masks, **options)


def slow_rounds(tasks, rounds, **options):
    kept = {}
    for updates in rounds:
        lists = [
            (held, update.vector.tolist(), update.masks.tolist(), update.rescalers.tolist(), samples)
            for held, update, samples in updates
        ]
        kept |= oracle.round_means(tasks, lists, 0.4)
    seen = [task for task in tasks if task in kept]
    vectors = oracle.transfer([kept[t][0] for t in seen], [kept[t][1] for t in seen], **options)
    return seen, vectors


@given(seeds, task_counts, clients, dims, dtypes, top_ks, rules)
def test_new_task_vectors_over_two_rounds(seed, task_count, count, dim, dtype, top_k, rule):
    tasks = [f"task{i}" for i in range(task_count)]
    rounds = [updates_of((seed, r), tasks, count, dim, exact=True) for r in range(2)]
    seen, vectors = fast_rounds(tasks, dim, rounds, dtype, top_k=top_k, rule=rule)
    expected_seen, expected = slow_rounds(tasks, rounds, top_k=top_k, rule=rule)
    assert seen == expected_seen
    assert_close(vectors, expected, dtype)


@given(seeds, task_counts, st.integers(1, 10), st.integers(1, 300), top_ks, rules)
def test_from_what_clients_train_to_what_they_get(seed, task_count, count, dim, top_k, rule):
    tasks = [f"task{i}" for i in range(task_count)]
    rounds = [updates_of((seed, r), tasks, count, dim, exact=False) for r in range(2)]
    seen, vectors = fast_rounds(tasks, dim, rounds, torch.float64, top_k=top_k, rule=rule)
    _, expected = slow_rounds(tasks, rounds, top_k=top_k, rule=rule)
    for held, _, _ in rounds[-1]:
        received = unify(vectors[[seen.index(task) for task in held]])
        vector, masks, rescalers = oracle.downlink(seen, expected, held)
        assert_close(received.vector, vector, torch.float64)
        assert received.masks.tolist() == masks
        assert_close(received.rescalers, rescalers, torch.float64)
        for i in range(len(held)):
            delivered = oracle.modulate(vector, masks[i], rescalers[i])
            assert_close(received.modulate(i), delivered, torch.float64)


def test_full_size(monkeypatch):
    """40 clients, 12 tasks, d = 5,000 at once."""
    monkeypatch.setattr("vector_cases.BUDGET", 40 * 5000)
    tasks = [f"task{i}" for i in range(12)]
    rounds = [updates_of((7, 0), tasks, 40, 5000, exact=True)]
    assert len(rounds[0]) == 40
    seen, vectors = fast_rounds(tasks, 5000, rounds, torch.float64)
    expected_seen, expected = slow_rounds(tasks, rounds)
    assert seen == expected_seen == tasks
    assert_close(vectors, expected, torch.float64)


def all_of_a_round(updates, dim, device):
    """Every tensor that the server comes to, on the CPU."""
    sums = RoundAccumulator(["a", "b", "c"], dim, device=device)
    for held, update, samples in updates:
        on = Unified(*(part.to(device) for part in (update.vector, update.masks, update.rescalers)))
        sums.add(held, on, samples)
    rows, agreements = zip(*sums.by_task(torch.float32).values(), strict=True)
    alike = similarity_of_rows(rows)
    new = torch.stack(transfer_rows(rows, agreements, alike))
    down = unify(new)
    votes = torch.stack([agreement.votes for agreement in agreements])
    return [t.cpu() for t in (torch.stack(rows), votes, alike, new, down.vector, down.masks)], down.rescalers.cpu()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    "cuda" not in DEVICES, reason="no CUDA here"))])  # fmt: skip
@pytest.mark.parametrize("kind", ["normal", "sparse", "wide"])
def test_long_vectors_have_the_same_bits_compiled_in_torch_and_on_every_device(monkeypatch, kind, device):
    """Several blocks on several threads, tiles, bins; tasks that borrow."""
    dim, updates = 2 * compiled.FROM_DIM + 5_001, []
    for i in range(7):
        held = ["a", "b", "c"][: 1 + i % 3]
        vectors = matrix(i, len(held), dim, kind, torch.float32) + matrix(99, 1, dim, kind, torch.float32)
        updates.append((held, unify(vectors), [7 + i, 1, 500][: len(held)]))
    found, rescalers = all_of_a_round(updates, dim, device)
    monkeypatch.setattr(compiled, "FROM_DIM", dim + 1)
    expected, expected_rescalers = all_of_a_round(updates, dim, "cpu")
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    torch.testing.assert_close(rescalers, expected_rescalers)  # a device adds in an order of its own
    assert expected[3].ne(expected[0]).any(), "some task borrows"


def test_more_terms_than_are_folded_at_once(monkeypatch):
    terms = [
        Term(torch.full((3,), 0.1 * i), 1.0 + i, torch.tensor([True, i % 2 == 0, False]))
        for i in range(2 * compiled.MAX_FOLDED + 3)
    ]
    results = []
    for from_dim in (compiled.FROM_DIM, 1):
        monkeypatch.setattr(compiled, "FROM_DIM", from_dim)
        total = ExactSum(3, signs=True)
        total.fold(terms)
        results.append(total.tensors())
    assert all(torch.equal(part, results[1][name]) for name, part in results[0].items())


@pytest.mark.parametrize(
    "other",
    [torch.ones(7), torch.ones(8, dtype=torch.float64), torch.ones(8, 2)[:, 0]],
    ids=["short", "type", "pieces"],
)
def test_compiled_loops_read_past_no_end(other):
    """They take addresses: rows that are not alike are refused, or left to torch."""
    with pytest.raises(ValueError, match="expected one type and shape"):
        compiled.agreeing([torch.ones(8), other], slice(0, 8))
