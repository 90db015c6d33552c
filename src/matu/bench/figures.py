"""Figures of a comparison, as PNG and SVG that repeat to the byte.

They show the seeds that all methods of a setting have, so that what stands beside each other is paired; other cells,
under `further` in the results, are drawn faintly where single ones can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from matu.bench.looks import bar_of, dots_of, line_of, look_of, narrow_label, striped
from matu.bench.names import Results, is_reference, same_seeds
from matu.plotting import STYLE, save

Curves = Mapping[str, tuple[list[int], np.ndarray]]
FAINT = {"alpha": 0.35, "linewidth": 1, "zorder": 1}
"""Of cells on seeds that not all methods have."""
OTHERS = " (faint: others)"


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Every figure that the comparison has data for."""
    drawn = accuracy_over_rounds(results, folder / "accuracy_over_rounds")
    drawn += similarity_over_rounds(results, folder / "similarity_over_rounds")
    drawn += reconstruction_over_rounds(results, folder / "reconstruction_over_rounds")
    drawn += normalised_by_task(results, folder / "normalised_by_task")
    drawn += accuracy_over_bytes(results, folder / "accuracy_over_bytes")
    if results["axis"]:
        drawn += against_axis(results, folder / "against_axis")
    if len(results["settings"]) > 1:
        drawn += normalised_by_setting(results, folder / "normalised_by_setting")
    return drawn


@rc_context(STYLE)
def accuracy_over_rounds(results: Results, path: Path) -> list[Path]:
    """Mean accuracy by round, a panel a setting: the mean over seeds, with a band from the lowest to the highest."""

    def references(axes: Axes, setting: str) -> set[str]:
        shares = {m: _read(results, setting, m, "average", "mean") for m in filter(is_reference, results["methods"])}
        known = {method: share for method, share in shares.items() if share is not None}
        for method, share in known.items():
            axes.axhline(100 * share, **line_of(results, method))
        return set(known)

    panels = {s: (s, "") for s in results["settings"]}
    return _over_rounds(results, panels, "mean test accuracy in %", path, unit=100, more=references)


@rc_context(STYLE)
def similarity_over_rounds(results: Results, path: Path) -> list[Path]:
    """Of the server's vectors by round, mean S (Eq. 5) over pairs of tasks, a panel a setting."""
    panels = {s: (s, "similarity") for s in results["settings"]}
    return _over_rounds(results, panels, "mean S of the server's task vectors", path)


@rc_context(STYLE)
def reconstruction_over_rounds(results: Results, path: Path) -> list[Path]:
    """Cosine of what a client gets of a task to the server's vector of it, a panel a setting and number of tasks."""
    measured = {kind for cell in results["cells"] for kind in cell.get("geometry", ())} - {"similarity"}
    counts = sorted(k for k in (int(kind.removeprefix("cosine ")) for kind in measured) if k > 1)
    panels = {f"{s}: clients of {k} tasks": (s, f"cosine {k}") for s in results["settings"] for k in counts}
    return _over_rounds(results, panels, "cosine to the server's vector", path)


