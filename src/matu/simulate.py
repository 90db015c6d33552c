"""A whole run on one machine: data, sites, rounds, evaluation, reference, artifact, result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matu.artifact import save_artifact
from matu.config import FederationConfig, RunConfig, write_config
from matu.errors import ConfigError
from matu.federation.checkpoint import Progress, Totals, load_checkpoint, save_checkpoint
from matu.federation.evaluation import Evaluation, Evaluator
from matu.federation.rounds import Federation, codecs_of, run_rounds
from matu.federation.site import SideBySide, Site
from matu.federation.transport import Transport
from matu.files import append_line, finish_before_interrupt, keep_lines, only_one, write_atomic
from matu.methods import Method, Problem, Reference, State, find_method, method_name, method_source
from matu.methods.base import parse_options
from matu.methods.individual import Alone, Individual, individual
from matu.report import Display
from matu.report.result import build_result
from matu.roots import Roots, read_tasks
from matu.tasks import Task, class_list, held_out
from matu.tasks.partition import partition
from matu.training import Trainer, build_trainer, decide, parallel_jobs, prepare_machine
from matu.words import counted


@dataclass(frozen=True)
class Run:
    """Everything that is ready before the first round.

    Attributes
    ----------
    config
        With what was measured on this machine.
    out, roots
        The run folder; this machine's folders.
    tasks, shares
        By name; by client and task, the indices of the client's training images.
    trainer, method
        Built for this configuration.
    identity
        64 hex digits of all that decides the numbers.
    """

    config: RunConfig
    out: Path
    roots: Roots
    tasks: dict[str, Task]
    shares: dict[str, dict[str, np.ndarray]]
    trainer: Trainer
    method: Method | Reference
    identity: str

    @property
    def clients(self) -> dict[str, tuple[str, ...]]:
        """Tasks by client."""
        return {name: tuple(share) for name, share in self.shares.items()}

    def sites(self, method: Method) -> dict[str, Site]:
        """The sites of a federated method, by name, with no memory."""
        f, wire = self.config.federation, self.config.wire
        trainer = dataclasses.replace(self.trainer, objective=method.objective)
        return {
            name: Site(
                name, share, self.tasks, trainer, method, method_name(f.method), self.identity[:32],
                self.config.machine.seed, codecs_of(wire)[0], wire.rounding == "stochastic",
            )
            for name, share in self.shares.items()
        }  # fmt: skip


Carrier = Callable[[Run, Mapping[str, Site]], AbstractContextManager[Transport]]
"""From a run and its sites to what carries messages to them and back, and leaves each with its memory."""

OnRound = Callable[[Mapping[str, Any]], None]
"""Takes each round's line too."""


def in_this_process(run: Run, sites: Mapping[str, Site]) -> AbstractContextManager[Transport]:
    """Sites answer here, as many at a time as `prepare` made room for."""
    return nullcontext(SideBySide(sites, next(iter(sites.values())).trainer))


