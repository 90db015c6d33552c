"""A run that was stopped, open at its next round."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from matu.config import read_config
from matu.federation.checkpoint import Progress, load_checkpoint
from matu.methods import Method
from matu.report import Display
from matu.roots import find_roots
from matu.simulate import Run, prepare
from matu.training import Trainer


def open_run(folder: Path, *, max_test: int = 0) -> tuple[Run, Method, Trainer, Progress]:
    """The run in a folder with config.toml and checkpoint, its method and trainer on one thread, and how far it came.

    With `max_test` it has at most so many test images a task.
    """
    config = read_config(folder / "config.toml")
    config = dataclasses.replace(
        config, machine=dataclasses.replace(config.machine, threads=1),
        tasks=dataclasses.replace(config.tasks, max_test=max_test or config.tasks.max_test),
    )  # fmt: skip
    run = prepare(config, folder, find_roots(), Display(quiet=True))
    pointer = folder / "checkpoint" / "checkpoint.json"
    # whose it is is taken from itself: sources and machine may have changed since
    progress = load_checkpoint(folder / "checkpoint", json.loads(pointer.read_text())["run"])
    if not isinstance(run.method, Method) or progress is None:
        raise SystemExit(f"{folder}: method '{config.federation.method}' has no server, or no round was finished")
    return run, run.method, dataclasses.replace(run.trainer, objective=run.method.objective), progress
