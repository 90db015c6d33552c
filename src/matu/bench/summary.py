"""From finished cells to means, spreads, normalised accuracy, and intervals on the difference to the baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from matu.bench.options import shown
from matu.bench.plan import Cell, Comparison
from matu.config import WireConfig

CONFIDENCE = 0.95

Result = Mapping[str, Any]


def summarise(
    comparison: Comparison,
    finished: Mapping[Cell, Result],
    tuning: Mapping[str, Any] | None,
    name: str,
    diverged: Collection[Cell] = (),
) -> dict[str, Any]:
    """Everything that tables and figures show: one table of plain numbers (`results.json`).

    Parameters
    ----------
    finished
        By cell, its `result.json` with accuracies on the way under `curve`, S and cosines under `geometry`.
    tuning
        The record of how the rates were chosen, or None.
    diverged
        Cells that ended without a result because their numbers left their range.
    """
    summary = {}
    baseline = next((m for m in comparison.methods if shown(m) == shown(comparison.baseline)), "")
    for setting in comparison.running():
        alone = _individual(_of(finished, setting, "individual"))
        summary[setting] = {
            shown(method): _summary(mine, _of(finished, setting, baseline), alone, comparison.target)
            for method in comparison.methods
            if (mine := _of(finished, setting, method))
        }
    first = next(iter(finished.values()), None)
    return {
        "format": 1,
        "name": name,
        "settings": {setting: dict(comparison.settings[setting]) for setting in comparison.running()},
        "axis": comparison.axis or None,
        "methods": [shown(method) for method in comparison.methods],
        "seeds": list(comparison.seeds),
        "tasks": {task: {k: about[k] for k in ("classes", "chance", "train", "test", "sha256")}
                  for task, about in first["tasks"].items()} if first else {},
        "tuning": tuning,
        "target": comparison.target,
        "baseline": shown(comparison.baseline),
        "cells": [_cell(cell, result) for cell, result in finished.items()],
        "diverged": [{"setting": c.setting, "method": shown(c.method), "seed": c.seed} for c in diverged],
        "wire": _wire(comparison),
        "summary": summary,
    }  # fmt: skip


def to_draw(results: Mapping[str, Any], paired: Mapping[str, Any]) -> dict[str, Any]:
    """A summary of `on_common_seeds` with the other cells of the whole one under `further`."""
    drawn = {(c["setting"], c["method"], c["seed"]) for c in paired["cells"]}
    further = [c for c in results["cells"] if (c["setting"], c["method"], c["seed"]) not in drawn]
    return {**paired, "further": further}


def on_common_seeds(finished: Mapping[Cell, Result]) -> dict[Cell, Result]:
    """Of each setting the cells on the seeds that all its methods have (all cells, if no seed is common).

    A seed is another partition, which moves all methods: means over different ones are no comparison. Individual,
    which knows no partition, keeps its seeds.
    """
    seeds: dict[str, dict[str, set[int]]] = {}
    for cell in finished:
        if cell.method != "individual":
            seeds.setdefault(cell.setting, {}).setdefault(cell.method, set()).add(cell.seed)
    common = {setting: set.intersection(*by_method.values()) for setting, by_method in seeds.items()}
    return {
        cell: result for cell, result in finished.items()
        if cell.method == "individual" or not common[cell.setting] or cell.seed in common[cell.setting]
    }  # fmt: skip


def _wire(comparison: Comparison) -> dict[str, Any]:
    """How messages travel, where not exactly: what differs from the exact form."""
    exact = dataclasses.asdict(WireConfig.exact())
    return {k: v for k, v in dataclasses.asdict(comparison.base.wire).items() if v != exact[k]}


def _of(finished: Mapping[Cell, Result], setting: str, method: str) -> dict[int, Result]:
    """A method's results in a setting, by seed; a cell that several settings share stands under each."""
    return {c.seed: r for c, r in finished.items() if c.setting == setting and c.method == method}


def _individual(mine: Mapping[int, Result]) -> dict[str, float] | None:
    """By task, individual's accuracy in a setting, mean over the seeds that are there."""
    if not mine:
        return None
    results = list(mine.values())
    tasks = results[0]["accuracy"]
    return {task: float(np.mean([r["accuracy"][task]["delivered"] for r in results])) for task in tasks}


def _cell(cell: Cell, result: Result) -> dict[str, Any]:
    return {
        "setting": cell.setting, "method": shown(cell.method), "seed": cell.seed, "learning_rate": cell.learning_rate,
        "hash": cell.hash, "rounds": result["rounds"], "precision": result["config"]["machine"]["precision"],
        "accuracy": {task: {k: found[k] for k in ("delivered", "server", "artifact")}
                     for task, found in result["accuracy"].items()},
        "average": result["mean_accuracy"]["delivered"], "worst_client": _worst(result),
        "bytes": result["bytes"], "paper_mbits": result["paper_mbits"], "seconds": result["seconds"]["total"],
        "failures": result["failures"], "curve": _curve(result), "geometry": result["geometry"],
    }  # fmt: skip


