"""The page of one run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import tomli_w

from matu.config import RunConfig
from matu.errors import DataError
from matu.report.charts import LineChart, ceiling, heat_map, line_chart, sized, strip
from matu.report.console import span
from matu.report.folder import KINDS, Curve, RunFolder, number, table, text, texts, whole
from matu.report.rendering import render
from matu.report.similar import similarity_of
from matu.words import counted, percent

MOST_FAILURES = 200
"""Failures that a page lists; `metrics.jsonl` has them all."""
MEANINGS = {
    "individual": "the task fine-tuned alone on all its training images",
    "server": "the server's own model of the task",
    "delivered": "what its clients get, mean over them",
    "artifact": "all tasks unified in one vector",
}
PARTS = ("vectors", "masks", "heads", "rescalers", "header", "refused")
SPENT = {
    "training": "training",
    "waiting": "waiting for sites",
    "aggregation": "aggregation",
    "evaluation": "evaluation",
}


def run_page(run: RunFolder, name: str = "", above: str = "") -> str:
    """The HTML of one run; `above` is the page that compares it with others."""
    shown = [kind for kind in KINDS if any(run.accuracy(task, kind) is not None for task in run.tasks)]
    try:
        similar, unreadable = similarity_of(run.path), ""
    except DataError as error:
        similar, unreadable = None, str(error)
    failures, rows = run.failures(), _rows(run, shown)
    return render(
        "run.html", run=run, name=name or run.name, above=above, about=_about(run), state=state_of(run),
        figures=_figures(run), shown=shown, meanings=MEANINGS, rows=rows,
        known=[what for what in ("classes", "chance", "ratio") if any(row[what] is not None for row in rows)],
        means=_means(run, shown),
        curves=_curve_panels(run), loss=_loss(run), similar=similar, heat=heat_map(similar) if similar else None,
        pairs=_pairs(similar), unreadable=unreadable,
        strip=strip(run.lines, run.clients) if run.lines and run.clients else None, clients=_clients(run),
        bytes=_bytes(run), spent=_spent(run), failures=failures[:MOST_FAILURES], failed=len(failures),
        sections=_sections(run), config=_as_toml(run.settings), hashes=_hashes(run),
        versions=table(run.result.get("versions")),
    )  # fmt: skip


def _about(run: RunFolder) -> str:
    """What ran, in a sentence."""
    backbone = text(table(run.result.get("backbone")).get("name")) or text(run.setting("model", "backbone"))
    who = "site" if "sites" in run.result else "client"
    parts = [counted(len(run.tasks), "task"), counted(len(run.clients), who), counted(run.rounds, "round")]
    parts = [part for part in parts if not part.startswith("0 ")]
    parts += [f"backbone {backbone}"] if backbone else []
    return ", ".join(parts + ([f"seed {run.seed}"] if run.seed is not None else []))


def state_of(run: RunFolder) -> str:
    if run.finished:
        return "finished"
    return f"not finished: round {run.rounds}" + (f" of {run.planned}" if run.planned else "")


def _figures(run: RunFolder) -> list[tuple[str, str, str]]:
    """The few numbers to see first: value, what it is, and more of it."""
    sent, result = table(run.result.get("bytes")), run.result
    up, down = number(sent.get("uplink_per_client_round")), number(sent.get("downlink_per_client_round"))
    delivered, worst = run.mean_accuracy("delivered"), table(result.get("worst_client"))
    ratio = number(table(result.get("normalised")).get("mean_of_ratios"))
    lowest, total = number(worst.get("accuracy")), number(table(result.get("seconds")).get("total"))
    on_the_way = f"after round {run.evaluations[-1]['round']}" if run.evaluations else ""
    found = [
        (percent(delivered) + " %", "delivered", "mean accuracy of tasks" if run.finished else on_the_way)
        if delivered is not None else None,
        (percent(ratio) + " %", "of individual", "mean of ratios") if ratio is not None else None,
        (percent(lowest) + " %", "worst client", text(worst.get("client"))) if lowest is not None else None,
        (sized(up), "up", "a client and round") if up else None,
        (sized(down), "down", "a client and round") if down else None,
        (span(total), "time", "rounds and evaluation") if total is not None else None,
        (str(len(run.failures())), "failures", "answers left out") if run.lines else None,
    ]  # fmt: skip
    return [figure for figure in found if figure]


def _rows(run: RunFolder, shown: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for task, about in run.tasks.items():
        found = {kind: run.accuracy(task, kind) for kind in KINDS}
        rows.append({
            "task": task, "classes": whole(about.get("classes")), "chance": _chance(about),
            "shares": [found[kind] for kind in shown], "ratio": _ratio(found["delivered"], found["individual"]),
        })  # fmt: skip
    return rows


def _means(run: RunFolder, shown: Sequence[str]) -> dict[str, Any]:
    chances = [_chance(about) for about in run.tasks.values()]
    return {
        "chance": sum(c for c in chances if c) / len(chances) if chances and all(chances) else None,
        "shares": [run.mean_accuracy(kind) for kind in shown],
        "ratio": number(table(run.result.get("normalised")).get("mean_of_ratios")),
    }


def _ratio(delivered: float | None, alone: float | None) -> float | None:
    return delivered / alone if delivered is not None and alone else None


def over_time(run: RunFolder, tasks: Sequence[str]) -> bool:
    """Whether a task was measured more than once: a single value makes no curve."""
    return any(len(run.curve(task, "delivered")) > 1 for task in tasks)


def _chance(about: Mapping[str, Any]) -> float | None:
    """As the result says, or what its number of classes says."""
    classes = whole(about.get("classes"))
    return number(about.get("chance")) or (1 / classes if classes else None)


def _curve_panels(run: RunFolder) -> list[tuple[str, LineChart]]:
    """A chart of all tasks' mean, and one of each task."""
    if not run.rounds or not over_time(run, list(run.tasks)):
        return []
    found = [run.curve(task, kind) for task in run.tasks for kind in ("delivered", "server")]
    alone = [run.accuracy(task, "individual") for task in run.tasks]
    top = ceiling([*(share for curve in found for _, share in curve), *alone])
    means = _means(run, ("individual",))

    def chart(curve_of: Callable[[str], Curve], one: float | None, chance: float | None) -> LineChart:
        lines = [(kind, kind, curve) for kind in ("server", "delivered") if (curve := curve_of(kind))]
        levels = [("individual", "individual", one), ("chance", "chance", chance)]
        return line_chart(lines, last=max(run.planned or 0, run.rounds), top=top, levels=levels)

    panels = [("all tasks, mean", chart(run.mean_curve, means["shares"][0], means["chance"]))]
    for task, about in run.tasks.items():
        curve_of = partial(run.curve, task)
        panels.append((task, chart(curve_of, run.accuracy(task, "individual"), _chance(about))))
    return panels


