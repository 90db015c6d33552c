"""The page that puts runs side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from matu.report.charts import ceiling, line_chart, scatter
from matu.report.folder import KINDS, RunFolder, number, table
from matu.report.rendering import render
from matu.report.run_page import over_time, shown_value, state_of
from matu.words import counted

LONGEST_NAME = 160
"""Characters of a run's name that tables and legends show."""


def comparison_page(runs: Sequence[RunFolder], names: Sequence[str], files: Sequence[str]) -> str:
    """The HTML that compares runs; `files` are their own pages."""
    # Neighbours differ in colour and in dashes, so that no line is told by its colour alone.
    styles = [f"s{at % 8} d{(at + at // 8) % 4}" for at in range(len(runs))]
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    last = max(run.planned or run.rounds for run in runs)
    several = list(zip(styles, names, runs, strict=True))
    means = [(style, name, curve) for style, name, run in several if (curve := run.mean_curve("delivered"))]
    panels = []
    top = ceiling(share for run in runs for task in tasks for _, share in run.curve(task, "delivered"))
    for task in tasks:
        lines = [(style, name, curve) for style, name, run in several if (curve := run.curve(task, "delivered"))]
        panels.append((task, line_chart(lines, last=last, top=top)))
    rows = [_comparison_row(run) for run in runs]
    points = [
        (style, name, row["up"] + row["down"], row["delivered"])
        for style, name, row in zip(styles, names, rows, strict=True)
        if row["up"] and row["down"] and row["delivered"] is not None
    ]
    return render(
        "comparison.html", name=f"{counted(len(runs), 'run')} side by side", above="",
        runs=[
            {"name": name, "file": file, "style": style, "run": run, "state": state_of(run), **row}
            for name, file, style, run, row in zip(names, files, styles, runs, rows, strict=True)
        ],
        tasks=tasks, panels=panels if last and any(over_time(run, tasks) for run in runs) else [],
        scatter=scatter(points) if points else None,
        mean=line_chart(means, last=last, top=ceiling(y for *_, c in means for _, y in c), width=440, height=240)
        if last and any(len(curve) > 1 for *_, curve in means) else None,
        once=bool(means),
        shown=[name for name in (*KINDS, "normalised", "worst client") if any(row[name] is not None for row in rows)],
        differing=_differing(runs),
    )  # fmt: skip


def _comparison_row(run: RunFolder) -> dict[str, Any]:
    sent = table(run.result.get("bytes"))
    return {kind: run.mean_accuracy(kind) for kind in KINDS} | {
        "normalised": number(table(run.result.get("normalised")).get("mean_of_ratios")),
        "worst client": number(table(run.result.get("worst_client")).get("accuracy")),
        "up": number(sent.get("uplink_per_client_round")),
        "down": number(sent.get("downlink_per_client_round")),
        "seconds": number(table(run.result.get("seconds")).get("total")),
        "failed": len(run.failures()),
    }


def _differing(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with their values by run."""
    flat = [{f"{s}.{name}": value for s, v in run.settings.items() for name, value in table(v).items()} for run in runs]
    named = dict.fromkeys(name for one in flat for name in one)
    rows = [(name, [shown_value(one.get(name)) for one in flat]) for name in named]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def distinct_names(runs: Sequence[RunFolder]) -> list[str]:
    """A name a run: its folder's without a cell's hash and what all runs share; numbered where two are alike."""
    parts = [re.sub(r"-[0-9a-f]{12}$", "", run.name).split("-") for run in runs]
    shared = set(parts[0]).intersection(*parts)
    plain = ["-".join([part for part in own if part not in shared] or own) for own in parts]
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in plain]
    counts = [short[: at + 1].count(name) for at, name in enumerate(short)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(short, counts, strict=True)]
