"""A whole comparison: checked, tuned, run or reused, summarised, written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from matu.bench.options import parse_spec, shown
from matu.bench.plan import Cell, Comparison
from matu.bench.report import latex, markdown
from matu.bench.runner import DIVERGED, Bench, run_cells
from matu.bench.saved import comparison_of, differences, load_saved, write_comparison
from matu.bench.summary import on_common_seeds, summarise, to_draw
from matu.errors import ConfigError, DivergedError, MatuError
from matu.files import only_one, write_atomic
from matu.methods import Problem, Reference, find_method, method_source
from matu.roots import Roots, read_tasks
from matu.simulate import deal
from matu.tasks import Task, held_out
from matu.tasks.held_out import held_out_digest
from matu.training import build_trainer, decide, prepare_machine

Result = Mapping[str, Any]


def compare(comparison: Comparison, bench: Bench) -> dict[str, Any]:
    """Run what is missing, and write `results.json`, `table.md`, `table.tex` and `figures/`.

    Every finished cell stays; the same call goes on after a stop.

    Returns
    -------
    dict
        The content of `results.json`.

    Raises
    ------
    ConfigError, DataError
        Before any work, for whatever cannot work.
    MatuError
        At the end, if a cell failed; all others are done and written. One that diverged is told in the tables.
    """
    comparison.check()
    if bench.jobs < 0:
        raise ConfigError(f"jobs {bench.jobs}: expected 0 (as many as there are cores), or more")
    whole = _with_what_is_there(comparison, bench)
    whole.check()
    facts = _check(comparison, whole, bench.roots)
    _check_finished(bench.out, facts)
    comparison, whole = _settle(comparison, whole, bench)
    bench.out.mkdir(parents=True, exist_ok=True)
    with only_one(bench.out):
        write_atomic(bench.out / "compare.toml", write_comparison(whole))
        return _compare(comparison, whole, bench)


def _compare(comparison: Comparison, whole: Comparison, bench: Bench) -> dict[str, Any]:
    tuning = _tune(comparison, whole, bench)
    rates = tuning["chosen"] if tuning else dict.fromkeys(whole.tuned(), whole.learning_rates[0])

    def write() -> tuple[dict[str, Any], Mapping[Cell, Result]]:
        folder = bench.out / "cells"
        finished = {cell: found for cell in whole.cells(rates) if (found := _finished(folder / cell.folder))}
        diverged = [cell for cell in whole.cells(rates) if (folder / cell.folder / DIVERGED).is_file()]
        results = summarise(whole, finished, tuning, bench.out.resolve().name, diverged)
        write_atomic(bench.out / "results.json", json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
        write_atomic(bench.out / "table.md", markdown(results).encode())
        write_atomic(bench.out / "table.tex", latex(results).encode())
        return results, finished

    write()  # what a stopped run left is shown at once
    failures = run_cells(comparison.cells(rates), bench.out / "cells", bench, lambda cell: write())
    results, finished = write()
    if finished:
        from matu.bench.figures import draw_all  # matplotlib takes its time to load

        paired = summarise(whole, on_common_seeds(finished), tuning, results["name"])
        draw_all(to_draw(results, paired), bench.out / "figures")
    if failed := {cell: error for cell, error in failures.items() if not isinstance(error, DivergedError)}:
        said = "; ".join(f"{cell}: {error}" for cell, error in failed.items())
        raise MatuError(f"{said}; the same command tries again")
    return results


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What finished cells must have been made of: digests of the tasks by name, and of the backbone."""

    tasks: Mapping[str, str]
    backbone: str