def simulate(
    config: RunConfig, out: Path, roots: Roots, display: Display, *, resume: bool = False, jobs: int = 0,
    carrier: Carrier = in_this_process, on_round: OnRound = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Run a federation of sites on this machine to its end, and leave a run folder.

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
    jobs
        Trainings, or evaluations, at work at a time, each with its threads; 0: as many as there are cores for, on a
        GPU one. No accuracy depends on it; memory does.
    carrier
        How sites are reached.
    on_round
        Takes each round's line of `metrics.jsonl` once it is on the disk.

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
    if jobs < 0:
        raise ConfigError(f"--jobs {jobs}: expected 1 or more, or 0 for as many as there are cores for")
    finished = out / "result.json"
    if resume and finished.is_file():
        display.say(f"{out} is complete; nothing to resume")
        return dict(json.loads(finished.read_text()))
    if not resume:
        _check_new(out)
    run = prepare(config, out, roots, display, jobs=jobs)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        if resume and finished.is_file():  # another process ended it meanwhile
            return dict(json.loads(finished.read_text()))
        if not resume:
            write_atomic(out / "config.toml", write_config(run.config))
        if isinstance(run.method, Reference):
            return _alone(run, run.method, display)
        return _federate(run, run.method, display, carrier, on_round, resume=resume)


def _check_new(out: Path) -> None:
    """Refuse a folder that holds something, or cannot be made, before any work."""
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise ConfigError(f"--out {out}: there already, and not empty; take another folder, or --resume {out}")
    above = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--out {out}: cannot be made, {above} is no folder that can be written to")


def deal(tasks: Mapping[str, Task], config: FederationConfig, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """By client and task, the indices of the client's training images."""
    shares = partition(
        {name: task.train.labels for name, task in tasks.items()},
        clients=config.clients, zeta_c=config.zeta_c, zeta_t=config.zeta_t, seed=seed,
        tasks_per_client=config.tasks_per_client, task_groups=[group.split("+") for group in config.task_groups],
        min_samples=config.min_samples,
    )  # fmt: skip
    width = len(str(config.clients - 1))
    return {f"client-{number:0{width}d}": share for number, share in enumerate(shares)}


def prepare(config: RunConfig, out: Path, roots: Roots, display: Display, *, jobs: int = 1) -> Run:
    """Read, deal, measure and build, for `jobs` trainings at a time (0: what this machine has room for).

    Raises
    ------
    ConfigError, DataError
        For whatever cannot work.
    """
    f = config.federation
    kind = find_method(f.method)
    parse_options(kind, f.options)
    prepare_machine(config.machine)
    build_trainer(config, roots.models, torch.device("cpu"), "float32")  # what is wrong with the backbone is told first
    display.say("reading tasks")
    loaded = read_tasks(config.tasks, roots)
    tasks = {task.name: held_out(task) if config.evaluation.held_out else task for task in loaded}
    for name, task in tasks.items():
        if task.skipped:
            display.say(f"task '{name}': {task.left_out}")
    shares = deal(tasks, f, config.machine.seed)
    pairs = sum(map(len, shares.values()))
    at_once = round(f.participation * pairs) if issubclass(kind, Method) else pairs  # trainings that do not wait
    fitting = parallel_jobs(config.machine, at_once)
    machine = decide(config, roots.models, jobs=fitting)  # measures, so it comes after all that can be wrong
    config = dataclasses.replace(config, machine=machine)
    device = prepare_machine(machine)
    jobs = min(jobs, max(1, at_once)) or fitting
    trainer = build_trainer(config, roots.models, device, machine.precision, jobs=jobs)
    threads = counted(machine.threads, "thread")
    beside = f", {jobs} trainings at a time" if jobs > 1 else ""
    display.say(f"computing on {device} in {machine.precision}, {threads}{beside}")
    model = trainer.model
    facts = [config.digest(), method_source(f.method), model.fingerprint, *(task.digest for task in tasks.values())]
    problem = Problem({n: len(task.classes) for n, task in tasks.items()}, model.layout, model.backbone.features)
    method = kind(config) if issubclass(kind, Reference) else kind(problem, config)
    return Run(
        config, out, roots, tasks, shares, trainer, method,
        hashlib.sha256("\n".join(facts).encode()).hexdigest(),
    )  # fmt: skip


def _alone(run: Run, reference: Reference, display: Display) -> dict[str, Any]:
    """A reference: sites or a centre that train alone; resumed through what the cache remembers."""
    began, clock = time.perf_counter(), run.trainer.clock
    found = reference.accuracies(
        run.trainer, run.tasks, run.shares, cache=run.roots.cache, tell=display.say
    )  # fmt: skip
    totals = Totals(images=clock.train_images, total_s=time.perf_counter() - began, training_s=clock.train_s)
    evaluation = Evaluation.of_clients(found, run.tasks)
    progress, alone = Progress(0, {}, totals), reference.found if isinstance(reference, Individual) else None
    return _write_result(run, _result(run, progress, evaluation, 0.0, display, alone))


def _federate(
    run: Run, method: Method, display: Display, carrier: Carrier, on_round: OnRound, *, resume: bool
) -> dict[str, Any]:
    """A federated method: rounds from the checkpoint on, evaluation, artifact."""
    out, f, seed = run.out, run.config.federation, run.config.machine.seed
    trainer = dataclasses.replace(run.trainer, objective=method.objective)
    down = codecs_of(run.config.wire)[1]
    sites = run.sites(method)
    progress = load_checkpoint(out / "checkpoint", run.identity) or Progress(0, method.start())
    for site, memory in progress.memories.items():
        sites[site].memory = memory
    if resume:
        display.say(f"resuming {out} after round {progress.round}")
    keep_lines(out / "metrics.jsonl", progress.round)
    evaluator = Evaluator(method, trainer, run.tasks, run.clients, lambda site: sites[site].memory, seed, down)
    with carrier(run, sites) as transport:
        federation = Federation(
            method, method_name(f.method), run.clients, transport, run.identity[:32], trainer.model.fingerprint,
            {task.name: class_list(task.classes) for task in run.tasks.values()}, f.rounds, f.participation, seed,
            down, run.config.defence,
        )  # fmt: skip
        progress = _rounds(run, federation, evaluator, progress, sites, display, on_round)
    display.say("evaluating on all test images")
    began = time.perf_counter()
    evaluation = evaluator.at_the_end(progress.state)
    spent = time.perf_counter() - began
    progress.totals.evaluation_s += spent
    progress.totals.total_s += spent
    bits = [method.paper_bits(tasks) for tasks in run.clients.values()]
    mbits = f.drawn / f.clients * sum(bits) / len(bits) / 1e6
    result = _result(run, progress, evaluation, mbits, display)
    server = method.server_weights(progress.state)
    if server:
        with finish_before_interrupt():
            save_artifact(
                out / "artifact", server, trainer.model, run.tasks, run.config, method,
                run=run.identity, rounds=progress.round, accuracy=result["accuracy"],
            )  # fmt: skip
    return _write_result(run, result)


def _rounds(
    run: Run, federation: Federation, evaluator: Evaluator, progress: Progress, sites: Mapping[str, Site],
    display: Display, on_round: OnRound,
) -> Progress:  # fmt: skip
    e, total = run.config.evaluation, run.config.federation.rounds

    def evaluate(number: int, state: State) -> dict[str, Any] | None:
        if not e.evaluate_every or number % e.evaluate_every or number == total:
            return None
        return _as_line(evaluator.on_the_way(state, e.evaluate_images))

    def save(reached: Progress) -> None:
        reached.memories = {name: site.memory for name, site in sites.items() if site.memory}
        save_checkpoint(run.out / "checkpoint", reached, run.identity)

    def record(line: Any) -> None:
        append_line(run.out / "metrics.jsonl", json.dumps(line, allow_nan=False))
        clock = evaluator.trainer.clock
        display.round(line, total, clock.train_images / max(clock.train_s, 1e-9))
        on_round(line)

    display.start_rounds(progress.round, total)
    try:
        return run_rounds(federation, progress, evaluate=evaluate, record=record, save=save)
    finally:
        display.end_rounds()


def _as_line(evaluation: Evaluation) -> dict[str, Any]:
    found = {"delivered": dict(evaluation.delivered), "server": dict(evaluation.server)}
    return {
        "accuracy": found,
        "mean_accuracy": {kind: sum(by_task.values()) / len(by_task) for kind, by_task in found.items() if by_task},
        "similarity": evaluation.similarity, "cosine": {str(k): cosine for k, cosine in evaluation.cosine.items()},
    }  # fmt: skip


def _result(
    run: Run, progress: Progress, evaluation: Evaluation, paper_mbits: float, display: Display,
    alone: dict[str, Alone | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    reference = alone or {}
    if run.config.evaluation.reference and not alone:
        holders = {name: sum(name in held for held in run.clients.values()) for name in run.tasks}
        reference = individual(
            run.trainer, run.tasks, run.config, holders=holders, cache=run.roots.cache, tell=display.say
        )  # fmt: skip
    return build_result(
        run.config, run.tasks, run.clients, paper_mbits, progress, evaluation, reference, run.trainer.model.backbone
    )


def _write_result(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(result, indent=1, allow_nan=False)
    with finish_before_interrupt():
        write_atomic(run.out / "result.json", text.encode() + b"\n")
    return dict(json.loads(text))  # what is returned is what lies there, tuples as lists
