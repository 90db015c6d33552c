"""Correlation between measures of relatedness, and what chance would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

PERMUTATIONS = 9999


def correlations(matrices: Mapping[str, np.ndarray], draw: np.random.Generator) -> dict[str, Any]:
    """Pearson correlation of every two measures over the pairs of tasks, with a Mantel test.

    The T (T − 1) / 2 pairs of T tasks are not independent: each task is in T − 1 of them. So p is the share of
    renamings of one matrix's tasks (9,999 drawn at random, and the names as they are) whose correlation is at least
    as large (Mantel 1967, one-sided).

    Parameters
    ----------
    matrices
        By measure, symmetric float [T, T]; the diagonal is not looked at.
    draw
        Draws the renamings.

    Returns
    -------
    dict
        `pairs` and `permutations`, numbers; `pearson` and `mantel_p`, by measure and measure: None where a
        measure is the same for all pairs, or there are fewer than three.
    """
    names, tasks = list(matrices), len(next(iter(matrices.values())))
    renamed = np.array([draw.permutation(tasks) for _ in range(PERMUTATIONS)])
    found: dict[tuple[str, str], tuple[float | None, float | None]] = {}
    for i, one in enumerate(names):
        found[one, one] = 1.0, None
        for other in names[i + 1 :]:
            found[one, other] = found[other, one] = mantel(matrices[one], matrices[other], renamed)
    pearson, chance = ({one: {other: found[one, other][k] for other in names} for one in names} for k in (0, 1))
    pairs = tasks * (tasks - 1) // 2
    return {"pairs": pairs, "permutations": PERMUTATIONS, "pearson": pearson, "mantel_p": chance}


def mantel(one: np.ndarray, other: np.ndarray, renamed: np.ndarray) -> tuple[float | None, float | None]:
    """Pearson's r of two symmetric matrices off the diagonal, and its one-sided p among renamings int [n, T]."""
    rows, columns = np.triu_indices(len(one), 1)
    x, y = _standardised(one[rows, columns]), _standardised(other[rows, columns])
    if x is None or y is None:
        return None, None
    r = float(x @ y)
    place = np.zeros(one.shape, dtype=np.int64)  # of a pair of tasks among the pairs
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    by_chance = y[place[renamed[:, rows], renamed[:, columns]]] @ x
    return r, (1 + int(np.sum(by_chance >= r - 1e-12))) / (1 + len(renamed))


def _standardised(values: np.ndarray) -> np.ndarray | None:
    """Mean 0 and length 1; None for fewer than three values, or all equal but for rounding."""
    away = values - values.mean() if len(values) else values
    length = np.linalg.norm(away)
    if len(values) < 3 or length <= 1e-12 * np.linalg.norm(values):
        return None
    scaled: np.ndarray = away / length
    return scaled
