"""A whole run in one process: data, sites, rounds, evaluation, reference, artifact, result."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu.artifact import save_artifact
from matu.config import RunConfig, write_config
from matu.errors import ConfigError, DataError
from matu.federation.checkpoint import Progress, load_checkpoint, save_checkpoint
from matu.federation.evaluation import Evaluation, Evaluator
from matu.federation.rounds import Federation, run_rounds
from matu.federation.site import Site
from matu.federation.transport import InProcess
from matu.files import append_line, finish_before_interrupt, write_atomic
from matu.methods import METHODS, Method, Problem, State
from matu.methods.individual import Individual, budget_steps, individual
from matu.report import Display, build_result
from matu.tasks import Task, class_list, load_tasks
from matu.tasks.partition import partition
from matu.training import Trainer, build_trainer, decide, prepare_machine


@dataclass(frozen=True)
class Roots:
    """Where this machine keeps things; never part of a configuration or a result.

    Attributes
    ----------
    data, models
        Folders of tasks and of backbones, or None.
    cache
        Decoded images and reference results.
    """

    data: Path | None
    models: Path | None
    cache: Path


@dataclass(frozen=True)
class _Run:
    """Everything that is ready before the first round."""

    config: RunConfig
    out: Path
    tasks: dict[str, Task]
    clients: dict[str, tuple[str, ...]]
    trainer: Trainer
    method: Method
    federation: Federation
    evaluator: Evaluator
    identity: str


def simulate(config: RunConfig, out: Path, roots: Roots, display: Display, *, resume: bool = False) -> dict[str, Any]:
    """Run a federation to its end in this process, and leave a run folder.

    Parameters
    ----------
    config
        What to run. With `resume`, the one read from the folder.
    out
        The run folder: new or empty, or with `resume` that of an earlier run.
    roots
        This machine's folders.
    display
        Shows progress.

    Returns
    -------
    dict
        The content of `result.json`.

    Raises
    ------
    ConfigError, DataError
        Before any work, for whatever cannot work.
    """
    config.check()
    finished = out / "result.json"
    if resume and finished.is_file():
        display.say(f"{out} is complete; nothing to resume")
        return dict(json.loads(finished.read_text()))
    if not resume:
        _check_new(out)
    run = _prepare(config, out, roots, display)
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        if not resume:
            write_atomic(out / "config.toml", write_config(run.config))
        return _from_checkpoint(run, roots, display, resume=resume)


def _check_new(out: Path) -> None:
    """Refuse a folder that holds something, or cannot be made, before any work."""
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise ConfigError(f"--out {out}: there already, and not empty; take another folder, or --resume {out}")
    above = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--out {out}: cannot be made, {above} is no folder that can be written to")


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the run folder: two processes that go on with one run would ruin it."""
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another process is at work on this run; wait for it, or stop it") from None
        yield


def _from_checkpoint(run: _Run, roots: Roots, display: Display, *, resume: bool) -> dict[str, Any]:
    out = run.out
    progress = load_checkpoint(out / "checkpoint", run.identity) or Progress(0, run.method.start())
    if resume:
        display.say(f"resuming {out} after round {progress.round}")
    keep_lines(out / "metrics.jsonl", progress.round)
    progress = _rounds(run, progress, display)
    return _conclude(run, progress, roots, display)


def _prepare(config: RunConfig, out: Path, roots: Roots, display: Display) -> _Run:
    t, f = config.tasks, config.federation
    machine = decide(config, roots.models)  # loads the backbone: what is wrong with it is told before images are read
    config = dataclasses.replace(config, machine=machine)
    device = prepare_machine(machine)
    trainer = build_trainer(config, roots.models, device, machine.precision)
    display.say(f"computing on {device} in {machine.precision}, {machine.threads} threads; reading tasks")
    tasks = {
        task.name: task
        for task in load_tasks(
            t.tasks, image_size=t.image_size, data_root=roots.data, cache_dir=roots.cache,
            skip_bad_images=t.skip_bad_images, max_train=t.max_train, max_test=t.max_test,
        )
    }  # fmt: skip
    for name, task in tasks.items():
        if task.skipped:
            display.say(f"task '{name}': {task.skipped} images could not be decoded and are left out")
    shares = partition(
        {name: task.train.labels for name, task in tasks.items()},
        clients=f.clients, zeta_c=f.zeta_c, zeta_t=f.zeta_t, seed=config.machine.seed,
        tasks_per_client=f.tasks_per_client, task_groups=[group.split("+") for group in f.task_groups],
        min_samples=f.min_samples,
    )  # fmt: skip
    model = trainer.model
    problem = Problem({n: len(task.classes) for n, task in tasks.items()}, model.dim, model.backbone.features)
    method = METHODS[f.method](problem, config)
    width = len(str(f.clients - 1))
    shares_by_name = {f"client-{n:0{width}d}": share for n, share in enumerate(shares)}
    clients = {name: tuple(share) for name, share in shares_by_name.items()}
    sites = {
        name: Site(name, share, tasks, trainer, method, f.method, machine.seed)
        for name, share in shares_by_name.items()
    }
    federation = Federation(
        method, f.method, clients, InProcess(sites), model.fingerprint,
        {name: class_list(task.classes) for name, task in tasks.items()}, f.rounds, f.participation, machine.seed,
    )  # fmt: skip
    evaluator = Evaluator(method, trainer, tasks, clients, machine.seed)
    identity = hashlib.sha256(
        "\n".join([config.digest(), model.fingerprint, *(task.digest for task in tasks.values())]).encode()
    ).hexdigest()
    return _Run(config, out, tasks, clients, trainer, method, federation, evaluator, identity)


