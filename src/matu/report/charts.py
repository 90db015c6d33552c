"""Geometry of the page's charts: where lines, cells and brackets lie. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matu.report.folder import Curve, texts
from matu.report.folder import table as as_table
from matu.report.similar import Similarity

MOST_POINTS = 400
"""Points of a line that are drawn; more are thinned."""
MOST_CELLS = 40_000
"""Cells of the strip of who took part; of a longer run the latest rounds are drawn."""

LEAST_SPAN = 0.02
"""Range of S that the colours of a heat map stand for at least: what is smaller may be chance."""


@dataclass(frozen=True)
class Line:
    """A line of a chart: its style (a CSS class), its name, its SVG path, its points (x, y, what they say)."""

    style: str
    name: str
    path: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Level:
    """A horizontal line across a chart."""

    style: str
    name: str
    y: float


@dataclass(frozen=True)
class LineChart:
    """Lines over rounds, or marks over bytes.

    Attributes
    ----------
    width, height, left, right, top, bottom
        Of the picture, and of the field in it.
    xticks, yticks
        Place and label.
    lines, levels
        What is drawn, in order.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    lines: list[Line]
    levels: list[Level]


def line_chart(
    curves: Sequence[tuple[str, str, Curve]],
    *,
    last: int,
    top: float,
    levels: Iterable[tuple[str, str, float | None]] = (),
    percent: bool = True,
    width: float = 280,
    height: float = 170,
) -> LineChart:
    """Curves (style, name, pairs of round and value) over rounds up to `last`, from 0 to the tick at `top` or above."""
    top = highest_tick(top)
    left, right, above, below = 34.0, width - 10, 10.0, height - 24

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (right - left) * x / max(last, 1), 1),
            round(below - (below - above) * y / (top or 1), 1),
        )

    def said(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    lines = []
    for style, name, curve in curves:
        kept = curve[:: max(1, -(-len(curve) // MOST_POINTS))]
        kept += curve[-1:] if kept[-1:] != curve[-1:] else []
        points = [(*at(*pair), f"{name}, round {pair[0]}: {said(pair[1])}") for pair in kept]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y, _ in points) if len(points) > 1 else ""
        lines.append(Line(style, name, path, points if len(points) <= 60 else points[-1:]))
    return LineChart(
        width, height, left, right, above, below,
        [(at(x, 0)[0], f"{x:g}") for x in ticks(last, 4, whole=True)],
        [(at(0, y)[1], f"{100 * y:.0f}" if percent else f"{y:g}") for y in ticks(top, 4)],
        lines, [Level(style, name, at(0, y)[1]) for style, name, y in levels if y is not None],
    )  # fmt: skip


def scatter(points: Sequence[tuple[str, str, float, float]], *, width: float = 440, height: float = 250) -> LineChart:
    """Marks (style, name, bytes, share): bytes on a logarithmic axis, shares from 0."""
    left, right, above, below = 34.0, width - 20, 14.0, height - 26
    low, high = min(p[2] for p in points), max(p[2] for p in points)
    low, high = math.log10(low / 1.5), math.log10(high * 1.5)
    top = highest_tick(ceiling(p[3] for p in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (right - left) * (math.log10(x) - low) / (high - low), 1),
            round(below - (below - above) * y / top, 1),
        )

    marks = [
        Line(style, name, "", [(*at(x, y), f"{name}: {sized(x)} a client and round, {100 * y:.1f} %")])
        for style, name, x, y in points
    ]
    steps = (1, 2, 5) if high - low < 2 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    shown = [s * 10.0**d for d in decades for s in steps if low <= math.log10(s * 10.0**d) <= high]
    return LineChart(
        width, height, left, right, above, below, [(at(x, 0)[0], sized(x)) for x in shown],
        [(at(10**low, y)[1], f"{100 * y:.0f}") for y in ticks(top, 4)], marks, [],
    )  # fmt: skip


def ceiling(shares: Iterable[float | None]) -> float:
    """The lowest tenth that no share is above; at least 0.1."""
    return max([0.1, *(math.ceil(10 * share - 1e-9) / 10 for share in shares if share is not None)])


def highest_tick(top: float) -> float:
    """`top` raised to a tick, so that a chart ends with a line of its grid."""
    marks = ticks(top, 4)
    return top if len(marks) < 2 or top <= marks[-1] * (1 + 1e-9) else round(marks[-1] + marks[1], 10)


def ticks(top: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from 0 to `top`."""
    if top <= 0:
        return [0.0]
    step = 10.0 ** math.floor(math.log10(top / count))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if f * step * count >= top * (1 - 1e-9))
    step = max(1, math.ceil(step)) if whole else step
    return [round(step * i, 10) for i in range(int(top / step + 1e-9) + 1)]


@dataclass(frozen=True)
class HeatMap:
    """Cells in the order of the clustering, a tree above them.

    Attributes
    ----------
    side, left, top
        Of a cell in pixels; where the first begins.
    tasks
        Name by row, and by column.
    low, high
        What the palest and the strongest colour stand for.
    cells
        x, y, strength from 0 to 1, and S in figures.
    brackets
        SVG paths of the tree.
    """

    side: float
    left: float
    top: float
    tasks: Sequence[str]
    low: float
    high: float
    cells: list[tuple[float, float, float, str]]
    brackets: list[str]


def heat_map(found: Similarity) -> HeatMap:
    """S of Eq. 5, from the lowest to the highest of two different tasks, over at least `LEAST_SPAN`."""
    count, values = len(found.tasks), found.values
    side = 40.0 if count <= 12 else 22.0
    left, tree, top = 8 + 6.6 * min(24, max(map(len, found.tasks))), 44.0, 52.0
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    low, high = (float(edge(values[pair] for pair in pairs)) for edge in (min, max))
    high = max(high, low + LEAST_SPAN)
    cells = [
        (left + j * side, top + i * side, round((float(values[i, j]) - low) / (high - low), 3),
         f"{values[i, j]:.3f}".removeprefix("0"))
        for i, j in pairs
    ]  # fmt: skip
    highest = max(bar for _, (_, _, bar) in found.joins) or 1.0

    def x(place: float) -> float:
        return round(left + (place + 0.5) * side, 1)

    def y(height: float) -> float:
        return round(top - 4 - tree * height / highest, 1)

    brackets = [f"M{x(a):g} {y(foot):g}V{y(bar):g}H{x(b):g}V{y(other):g}" for (a, b), (foot, other, bar) in found.joins]
    return HeatMap(side, left, top, found.tasks, low, high, cells, brackets)


@dataclass(frozen=True)
class Strip:
    """Who took part when: a row a client, a column a round.

    Attributes
    ----------
    rows
        Client, SVG path of the rounds that it answered, and of those in which its answer was left out.
    first, last
        The rounds that are drawn.
    left, pitch, column
        Where rounds begin, the height of a row, and the width of a round, in pixels.
    ticks
        Place and round.
    """

    rows: list[tuple[str, str, str]]
    first: int
    last: int
    left: float
    pitch: float
    column: float
    ticks: list[tuple[float, str]]


def strip(lines: Sequence[Mapping[str, Any]], clients: Iterable[str]) -> Strip:
    """From the lines of `metrics.jsonl`."""
    names = list(clients)
    kept = lines[-max(1, MOST_CELLS // max(1, len(names))) :]
    first, last = kept[0]["round"], kept[-1]["round"]
    column, pitch = max(3.0, min(26.0, 760 / len(kept))), 16.0
    left = 8 + 6.6 * min(24, max(map(len, names), default=0))
    gap = 1 if column < 8 else 2
    answered: dict[str, list[float]] = {name: [] for name in names}
    lost: dict[str, list[float]] = {name: [] for name in names}
    for line in kept:
        failures = as_table(line.get("failures"))
        for name in texts(line.get("clients")):
            (lost if name in failures else answered)[name].append(left + (line["round"] - first) * column)

    def path(row: int, places: Sequence[float]) -> str:
        return "".join(f"M{x:g} {row * pitch + 2:g}h{column - gap:g}v{pitch - 4:g}h-{column - gap:g}z" for x in places)

    rows = [(name, path(row, answered[name]), path(row, lost[name])) for row, name in enumerate(names)]
    every = max(1, round(ticks(len(kept), 8, whole=True)[1])) if len(kept) > 1 else 1
    shown = [number for number in range(first, last + 1) if number % every == 0 or number == first]
    return Strip(
        rows, first, last, left, pitch, column,
        [(left + (number - first + 0.5) * column - gap / 2, str(number)) for number in shown],
    )  # fmt: skip


def sized(count: float) -> str:
    """Bytes for people: 512 B, 51 kB, 1.2 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 99.5 or (unit == "kB" and value >= 9.95) else f"{value:.1f} {unit}"
    return f"{count:.0f} B"
