"""Clusters of similar tasks, and groups of tasks within and across them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import cut_tree, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

GROUPS = 3
"""Most groups of a setting."""
SETTINGS = {"no-conflict": 1, "two-conflicting": 2, "three-conflicting": 3}
"""By setting of the paper's Figure 6, of how many clusters the three tasks of a group are."""


def tree(similarity: np.ndarray) -> np.ndarray:
    """Average linkage on 1 − S, the leaves ordered so that neighbours are alike; float64 [T − 1, 4] as SciPy's."""
    apart = squareform(1 - similarity, checks=False)
    return optimal_leaf_ordering(linkage(apart, "average"), apart)


def order(merges: np.ndarray) -> list[int]:
    """The tasks as the tree's leaves, from one end to the other."""
    return [int(leaf) for leaf in leaves_list(merges)]


def clusters(merges: np.ndarray, count: int) -> list[int]:
    """By task, the number of its cluster when the tree is cut into `count`."""
    return [int(number) for number in cut_tree(merges, n_clusters=count).ravel()]


def task_groups(names: Sequence[str], similarity: np.ndarray, cluster: Sequence[int]) -> dict[str, list[str]]:
    """Groups of three tasks of one, two or three clusters, as `task_groups` of a configuration takes them.

    Three groups a setting at most, chosen one after another to cover most tasks; among equals the most alike
    where all three are of one cluster, the least alike elsewhere. A setting without such a group is left out.
    """

    def likeness(group: tuple[int, ...]) -> float:
        return float(np.mean([similarity[a, b] for a, b in itertools.combinations(group, 2)]))

    found = {}
    for setting, kinds in SETTINGS.items():
        fitting = [g for g in itertools.combinations(range(len(names)), 3) if len({cluster[i] for i in g}) == kinds]
        fitting.sort(key=likeness, reverse=kinds == 1)
        chosen: list[tuple[int, ...]] = []
        while fitting and len(chosen) < GROUPS:
            covered = {i for group in chosen for i in group}
            best = max(fitting, key=lambda group: len(set(group) - covered))  # the first of those that cover most
            chosen.append(best)
            fitting.remove(best)
        if chosen:
            found[setting] = ["+".join(names[i] for i in group) for group in chosen]
    return found