def _check(comparison: Comparison, whole: Comparison, roots: Roots) -> _Facts:
    """Load backbone and tasks, make every method, deal out every partition: what cannot work is told now."""
    rates = dict.fromkeys(comparison.tuned(), comparison.learning_rates[0])
    cells = comparison.cells(rates)
    prepare_machine(comparison.base.machine)
    trainers = {
        model: build_trainer(config, roots.models, torch.device("cpu"), "float32")
        for model, config in {cell.config.model: cell.config for cell in cells}.items()
    }
    for cell in cells:
        find_method(cell.config.federation.method).options_of(cell.config)
    tasks = {task.name: task for task in read_tasks(comparison.base.tasks, roots)}
    for cell in cells:
        kind, model = find_method(cell.config.federation.method), trainers[cell.config.model].model
        classes = {name: len(task.classes) for name, task in tasks.items()}
        if issubclass(kind, Reference):
            kind(cell.config)
        else:
            kind(Problem(classes, model.layout, model.backbone.features), cell.config)
    _check_partitions(cells, tasks)
    asked = set(comparison.tuned())
    tuning = [cell for cell in whole.tuning_cells() if cell.method in asked]
    _check_partitions(tuning, {name: held_out(task) for name, task in tasks.items()})
    backbone = next(iter(trainers.values())).model.backbone.digest
    return _Facts({name: task.digest for name, task in tasks.items()}, backbone)


def _check_partitions(cells: list[Cell], tasks: Mapping[str, Task]) -> None:
    dealt = set()
    for cell in cells:
        f = dataclasses.replace(cell.config.federation, method="", options=(), rounds=1)
        if (f, cell.seed) not in dealt:
            dealt.add((f, cell.seed))
            try:
                deal(tasks, f, cell.seed)
            except MatuError as error:
                raise type(error)(f"{cell}: {error}") from error


def _check_finished(out: Path, facts: _Facts) -> None:
    """Refuse finished cells of other data or of another backbone."""
    for kind in ("cells", "tuning"):
        for path in sorted((out / kind).glob("*/result.json")):
            found = _finished(path.parent)
            assert found is not None
            if found["backbone"]["sha256"] != facts.backbone:
                raise ConfigError(f"{path.parent}: was made with another backbone; take another --out folder")
            for name, digest in facts.tasks.items():
                expected = held_out_digest(digest) if kind == "tuning" else digest
                if found["tasks"].get(name, {}).get("sha256") != expected:
                    raise ConfigError(
                        f"{path.parent}: was made with another content of task '{name}'; take another --out folder"
                    )


def _with_what_is_there(asked: Comparison, bench: Bench) -> Comparison:
    """What is asked for and what the folder holds already; ConfigError for a folder of another comparison."""
    saved = load_saved(bench.out / "compare.toml")
    if saved is None:
        if bench.out.exists() and any(not p.name.startswith(".") for p in bench.out.iterdir()):
            raise ConfigError(
                f"--out {bench.out}: there already, and no comparison (no compare.toml); take another folder"
            )
        return asked
    changed = differences(saved, asked.table())
    if changed:
        raise ConfigError(
            f"--out {bench.out}: holds results of another configuration ({'; '.join(changed)}); "
            "take another folder, or run with its settings"
        )
    before = comparison_of(saved, str(bench.out / "compare.toml"))
    methods = list(asked.methods)
    for spec in reversed(before.methods):
        try:
            parse_spec(spec)
        except ConfigError as error:  # a method's file that is gone
            bench.tell(f"left out of the tables: {error}")
            continue
        here = next((other for other in methods if shown(other) == shown(spec)), spec)
        if here != spec and method_source(here.split()[0]) == method_source(spec.split()[0]):
            spec = here  # the same file at another place
        methods = [spec, *(other for other in methods if other != spec)]
    return dataclasses.replace(
        asked,
        settings={**before.settings, **asked.settings},
        methods=tuple(methods),
        seeds=tuple(dict.fromkeys((*before.seeds, *asked.seeds))),
        only=tuple(dict.fromkeys((*before.running(), *asked.running()))),
        tune_setting=before.tune_setting,
    )