def _loss(run: RunFolder) -> Any:
    curve = [(line["round"], loss) for line in run.lines if (loss := number(line.get("loss"))) is not None]
    if len(curve) < 2:
        return None
    return line_chart(
        [("delivered", "loss", curve)], last=max(run.planned or 0, run.rounds), top=max(loss for _, loss in curve),
        percent=False, width=440, height=150,
    )  # fmt: skip


def _pairs(similar: Any) -> list[tuple[float, str, str]]:
    """All pairs of tasks with their S, the most alike first."""
    if similar is None:
        return []
    names = similar.tasks
    found = [(float(similar.values[i][j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    return sorted(found, key=lambda pair: -pair[0])


def _clients(run: RunFolder) -> list[dict[str, Any]]:
    asked = [texts(line.get("clients")) for line in run.lines]
    lost = [client for _, client, _ in run.failures()]
    return [
        {"client": name, "tasks": held, "asked": sum(name in one for one in asked), "lost": lost.count(name)}
        for name, held in run.clients.items()
    ]


def _bytes(run: RunFolder) -> list[dict[str, Any]]:
    """By direction: the total and its parts, as shares of the larger direction."""
    sent = run.result.get("bytes") if run.finished else run.totals
    ways: list[dict[str, Any]] = []
    for way, name, line in (
        ("uplink", "up, from clients", "uplink_bytes"), ("downlink", "down, to clients", "downlink_bytes")
    ):  # fmt: skip
        found = {part: count for part, value in table(table(sent).get(way)).items() if (count := whole(value))}
        total = sum(found.values()) or whole(table(sent).get(f"{way}_total"))
        total = total or sum(whole(one.get(line)) or 0 for one in run.lines)
        order = sorted(found, key=lambda part: PARTS.index(part) if part in PARTS else len(PARTS))
        ways.append({"name": name, "total": total, "each": number(table(sent).get(f"{way}_per_client_round")),
                     "parts": {part: found[part] for part in order}})  # fmt: skip
    most = max(way["total"] for way in ways)
    return [way | {"share": way["total"] / most} for way in ways] if most else []


def _spent(run: RunFolder) -> list[tuple[str, float, float]]:
    """What the time went to: name, seconds, share of all."""
    seconds = table(run.result.get("seconds")) or {key.removesuffix("_s"): v for key, v in run.totals.items()}
    total = number(seconds.get("total"))
    if not total:
        return []
    found = [(label, number(seconds.get(key))) for key, label in SPENT.items()]
    known = [(label, value) for label, value in found if value]
    rest = total - sum(value for _, value in known)
    known += [("the rest", rest)] if rest > 0.005 * total else []
    return [(label, value, value / total) for label, value in known]


def _sections(run: RunFolder) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Settings by section; each with whether it is another than the default."""
    usual = asdict(RunConfig())
    return [
        (
            section,
            [
                (name, shown_value(value), shown_value(value) != shown_value(usual.get(section, {}).get(name)))
                for name, value in table(options).items()
            ],
        )
        for section, options in run.settings.items()
    ]


def shown_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown_value, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _as_toml(settings: Mapping[str, Any]) -> str:
    """The settings as a file that `matu run --config` reads, folders by name; empty if they are none."""
    tasks = dict(table(settings.get("tasks")))
    if not tasks:
        return ""
    tasks["tasks"] = [re.sub("^(folder|parquet):", "", source) for source in texts(tasks.get("tasks"))]
    try:
        return tomli_w.dumps({**settings, "tasks": tasks})
    except (TypeError, ValueError):  # of JSON, what TOML does not have
        return ""


def _hashes(run: RunFolder) -> list[tuple[str, str, str]]:
    """Backbone and tasks: name, source, SHA-256."""
    backbone = table(run.result.get("backbone"))
    found = [(f"backbone {text(backbone.get('name'))}", "", text(backbone.get("sha256")))]
    found += [(task, text(a.get("source")), text(a.get("sha256"))) for task, a in run.tasks.items()]
    return [row for row in found if row[2]]
