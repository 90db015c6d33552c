"""Run every cell of a comparison, or reuse it; tune, summarise, write tables and figures."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from matu.bench.plan import (
    Cell,
    Comparison,
    comparison_of,
    differences,
    load_saved,
    with_options,
    write_comparison,
)
from matu.bench.report import latex, markdown
from matu.bench.summary import summarise
from matu.config import MachineConfig, RunConfig, read_config
from matu.errors import ConfigError, MatuError
from matu.files import write_atomic
from matu.report import Display
from matu.simulate import Roots, deal, read_tasks, simulate
from matu.tasks import Task
from matu.training import decide

NEWLINE = b"\n"
LOOK_EVERY_S = 60.0
"""Seconds between lines that tell how far the running cells are."""


@dataclass(frozen=True)
class Bench:
    """Where a comparison lives, and what runs it.

    Attributes
    ----------
    out
        Its folder: `compare.toml`, `cells/`, `tuning/`, tables and figures.
    roots
        This machine's folders.
    jobs
        Cells that run at a time; 0: one a core on a CPU, one on a GPU.
    tell
        Takes a line for people.
    """

    out: Path
    roots: Roots
    jobs: int
    tell: Callable[[str], None]


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
        At the end, if a cell failed; all others are done and written.
    """
    comparison.check()
    tasks = _check_tasks(comparison, bench.roots)
    comparison, whole = _settle(comparison, bench)
    bench.out.mkdir(parents=True, exist_ok=True)
    write_atomic(bench.out / "compare.toml", write_comparison(whole))
    tuning_cells = [cell for cell in whole.tuning_cells() if cell.method in comparison.tuned()]
    _run(tuning_cells, bench.out / "tuning", bench, tasks, lambda cell: None)
    tuning = _tuning(whole, bench.out / "tuning")
    rates = tuning["chosen"] if tuning else dict.fromkeys(whole.tuned(), whole.learning_rates[0])
    untuned = [name for name in comparison.tuned() if name not in rates]
    if untuned:
        raise MatuError(f"tuning: {', '.join(untuned)} ended without a result at every rate")

    def write() -> tuple[dict[str, Any], Mapping[Cell, Mapping[str, Any]]]:
        known = [cell for cell in whole.cells(rates) if (bench.out / "cells" / cell.folder).is_dir()]
        finished = {cell: found for cell in known if (found := _finished(bench.out / "cells" / cell.folder, tasks))}
        return write_results(whole, finished, tuning, bench.out), finished

    write()  # what a stopped run left is shown at once
    failures = _run(comparison.cells(rates), bench.out / "cells", bench, tasks, lambda cell: write())
    results, finished = write()
    if finished:
        from matu.bench.figures import draw_all  # matplotlib takes its time to load

        draw_all(results, bench.out / "figures")
    if failures:
        raise MatuError("; ".join(failures) + "; the same command tries again what failed")
    return results


def _check_tasks(comparison: Comparison, roots: Roots) -> dict[str, Task]:
    """Load the tasks, and deal them out in every setting: what cannot work is told before any work."""
    tasks = {task.name: task for task in read_tasks(comparison.base.tasks, roots)}
    for setting, changes in comparison.settings.items():
        try:
            deal(tasks, with_options(comparison.base, changes).federation, comparison.seeds[0])
        except MatuError as error:
            raise type(error)(f"setting '{setting}': {error}") from error
    return tasks