def _settle(asked: Comparison, whole: Comparison, bench: Bench) -> tuple[Comparison, Comparison]:
    """Both with the machine's settings: what is decided by measuring is decided once, for all cells."""
    saved, machine = load_saved(bench.out / "compare.toml"), asked.base.machine
    if not machine.threads:
        machine = dataclasses.replace(machine, threads=1)  # cores are for cells and their sites
    if saved is not None and saved["machine"]["device"] == machine.device:
        undecided = {"precision": "auto", "together": 0}
        known = {name: saved["machine"][name] for name, value in undecided.items() if getattr(machine, name) == value}
        machine = dataclasses.replace(machine, **known)
    base = dataclasses.replace(asked.base, machine=machine)
    base = dataclasses.replace(base, machine=decide(base, bench.roots.models))
    return dataclasses.replace(asked, base=base), dataclasses.replace(whole, base=base)


def _tune(comparison: Comparison, whole: Comparison, bench: Bench) -> dict[str, Any] | None:
    """Run the tuning cells of the methods asked for, and choose: the best accuracy on held-out training images.

    Raises
    ------
    MatuError
        If a cell failed for another reason than divergence: the choice would depend on it.
    """
    cells, folder = whole.tuning_cells(), bench.out / "tuning"
    if not cells:
        return None
    asked = set(comparison.tuned())
    failures = run_cells([cell for cell in cells if cell.method in asked], folder, bench, lambda cell: None)
    broken = [f"{cell}: {error}" for cell, error in failures.items() if not isinstance(error, DivergedError)]
    if broken:
        raise MatuError(f"tuning: {'; '.join(broken)}; the same command tries again")
    accuracy: dict[str, dict[str, float | None]] = {cell.method: {} for cell in cells}  # None: diverged
    for cell in cells:
        if found := _finished(folder / cell.folder):
            accuracy[cell.method][repr(cell.learning_rate)] = found["mean_accuracy"]["delivered"]
        elif (folder / cell.folder / DIVERGED).is_file():
            accuracy[cell.method][repr(cell.learning_rate)] = None
    known = {method: {rate: a for rate, a in row.items() if a is not None} for method, row in accuracy.items()}
    untuned = sorted(method for method in asked if not known[method])
    if untuned:
        reasons = "; ".join(f"{cell}: {error}" for cell, error in failures.items())
        raise MatuError(
            f"tuning: {', '.join(untuned)} diverged at every rate ({reasons}); other --learning-rates may do"
        )
    chosen = {method: float(max(row, key=row.__getitem__)) for method, row in known.items() if row}
    for method in [method for method in chosen if len(accuracy[method]) < len(whole.learning_rates)]:
        # Its tuning was stopped; or else the grid has grown since, and there are runs at the rate that was its best.
        if not any(_finished(bench.out / "cells" / cell.folder) for cell in whole.cells({method: chosen[method]})):
            del chosen[method]
    return {
        "setting": whole.tune_setting, "rounds": whole.tune_rounds, "seed": whole.seeds[0],
        "rates": list(whole.learning_rates), "accuracy": {m: row for m, row in accuracy.items() if known[m]},
        "chosen": chosen,
    }  # fmt: skip


def _finished(folder: Path) -> dict[str, Any] | None:
    """The result of a finished cell with what was measured on the way (`curve`, `geometry`), or None."""
    try:
        result = json.loads((folder / "result.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
        measured = [line for line in map(json.loads, lines) if "mean_accuracy" in line]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be read ({error}); delete the folder to run it again") from error
    result["curve"] = [[line["round"], line["mean_accuracy"]["delivered"]] for line in measured]
    geometry: dict[str, list[list[float]]] = {}
    for line in measured:
        kinds = {"similarity": line.get("similarity")} | {f"cosine {k}": c for k, c in line.get("cosine", {}).items()}
        for kind, value in kinds.items():
            if value is not None:
                geometry.setdefault(kind, []).append([line["round"], value])
    return dict(result) | {"geometry": geometry}
