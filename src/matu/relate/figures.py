"""Figures of relatedness: the measures as heat maps with the tree of tasks, and how the measures correlate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import dendrogram

from matu.plotting import STYLE, save
from matu.relate.clusters import order

TITLES = {"sign": "Sign (Eq. 5)", "cosine": "Cosine", "fim": "FIM", "e_tran": "E-Tran", "wte": "WTE distance"}
MOST_WITH_NUMBERS = 12
_INK, _ACCENT = "#222222", "#D55E00"


@rc_context(STYLE | {"axes.grid": False})
def similarities(
    names: Sequence[str], matrices: Mapping[str, np.ndarray], merges: np.ndarray, cluster: Sequence[int], path: Path
) -> list[Path]:
    """A heat map for every measure and the tree of sign similarity, tasks in the tree's order; dark is alike.

    Colours run from the lowest to the highest pair of each measure; clusters are framed.
    """
    leaves = order(merges)
    side = 1.1 + 0.36 * len(names)
    figure = Figure(figsize=(3 * side + 2.2, 2 * side + 0.3), layout="constrained")
    panels = figure.subplots(2, 3)
    for (measure, values), axes in zip(matrices.items(), panels.flat, strict=False):
        _heat_map(axes, [names[i] for i in leaves], values[np.ix_(leaves, leaves)], reverse=measure == "wte")
        axes.set_title(TITLES[measure])
        _frame(axes, [cluster[i] for i in leaves])
    for axes in panels[:, 1:].flat:
        axes.set_yticklabels([])
    for axes in panels[0]:
        axes.set_xticklabels([])
    _tree(panels[1, 2], names, merges, len(set(cluster)))
    return save(figure, path)


def _heat_map(axes: Axes, names: Sequence[str], values: np.ndarray, *, reverse: bool) -> None:
    others = values[~np.eye(len(names), dtype=bool)]
    low, high = (others.min(), others.max()) if np.ptp(others) > 0 else (others[0] - 1, others[0] + 1)
    shown = np.ma.array(values, mask=np.eye(len(names), dtype=bool))  # the diagonal would use up the colours
    axes.set_facecolor("#F2F2F2")
    image = axes.imshow(shown, cmap="Blues_r" if reverse else "Blues", vmin=low, vmax=high)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, aspect=24, pad=0.02)
    bar.outline.set_visible(False)
    if len(names) > MOST_WITH_NUMBERS:
        return
    digits = 1 if high >= 10 else 2 if high - low >= 0.1 else 3
    for (row, column), value in np.ndenumerate(values):
        strength = (value - low) / (high - low)
        dark = row != column and (1 - strength if reverse else strength) > 0.6
        colour = "white" if dark else "#999999" if row == column else _INK
        axes.text(column, row, _number(value, digits), ha="center", va="center", fontsize=7.5, color=colour)


def _frame(axes: Axes, cluster: Sequence[int]) -> None:
    """A square around every run of tasks of one cluster."""
    starts = [i for i in range(len(cluster)) if i == 0 or cluster[i] != cluster[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(cluster)], strict=True):
        square = Rectangle((start - 0.5, start - 0.5), end - start, end - start, fill=False, edgecolor=_ACCENT, lw=2)
        square.set_clip_on(False)
        axes.add_patch(square)


def _tree(axes: Axes, names: Sequence[str], merges: np.ndarray, count: int) -> None:
    heights = merges[:, 2]
    dendrogram(
        merges, ax=axes, orientation="right", labels=list(names), color_threshold=0, above_threshold_color="#444444"
    )
    axes.set_box_aspect(1)
    axes.invert_yaxis()  # from the top as in the maps
    low = heights.min() - 0.15 * max(np.ptp(heights), 0.05 * heights.max())
    axes.set_xlim(heights.max() + 0.05 * (heights.max() - low), low)
    if 1 < count <= len(heights):
        cut = (heights[-count] + heights[1 - count]) / 2
        axes.axvline(cut, color=_ACCENT, linewidth=1.5, linestyle=(0, (4, 3)))
    axes.spines[["left", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.set_title(f"Tree of sign similarity, {count} clusters")
    axes.set_xlabel("1 − S, average linkage")


@rc_context(STYLE)
def correlations(matrices: Mapping[str, np.ndarray], found: Mapping[str, Any], path: Path) -> list[Path]:
    """Sign similarity against every other measure, a point a pair of tasks, and all correlations (WTE negated)."""
    figure = Figure(figsize=(12.6, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1), squeeze=False)[0]
    others = [name for name in matrices if name != "sign"]
    pairs = np.triu_indices(len(matrices["sign"]), 1)
    for axes, other in zip(left.subplots(2, 2, sharex=True).flat, others, strict=True):
        values = -matrices[other] if other == "wte" else matrices[other]
        axes.plot(matrices["sign"][pairs], values[pairs], "o", color="#0072B2", markeredgecolor="white", markersize=6)
        axes.set_title(f"{_title(other)}: r {_number(found['pearson']['sign'][other])}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("sign similarity" if other in others[2:] else "")
    _correlation_map(right.subplots(), list(matrices), found)
    return save(figure, path)


def _correlation_map(axes: Axes, names: Sequence[str], found: Mapping[str, Any]) -> None:
    values = np.array([[found["pearson"][a][b] for b in names] for a in names], dtype=float)  # None becomes nan
    image = axes.imshow(np.ma.masked_invalid(values), cmap="RdBu", vmin=-1, vmax=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(names)), [_title(name) for name in names])
    axes.set_yticks(range(len(names)), [_title(name) for name in names])
    for (row, column), value in np.ndenumerate(values):
        p = found["mantel_p"][names[row]][names[column]]
        text = _number(found["pearson"][names[row]][names[column]]) + ("" if p is None else f"\np {p:.2g}")
        colour = "white" if abs(value) > 0.6 else _INK
        axes.text(column, row, text, ha="center", va="center", fontsize=10, color=colour)
    axes.set_title(f"Pearson's r over {found['pairs']} pairs, Mantel's p")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, aspect=24, pad=0.02).outline.set_visible(False)


def _title(name: str) -> str:
    return "−WTE" if name == "wte" else TITLES[name].split()[0]


def _number(value: float | None, digits: int = 2) -> str:
    """With a minus sign, and none before a zero; None, an undefined correlation, as a dash."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
