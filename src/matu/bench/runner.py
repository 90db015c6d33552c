"""Run cells: several at a time, each from its checkpoint if it has one, none twice."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

from matu.bench.plan import Cell
from matu.config import MachineConfig, RunConfig, read_config
from matu.errors import DivergedError, MatuError
from matu.files import write_atomic
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from matu.training import parallel_jobs
from matu.training.machine import cores

LOOK_EVERY_S = 60.0
"""Seconds between lines that tell how far the running cells are."""
DIVERGED = "diverged.txt"
"""In the folder of a cell that ended without a result for a reason that repeats: numbers out of range."""


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


def jobs_of(bench: Bench, machine: MachineConfig) -> int:
    """Cells at a time."""
    return bench.jobs or (cores() if machine.device.startswith("cpu") else 1)


def run_cells(
    cells: Sequence[Cell], folder: Path, bench: Bench, done: Callable[[Cell], object]
) -> dict[Cell, Exception]:  # fmt: skip
    """Run the cells that are not finished, and return what went wrong with which.

    A cell that diverged before is not run again: its numbers would repeat.
    """
    folders = {cell.folder: cell for cell in cells}
    failures: dict[Cell, Exception] = {}
    missing: list[Cell] = []
    for name, cell in folders.items():
        if (folder / name / DIVERGED).is_file():
            failures[cell] = DivergedError((folder / name / DIVERGED).read_text().strip())
        elif not (folder / name / "result.json").is_file():
            missing.append(cell)
    if not missing:
        return failures
    jobs = min(jobs_of(bench, missing[0].config.machine), len(missing))
    done_before = len(folders) - len(missing)
    bench.tell(f"{folder}: {done_before} cells are done, {len(missing)} to run, {jobs} at a time")
    for number, (cell, error) in enumerate(_each(missing, folder, bench, jobs), 1):
        if error is None:
            bench.tell(f"{number}/{len(missing)} {cell}: {_outcome(folder / cell.folder)}")
            done(cell)
        else:
            bench.tell(f"{number}/{len(missing)} {cell}: failed: {error}")
            failures[cell] = error
    return failures


def _outcome(folder: Path) -> str:
    result = json.loads((folder / "result.json").read_text())
    return f"{100 * result['mean_accuracy']['delivered']:.1f} % delivered in {result['seconds']['total']:.0f} s"


def _each(
    cells: Sequence[Cell], folder: Path, bench: Bench, jobs: int
) -> Iterator[tuple[Cell, Exception | None]]:  # fmt: skip
    """Every cell as it ends, with what went wrong."""
    machine = cells[0].config.machine
    sites = max(1, parallel_jobs(machine, cores()) // jobs)  # at a time in a cell; no number depends on it
    if jobs == 1:
        for cell in cells:
            try:
                run_cell(cell.config, folder / cell.folder, bench.roots, sites)
                yield cell, None
            except Exception as error:
                yield cell, error
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_the_parent)
    running: dict[Future[None], Cell] = {}
    waiting = list(cells)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[pool.submit(run_cell, cell.config, folder / cell.folder, bench.roots, sites)] = cell
            finished, _ = wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            if not finished:
                bench.tell("  " + "; ".join(f"{cell}: {_progress(folder / cell.folder)}" for cell in running.values()))
            for future in finished:
                ended, wrong = running.pop(future), future.exception()
                if isinstance(wrong, BrokenProcessPool):
                    raise MatuError("a worker process was killed (out of memory?); fewer --jobs may be right")
                if wrong is not None and not isinstance(wrong, Exception):
                    raise wrong  # Ctrl-C
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
    if not path.is_file():
        return "at work"
    rounds = path.read_bytes().count(b"\n")
    return f"round {rounds}"


def run_cell(config: RunConfig, folder: Path, roots: Roots, jobs: int = 1) -> None:
    """Run one cell to its end in this process, going on from its checkpoint if it has one.

    Raises
    ------
    DivergedError
        If its numbers left their range; noted in the folder.
    MatuError
        For any other reason; of an error that nobody foresaw `traceback.txt` in the folder tells more.
    """
    try:
        _run_or_resume(config, folder, roots, jobs)
    except DivergedError as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / DIVERGED, f"{error}\n".encode())
        raise
    except MatuError:
        raise
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "traceback.txt", traceback.format_exc().encode())
        raise MatuError(f"{type(error).__name__}: {error}; {folder / 'traceback.txt'} tells where") from error


def _run_or_resume(config: RunConfig, folder: Path, roots: Roots, jobs: int) -> None:
    begun = read_config(folder / "config.toml") if (folder / "config.toml").is_file() else None
    if (
        begun is not None
        and begun.machine.device == config.machine.device
        and dataclasses.replace(begun, machine=config.machine) == config
    ):
        simulate(begun, folder, roots, Display(quiet=True), resume=True, jobs=jobs)
    else:  # also what was begun on another kind of machine, or with tasks, backbone or method at another place
        shutil.rmtree(folder, ignore_errors=True)
        simulate(config, folder, roots, Display(quiet=True), jobs=jobs)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of use only to go on
