"""Which tasks of a run are alike: Eq. 5 of what its server holds, in an order that puts alike ones together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matu.errors import DataError

VECTORS = ("mean", "adapter")
"""Names in a checkpoint before a task's: its mean over holders (MaTU), its adapter (a vector a task)."""


@dataclass(frozen=True)
class Similarity:
    """Tasks in the order of a clustering.

    Attributes
    ----------
    tasks
        Names, alike ones side by side.
    values
        float64 [T, T], in their order: S of Eq. 5, 0.5 is chance.
    joins
        The tree over them, a bracket a join: the two ends in units of tasks (0 is the middle of the first), and the
        three heights, of either leg's foot and of the bar, as 1 - S.
    """

    tasks: tuple[str, ...]
    values: np.ndarray
    joins: tuple[tuple[tuple[float, float], tuple[float, float, float]], ...]


def similarity_of(folder: Path) -> Similarity | None:
    """From the checkpoint of a run folder; None where it holds no vector a task, or of one task only.

    Raises
    ------
    DataError
        If the checkpoint cannot be read.
    """
    import safetensors
    import torch

    from matu.vectors import similarity

    pointer = folder / "checkpoint" / "checkpoint.json"
    if not pointer.is_file():
        return None
    try:
        state = pointer.with_name(Path(json.loads(pointer.read_text())["state"]).name)
        with safetensors.safe_open(state, "pt") as opened:
            names = list(opened.keys())
            prefix = next((p for p in VECTORS if any(n.startswith(f"server|{p}/") for n in names)), "")
            prefix = f"server|{prefix}/"
            found = {n.removeprefix(prefix): opened.get_tensor(n) for n in names if n.startswith(prefix)}
        vectors = {task: vector for task, vector in sorted(found.items()) if vector.any()}
        if len(vectors) < 2:
            return None
        return clustered(list(vectors), similarity(torch.stack(list(vectors.values()))).numpy())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(f"{pointer}: the checkpoint cannot be read ({error})") from error


def clustered(tasks: Sequence[str], values: np.ndarray) -> Similarity:
    """Order tasks by average linkage of 1 - S.

    Parameters
    ----------
    tasks
        At least two names.
    values
        float64 [T, T], symmetric.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    apart = 1 - values
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average", optimal_ordering=True)
    drawn = dendrogram(tree, no_plot=True)
    order = drawn["leaves"]
    joins = [
        (((x[0] - 5) / 10, (x[2] - 5) / 10), (float(y[0]), float(y[3]), float(y[1])))
        for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True)  # scipy puts leaves at 5, 15, 25, …
    ]
    return Similarity(tuple(tasks[i] for i in order), values[np.ix_(order, order)], tuple(joins))
