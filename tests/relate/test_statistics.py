"""Correlations between measures, their chance level, and clusters."""

import numpy as np
import pytest

from matu.relate import clusters
from matu.relate.statistics import correlations


def symmetric(tasks, *pairs):
    """Off-diagonal entries row by row; the diagonal must not matter."""
    matrix = np.full((tasks, tasks), np.nan)
    matrix[np.triu_indices(tasks, 1)] = pairs
    matrix.T[np.triu_indices(tasks, 1)] = pairs
    return matrix


def correlate(**matrices):
    return correlations(matrices, np.random.default_rng(0))


def test_pearson_over_the_pairs_and_the_share_of_renamings():
    found = correlate(a=symmetric(3, 1, 2, 3), b=symmetric(3, 12, 14, 16), c=symmetric(3, 0, -1, -2))
    assert found["pairs"] == 3
    assert list(found["pearson"]["b"]) == ["a", "b", "c"]
    assert found["pearson"]["a"]["b"] == pytest.approx(1)
    assert found["pearson"]["a"]["c"] == found["pearson"]["c"]["a"] == pytest.approx(-1)
    assert found["mantel_p"]["a"]["b"] == pytest.approx(1 / 6, abs=0.02)  # three tasks have six orders
    assert found["mantel_p"]["a"]["c"] == pytest.approx(1)
    assert found["mantel_p"]["a"]["a"] is None


def test_a_known_correlation():
    x, y = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 4, 3, 7, 5])
    found = correlate(a=symmetric(4, *x), b=symmetric(4, *y))
    assert found["pearson"]["a"]["b"] == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_pairs_move_with_their_tasks():
    """A task that is unlike all others in both measures makes r large; among renamings that is no rarity."""
    tasks = 8
    x = np.random.default_rng(0).random((2, tasks, tasks)) * 0.01
    x[:, 0, :] = x[:, :, 0] = 5
    one, other = (matrix + matrix.T for matrix in x)
    found = correlate(a=one, b=other)
    assert found["pearson"]["a"]["b"] > 0.99
    # One renaming in eight leaves the odd task in its place; were pairs independent, p would be 1 in C(28, 7).
    assert 0.015 < found["mantel_p"]["a"]["b"] < 0.16


@pytest.mark.parametrize("pairs", [(1,), (0.1 + 0.2, 0.3, 0.3)])
def test_what_has_no_correlation_has_none(pairs):
    tasks = {1: 2, 3: 3}[len(pairs)]
    found = correlate(a=symmetric(tasks, *pairs), b=symmetric(tasks, *range(len(pairs))))
    assert found["pearson"]["a"]["b"] is None
    assert found["mantel_p"]["a"]["b"] is None


SIMILARITY = np.array([
    [1.00, 0.50, 0.60, 0.51, 0.52],
    [0.50, 1.00, 0.50, 0.70, 0.50],
    [0.60, 0.50, 1.00, 0.50, 0.58],
    [0.51, 0.70, 0.50, 1.00, 0.50],
    [0.52, 0.50, 0.58, 0.50, 1.00],
])  # fmt: skip


def test_similar_tasks_are_of_one_cluster():
    merges = clusters.tree(SIMILARITY)
    np.testing.assert_allclose(merges[:, 2], [0.3, 0.4, 0.45, 0.5 - 0.01 / 6])
    assert clusters.clusters(merges, 2) == [0, 1, 0, 1, 0]
    assert clusters.clusters(merges, 3) == [0, 1, 0, 1, 2]
    assert clusters.clusters(merges, 5) == [0, 1, 2, 3, 4]
    assert sorted(clusters.order(merges)[:3]) in ([0, 2, 4], [1, 3, 4], [0, 1, 3])
    assert "".join("abaca"[i] for i in clusters.order(merges)) in ("aaabc", "aaacb", "bcaaa", "cbaaa")


def test_groups_within_and_across_clusters():
    found = clusters.task_groups("abcde", SIMILARITY, [0, 1, 0, 1, 0])
    # a+b+e is the least alike, c+d+e the least alike that covers c and d, a+d+e the least alike of the rest.
    assert found == {"no-conflict": ["a+c+e"], "two-conflicting": ["a+b+e", "c+d+e", "a+d+e"]}
    assert clusters.task_groups("ab", np.eye(2), [0, 1]) == {}