def _over_rounds(
    results: Results, panels: Mapping[str, tuple[str, str]], what: str, path: Path, *, unit: float = 1,
    more: Callable[[Axes, str], set[str]] = lambda *_: set(),
) -> list[Path]:  # fmt: skip
    """Lines of the mean over seeds, a panel a setting and kind; `more` draws into a setting's panel, and names what."""
    curves = {title: found for title, panel in panels.items() if (found := _curves(results, *panel))}
    if not curves:
        return []
    figure, places = _panels(len(curves), width=5.2, height=4.2, sharey=True)
    shown: set[str] = set()
    for axes, (title, lines) in zip(places, curves.items(), strict=True):
        setting, kind = panels[title]
        for cell in _further(results, setting):
            if cell["method"] in lines and (points := _line(cell, kind)):
                xs, ys = zip(*points, strict=True)
                look = line_of(results, cell["method"]) | FAINT | {"marker": "none"}
                axes.plot(xs, unit * np.array(ys), **look)
        for method, (rounds, values) in lines.items():
            every = max(1, len(rounds) // 10)
            axes.plot(rounds, unit * values.mean(0), **line_of(results, method), markevery=every)
            if len(values) > 1:
                band = {"color": look_of(results, method)["color"], "alpha": 0.13, "linewidth": 0}
                axes.fill_between(rounds, unit * values.min(0), unit * values.max(0), **band)
        shown |= lines.keys() | more(axes, setting)
        axes.set(title=title + _seeds_of(results, setting, OTHERS), xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
    places[0].set_ylabel(what)
    _legend(figure, results, shown)
    return save(figure, path)


@rc_context(STYLE)
def normalised_by_task(results: Results, path: Path) -> list[Path]:
    """Accuracy over Individual's by task, a panel a setting; the tasks Individual finds hardest at the bottom."""
    points = {s: p for s in results["settings"] if (p := _ratios(results, s))}
    if not points:
        return []
    ease = {t: np.mean([a for s in points if (a := _alone(results, s, t))] or [0.0]) for t in results["tasks"]}
    tasks = sorted(ease, key=lambda task: ease[task])
    figure, panels = _panels(len(points), width=5.2, height=1.4 + 0.34 * len(tasks), sharey=True)
    for axes, (setting, methods) in zip(panels, points.items(), strict=True):
        for method, ratios in methods.items():
            held = [i for i, task in enumerate(tasks) if task in ratios]
            axes.plot([100 * ratios[tasks[i]] for i in held], held, **dots_of(results, method))
        axes.axvline(100, **line_of(results, "individual"))
        axes.set(title=setting + _seeds_of(results, setting), xlabel="accuracy over Individual's in %")
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(-0.6, len(tasks) - 0.4)
    limits = [axes.get_xlim() for axes in panels]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    _legend(figure, results, {"individual"}.union(*points.values()), dots_of)
    return save(figure, path)


@rc_context(STYLE)
def accuracy_over_bytes(results: Results, path: Path) -> list[Path]:
    """Mean accuracy against what a client sends and gets in a round, with the standard deviation over seeds."""
    points: dict[str, dict[str, tuple[float, dict[str, float | None]]]] = {}
    for setting in results["settings"]:
        for method in results["methods"]:
            up, down = (_read(results, setting, method, way) for way in ("uplink_bytes", "downlink_bytes"))
            if up and down:
                points.setdefault(setting, {})[method] = (
                    1e-6 * (up + down),
                    _read(results, setting, method, "average"),
                )
    if not points:
        return []
    figure, panels = _panels(len(points), width=4.8, height=4.0, sharey=True)
    for axes, (setting, methods) in zip(panels, points.items(), strict=True):
        for cell in _further(results, setting):
            size = sum(cell["bytes"][f"{way}_per_client_round"] for way in ("uplink", "downlink"))
            look = dots_of(results, cell["method"])
            small = {"markersize": 0.6 * look["markersize"]}
            axes.plot(1e-6 * size, 100 * cell["average"], **look | FAINT | small)
        for method, (megabytes, average) in methods.items():
            axes.plot(megabytes, 100 * (average["mean"] or 0.0), **dots_of(results, method))
            if average["std"]:
                colour = look_of(results, method)["color"]
                axes.errorbar(
                    megabytes, 100 * (average["mean"] or 0.0), 100 * average["std"], color=colour, elinewidth=1
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(title=setting + _seeds_of(results, setting, OTHERS), xlabel="MB a client sends and gets in a round")
    panels[0].set_ylabel("mean test accuracy in %")
    _legend(figure, results, set().union(*points.values()), dots_of)
    return save(figure, path)


@rc_context(STYLE)
def against_axis(results: Results, path: Path) -> list[Path]:
    """MB of a round and accuracy, over Individual's where that was run, against the number the settings differ in."""
    bytes_ = _against(results, "round_bytes", unit=1e-6)
    shares = _against(results, "normalised", "mean_of_ratios", "mean", unit=100)
    accuracy = shares or _against(results, "average", "mean", unit=100)
    if not bytes_ and not accuracy:
        return []
    figure, panels = _panels(2, width=4.8, height=4.0)
    titles = ("MB a round, all messages", "accuracy over Individual's in %" if shares else "mean test accuracy in %")
    for axes, title, found in zip(panels, titles, (bytes_, accuracy), strict=True):
        for method, points in found.items():
            # One point alone is no line, and needs its marker.
            twins = [other for other in found if found[other] == points] if len(points) > 1 else [method]
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, **striped(line_of(results, method), twins.index(method), len(twins)))
        axes.set(title=title, xlabel=results["axis"].replace("_", " "))
        axes.set_xticks(sorted({x for points in found.values() for x, _ in points}))
    panels[0].set_ylim(bottom=0)
    if shares:
        panels[1].axhline(100, **line_of(results, "individual"))
    _legend(figure, results, {*bytes_, *accuracy} | ({"individual"} if shares else set()))
    return save(figure, path)


@rc_context(STYLE)
def normalised_by_setting(results: Results, path: Path) -> list[Path]:
    """Accuracy over Individual's, a group of bars a setting, with the standard deviation over seeds."""
    settings = [s for s in results["settings"] if s in results["summary"]]
    methods = [
        m for m in results["methods"]
        if m != "individual" and any(_normalised(results, s, m, "mean") is not None for s in settings)
    ]  # fmt: skip
    if not methods:
        return []
    bar = 0.84 / len(methods)
    figure, (axes,) = _panels(1, width=max(6.0, 1.2 + 0.26 * len(methods) * len(settings)), height=4.2)
    for i, method in enumerate(methods):
        for j, setting in enumerate(settings):
            if (mean := _normalised(results, setting, method, "mean")) is not None:
                x = j + (i - (len(methods) - 1) / 2) * bar
                axes.bar(x, 100 * mean, 0.88 * bar, **bar_of(results, method))
                if std := _normalised(results, setting, method, "std"):
                    axes.errorbar(x, 100 * mean, 100 * std, color="#222222", elinewidth=1, capsize=2)
    axes.axhline(100, **line_of(results, "individual"))
    axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
    axes.set_xticks(range(len(settings)), [setting + _seeds_of(results, setting) for setting in settings])
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("accuracy over Individual's in %")
    handles = [Patch(**bar_of(results, m), label=_named(results, m)) for m in methods]
    alone = Line2D([], [], **line_of(results, "individual"), label=_named(results, "individual"))
    figure.legend(handles=[alone, *handles], loc="outside right upper")
    return save(figure, path)


def _panels(count: int, *, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, three in a row at most, and room for a legend."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 2.0, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _legend(
    figure: Figure, results: Results, shown: set[str], style: Callable[[Results, str], dict[str, Any]] = line_of
) -> None:
    handles = [Line2D([], [], label=_named(results, m), **style(results, m)) for m in results["methods"] if m in shown]
    legend = figure.legend(handles=handles, loc="outside right upper", handlelength=3.6)
    figure.set_figheight(max(figure.get_figheight(), legend.get_window_extent().height / figure.dpi + 0.1))


def _named(results: Results, method: str) -> str:
    """A method's label, with its number of seeds where not all methods have the same."""
    if all(same_seeds(results, setting) for setting in results["settings"]):
        return narrow_label(method)
    counts = sorted({len(found[method]["seeds"]) for found in results["summary"].values() if method in found})
    return narrow_label(method, f": {' or '.join(map(str, counts))} seed{'s' if counts[-1:] != [1] else ''}")


def _seeds_of(results: Results, setting: str, faint: str = "") -> str:
    """What to say after a setting's name where not all cells of it are drawn, or some faintly."""
    if not _further(results, setting):
        return ""
    seeds = next(found["seeds"] for m, found in results["summary"][setting].items() if m != "individual")
    return f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}{faint}"


def _further(results: Results, setting: str) -> list[Mapping[str, Any]]:
    """Cells of a setting on seeds that not all methods have; references are no curve and no point."""
    return [c for c in results.get("further", ()) if c["setting"] == setting and not is_reference(c["method"])]


def _line(cell: Mapping[str, Any], kind: str) -> list[tuple[int, float]]:
    """Rounds and accuracies of a cell, or rounds and a kind of geometry; empty where none was measured."""
    points = cell.get("geometry", {}).get(kind, []) if kind else cell["curve"]
    return [(number, value) for number, value in points]


def _curves(results: Results, setting: str, kind: str) -> Curves:
    """By method: rounds that all its seeds were measured after; accuracy, or a kind of geometry, [seeds, rounds]."""
    found = {}
    for method in results["methods"]:
        mine = [c for c in results["cells"] if (c["setting"], c["method"]) == (setting, method)]
        seeds = [dict(line) for cell in mine if (line := _line(cell, kind))]
        rounds = sorted(set.intersection(*map(set, seeds))) if seeds else []
        if rounds and not is_reference(method):
            found[method] = rounds, np.array([[seed[r] for r in rounds] for seed in seeds], dtype=float)
    return found


def _ratios(results: Results, setting: str) -> dict[str, dict[str, float]]:
    """By method and task: accuracy over Individual's."""
    found = {}
    for method in results["methods"]:
        accuracy = {t: _read(results, setting, method, "accuracy", t, "mean") for t in results["tasks"]}
        ratios = {t: a / alone for t, a in accuracy.items() if a is not None and (alone := _alone(results, setting, t))}
        if ratios and method != "individual":
            found[method] = ratios
    return found


def _against(results: Results, *keys: str, unit: float) -> dict[str, list[tuple[float, float]]]:
    """By method: the axis' number and a number of the summary, in the axis' order."""
    axis = results["axis"]
    about = sorted((about[axis], s) for s, about in results["settings"].items() if axis in about)
    found = {
        m: [(x, unit * y) for x, s in about if (y := _read(results, s, m, *keys)) is not None]
        for m in results["methods"]
    }
    return {method: points for method, points in found.items() if points and method != "individual"}


def _alone(results: Results, setting: str, task: str) -> float | None:
    return _read(results, setting, "individual", "accuracy", task, "mean")


def _normalised(results: Results, setting: str, method: str, kind: str) -> float | None:
    return _read(results, setting, method, "normalised", "mean_of_ratios", kind)


def _read(results: Results, setting: str, method: str, *keys: str) -> Any:
    """A number of the summary, or None where something on the way is not there yet."""
    value: Any = results["summary"]
    for key in (setting, method, *keys):
        value = value.get(key) if value else None
    return value