def _worst(result: Result) -> float | None:
    """Of individual it would be a client of no federation."""
    return None if result["method"] == "individual" else float(result["worst_client"]["accuracy"])


def _curve(result: Result) -> list[list[float]]:
    """Round and mean delivered accuracy: on the way (a part of the test images), and at the end (all)."""
    if not result["rounds"]:
        return []
    return [*result["curve"], [result["rounds"], result["mean_accuracy"]["delivered"]]]


def _summary(
    mine: Mapping[int, Result], baseline: Mapping[int, Result], alone: Mapping[str, float] | None, target: float
) -> dict[str, Any]:
    results, first = list(mine.values()), next(iter(mine.values()))
    federated = bool(first["rounds"])

    def spread(value: Callable[[Result], float]) -> dict[str, float | None]:
        return _spread([value(result) for result in results])

    normalised: dict[str, Any] = {"mean_of_ratios": None, "ratio_of_means": None}
    if alone and all(alone.values()):
        normalised = {
            "mean_of_ratios": spread(
                lambda r: float(np.mean([r["accuracy"][t]["delivered"] / a for t, a in alone.items()]))
            ),
            "ratio_of_means": spread(lambda r: r["mean_accuracy"]["delivered"] / float(np.mean(list(alone.values())))),
        }
    return {
        "seeds": sorted(mine),
        "rounds": first["rounds"],
        "accuracy": {t: _spread([r["accuracy"][t]["delivered"] for r in results]) for t in first["accuracy"]},
        "average": spread(lambda r: r["mean_accuracy"]["delivered"]),
        "normalised": normalised,
        "worst_client": None if first["method"] == "individual" else spread(lambda r: r["worst_client"]["accuracy"]),
        "uplink_bytes": _mean(results, lambda r: r["bytes"]["uplink_per_client_round"]) if federated else None,
        "downlink_bytes": _mean(results, lambda r: r["bytes"]["downlink_per_client_round"]) if federated else None,
        "round_bytes": _mean(results, _round_bytes) if federated else None,
        "paper_mbits": _mean(results, lambda r: r["paper_mbits"]) if federated else None,
        "rounds_to_target": _rounds_to(results, alone, target) if federated else None,
        "difference": difference(mine, baseline) if mine != baseline else None,
    }  # fmt: skip


def _round_bytes(result: Result) -> float:
    total: float = result["bytes"]["uplink_total"] + result["bytes"]["downlink_total"]
    return total / result["rounds"]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and sample standard deviation where there is more than one."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _mean(results: Sequence[Result], value: Callable[[Result], float]) -> float:
    return float(np.mean([value(result) for result in results]))


def _rounds_to(results: Sequence[Result], alone: Mapping[str, float] | None, target: float) -> dict[str, Any] | None:
    """Rounds until the accuracy on the way first reaches the share of individual's mean."""
    if not alone:
        return None
    wanted = target * float(np.mean(list(alone.values())))
    reached = [next((r for r, accuracy in _curve(result) if accuracy >= wanted), None) for result in results]
    rounds = [r for r in reached if r is not None]
    return {"mean": float(np.mean(rounds)) if rounds else None, "reached": len(rounds), "of": len(results)}


def difference(mine: Mapping[int, Result], baseline: Mapping[int, Result]) -> dict[str, Any] | None:
    """Mean delivered accuracy minus the baseline's, with a 95 % interval.

    With two seeds or more in common: Student's t over the paired differences. With one: the normal
    approximation over test images, as if both were tested on images of their own, which is the wider.
    """
    seeds = sorted(set(mine) & set(baseline))
    if not seeds:
        return None
    found = [mine[s]["mean_accuracy"]["delivered"] - baseline[s]["mean_accuracy"]["delivered"] for s in seeds]
    middle = float(np.mean(found))
    if len(found) > 1:
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1) * float(np.std(found, ddof=1)) / math.sqrt(len(found))
        kind = "seeds"
    else:
        pair, tasks = (mine[seeds[0]], baseline[seeds[0]]), mine[seeds[0]]["tasks"]
        variance = sum(
            (p := r["accuracy"][task]["delivered"]) * (1 - p) / about["test"]
            for r in pair for task, about in tasks.items()
        )  # fmt: skip
        reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance) / len(tasks)
        kind = "test images"
    return {"mean": middle, "low": middle - float(reach), "high": middle + float(reach), "kind": kind}