def _settle(asked: Comparison, bench: Bench) -> tuple[Comparison, Comparison]:
    """What is asked for, and that with all the folder holds; ConfigError for a folder of another comparison.

    What is decided by measuring is decided once, for all cells.
    """
    saved, whole = load_saved(bench.out / "compare.toml"), asked
    if saved is None and bench.out.exists() and any(not p.name.startswith(".") for p in bench.out.iterdir()):
        raise ConfigError(f"--out {bench.out}: there already, and no comparison (no compare.toml); take another folder")
    if saved is not None:
        changed = differences(saved, asked.table())
        if changed:
            raise ConfigError(
                f"--out {bench.out}: holds results of another configuration ({'; '.join(changed)}); "
                "take another folder, or run with its settings"
            )
        before = comparison_of(saved, str(bench.out / "compare.toml"))
        whole = dataclasses.replace(
            asked,
            settings={**before.settings, **asked.settings},
            methods=tuple(dict.fromkeys((*before.methods, *asked.methods))),
            seeds=tuple(dict.fromkeys((*before.seeds, *asked.seeds))),
        )
    machine = asked.base.machine
    if not machine.threads:
        machine = dataclasses.replace(machine, threads=max(1, _cores() // _jobs(bench, machine)))
    if machine.precision == "auto" and saved is not None and saved["machine"]["device"] == machine.device:
        machine = dataclasses.replace(machine, precision=saved["machine"]["precision"])
    base = dataclasses.replace(asked.base, machine=machine)
    if machine.precision == "auto":
        base = dataclasses.replace(base, machine=decide(base, bench.roots.models))
    return dataclasses.replace(asked, base=base), dataclasses.replace(whole, base=base)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(bench: Bench, machine: MachineConfig) -> int:
    return bench.jobs or (_cores() if machine.device.startswith("cpu") else 1)


def _tuning(comparison: Comparison, folder: Path) -> dict[str, Any] | None:
    """The record of the tuning runs: each method's rate is that of its best accuracy on held-out images."""
    cells = comparison.tuning_cells()
    if not cells:
        return None
    accuracy: dict[str, dict[str, float | None]] = {}
    for cell in cells:
        found = _finished(folder / cell.folder, None)
        mean = found["mean_accuracy"]["delivered"] if found else None
        accuracy.setdefault(cell.method, {})[f"{cell.learning_rate:g}"] = mean
    known = {method: {rate: a for rate, a in row.items() if a is not None} for method, row in accuracy.items()}
    return {
        "setting": comparison.tune_setting, "rounds": comparison.tune_rounds, "seed": comparison.seeds[0],
        "rates": list(comparison.learning_rates), "accuracy": accuracy,
        "chosen": {method: float(max(row, key=row.__getitem__)) for method, row in known.items() if row},
    }  # fmt: skip


def _finished(folder: Path, tasks: Mapping[str, Task] | None) -> dict[str, Any] | None:
    """The result of a finished cell with its curve, or None; ConfigError if it was made of other data."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'result.json'}: cannot be read ({error}); delete the folder to run it again"
        ) from error
    for name, task in (tasks or {}).items():
        if result["tasks"].get(name, {}).get("sha256") != task.digest:
            raise ConfigError(f"{folder}: was made with another content of task '{name}'; take another --out folder")
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
    measured = [line for line in map(json.loads, lines) if "mean_accuracy" in line]
    result["curve"] = [[line["round"], line["mean_accuracy"]["delivered"]] for line in measured]
    return dict(result)


def _run(
    cells: Sequence[Cell], folder: Path, bench: Bench, tasks: Mapping[str, Task], done: Callable[[Cell], object]
) -> list[str]:
    """Run the cells that are not finished, several at a time; a line for each that failed."""
    folders = {cell.folder: cell for cell in cells}
    missing = {name: cell for name, cell in folders.items() if not (folder / name / "result.json").is_file()}
    if not missing:
        return []
    jobs = min(_jobs(bench, next(iter(missing.values())).config.machine), len(missing))
    done_before = len(folders) - len(missing)
    bench.tell(f"{folder}: {done_before} cells are done, {len(missing)} to run, {jobs} at a time")
    failures = []
    for number, (cell, error) in enumerate(_each(list(missing.values()), folder, bench, jobs), 1):
        if error is None:
            bench.tell(f"{number}/{len(missing)} {cell}: {_outcome(folder / cell.folder)}")
            done(cell)
        else:
            bench.tell(f"{number}/{len(missing)} {cell}: failed: {error}")
            failures.append(f"{cell}: {error}")
    return failures


def _outcome(folder: Path) -> str:
    result = json.loads((folder / "result.json").read_text())
    return f"{100 * result['mean_accuracy']['delivered']:.1f} % delivered in {result['seconds']['total']:.0f} s"


def _each(
    cells: Sequence[Cell], folder: Path, bench: Bench, jobs: int
) -> Iterator[tuple[Cell, Exception | None]]:  # fmt: skip
    """Every cell as it ends, with what went wrong."""
    if jobs == 1:
        for cell in cells:
            try:
                run_cell(cell.config, folder / cell.folder, bench.roots)
                yield cell, None
            except (MatuError, OSError, ValueError) as error:
                yield cell, error
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_the_parent)
    running: dict[Future[None], Cell] = {}
    waiting = list(cells)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[pool.submit(run_cell, cell.config, folder / cell.folder, bench.roots)] = cell
            finished, _ = wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            if not finished:
                bench.tell("  " + "; ".join(f"{cell}: {_progress(folder / cell.folder)}" for cell in running.values()))
            for future in finished:
                ended, wrong = running.pop(future), future.exception()
                if isinstance(wrong, BrokenProcessPool):
                    raise MatuError("a worker process was killed (out of memory?); fewer --jobs may be right")
                if wrong is not None and not isinstance(wrong, (MatuError, OSError, ValueError)):
                    raise wrong  # Ctrl-C, or a bug
                yield ended, wrong
    except KeyboardInterrupt:
        for worker in active_children():  # where only this process was interrupted
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGINT)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_the_parent() -> None:
    """In a worker: a comparison that was killed must not go on unseen, and hold its cells."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _progress(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    return f"round {path.read_bytes().count(NEWLINE)}" if path.is_file() else "at work"


def run_cell(config: RunConfig, folder: Path, roots: Roots) -> None:
    """Run one cell to its end in this process, going on from its checkpoint if it has one."""
    if (folder / "config.toml").is_file():
        simulate(read_config(folder / "config.toml"), folder, roots, Display(quiet=True), resume=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # a kill before the configuration was written
        simulate(config, folder, roots, Display(quiet=True))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of use only to go on


def write_results(
    comparison: Comparison, finished: Mapping[Cell, Mapping[str, Any]], tuning: Mapping[str, Any] | None, out: Path
) -> dict[str, Any]:
    """Summarise, and write `results.json` and the tables."""
    results = summarise(comparison, finished, tuning, out.resolve().name)
    write_atomic(out / "results.json", json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
    write_atomic(out / "table.md", markdown(results).encode())
    write_atomic(out / "table.tex", latex(results).encode())
    return results