def _rounds(run: _Run, progress: Progress, display: Display) -> Progress:
    e, total = run.config.evaluation, run.config.federation.rounds

    def evaluate(number: int, state: State) -> dict[str, Any] | None:
        if not e.evaluate_every or number % e.evaluate_every or number == total:
            return None
        return _as_line(run.evaluator.on_the_way(state, e.evaluate_images))

    def save(reached: Progress) -> None:
        save_checkpoint(run.out / "checkpoint", reached, run.identity)

    def record(line: Any) -> None:
        append_line(run.out / "metrics.jsonl", json.dumps(line, allow_nan=False))
        clock = run.trainer.clock
        display.round(line, total, clock.train_images / max(clock.train_s, 1e-9))

    display.start_rounds(progress.round, total)
    try:
        return run_rounds(run.federation, progress, evaluate=evaluate, record=record, save=save)
    finally:
        display.end_rounds()


def _as_line(evaluation: Evaluation) -> dict[str, Any]:
    found = {"delivered": dict(evaluation.delivered), "server": dict(evaluation.server)}
    return {
        "accuracy": found,
        "mean_accuracy": {kind: sum(by_task.values()) / len(by_task) for kind, by_task in found.items()},
    }


def _conclude(run: _Run, progress: Progress, roots: Roots, display: Display) -> dict[str, Any]:
    display.say("evaluating on all test images")
    began = time.perf_counter()
    evaluation = run.evaluator.at_the_end(progress.state)
    spent = time.perf_counter() - began
    progress.totals.evaluation_s += spent
    progress.totals.total_s += spent
    reference = _reference(run, roots, display) if run.config.evaluation.reference else {}
    reference_s = sum(one.seconds for one in reference.values() if one) if reference else None
    m = run.config.model
    lora = {"rank": m.rank, "alpha": m.alpha, "targets": list(m.targets), "adapter_seed": m.adapter_seed}
    backbone = run.trainer.model.backbone
    result = build_result(
        run.config, run.tasks, run.clients, run.method, progress, evaluation, reference, reference_s,
        {"name": backbone.name, "sha256": backbone.digest},
    )  # fmt: skip
    with finish_before_interrupt():
        packed = run.method.downlink(progress.state, tuple(run.tasks))
        save_artifact(run.out / "artifact", packed, run.trainer.model, run.tasks, lora)
        text = json.dumps(result, indent=1, allow_nan=False)
        write_atomic(run.out / "result.json", text.encode() + b"\n")
    return dict(json.loads(text))  # what is returned is what lies there, tuples as lists


def _reference(run: _Run, roots: Roots, display: Display) -> dict[str, Individual | None]:
    steps = {}
    for name, task in run.tasks.items():
        holders = sum(name in held for held in run.clients.values())
        steps[name] = budget_steps(run.config, len(task.train.labels), holders)
    return individual(
        run.trainer, run.tasks, run.config, steps=steps, cache=roots.cache / "individual",
        tell=display.say,
    )  # fmt: skip


def keep_lines(path: Path, last_round: int) -> None:
    """Drop what a killed run recorded and did not save: lines past `last_round`, and a torn last line.

    Raises
    ------
    DataError
        If a round up to `last_round` is missing or unreadable: the file was changed by other hands.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number in range(1, last_round + 1):
        try:
            found = json.loads(lines[number - 1])["round"]
        except (IndexError, ValueError, KeyError, TypeError):
            found = None
        if found != number:
            raise DataError(f"{path}: line {number} is not round {number}; the file is damaged, the run cannot go on")
    write_atomic(path, b"".join(line + b"\n" for line in lines[:last_round]))
