"""A study of relatedness: adapters trained alone, five measures, correlations, clusters, files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matu.config import RunConfig
from matu.errors import ConfigError, DivergedError
from matu.files import write_atomic
from matu.relate import clusters
from matu.relate.adapters import FineTuned, fine_tuned
from matu.relate.metrics import class_score, cosine, e_tran, energy, fisher, probe
from matu.relate.statistics import correlations
from matu.relate.wte import wte
from matu.report.result import about_task, shown_config, versions
from matu.roots import Roots, read_tasks
from matu.seeds import stream
from matu.tasks import Task, resolve
from matu.tasks.loading import stratified
from matu.training import Trainer, build_trainer, decide, parallel_jobs, prepare_machine, side_by_side
from matu.vectors import similarity
from matu.words import counted

FISHER_IMAGES = 256
"""Most training images of a task for its Fisher information; each has a backward pass of its own."""
CLUSTERS = 3
"""Clusters where none are asked for and there are as many tasks."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What is asked, beside the configuration.

    Attributes
    ----------
    steps
        Optimiser steps a task.
    images
        Most training images of a task that are looked at by E-Tran and WTE, drawn class by class.
    clusters
        How many clusters the tree of sign similarity is cut into; 0: `CLUSTERS`, or as many as there are tasks.
    e_tran_as_released
        Class score as E-Tran's authors' code computes it.
    """

    steps: int = 300
    images: int = 2000
    clusters: int = 0
    e_tran_as_released: bool = False

    def check(self) -> None:
        """Raise ConfigError for a value that cannot work."""
        for name in ("steps", "images"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} {value}: expected 1 or more")
        if self.clusters < 0:
            raise ConfigError(f"clusters {self.clusters}: expected 1 or more, or 0 for the usual number")


def relate(config: RunConfig, study: Study, out: Path, roots: Roots, tell: Tell) -> dict[str, Any]:
    """Measure how a configuration's tasks are related, and write what was found.

    Parameters
    ----------
    config
        Its tasks, model, training and machine; what it says of a federation is not used.
    study
        How long to train, and what to look at.
    out
        Folder for `relatedness.json`, a CSV a measure, `correlations.csv` and two figures; what lies there under
        these names is replaced.
    roots
        This machine's folders; adapters stay in the cache, so that a task is trained once.
    tell
        Takes a line for people.

    Returns
    -------
    dict
        The content of `relatedness.json`.

    Raises
    ------
    ConfigError, DataError
        Before any work, for whatever cannot work.
    DivergedError
        If training left the finite numbers.
    """
    config.check()
    study.check()
    count = len(resolve(config.tasks.tasks))
    if count < 2:
        raise ConfigError("tasks: one alone is related to none; expected two or more")
    if study.clusters > count:
        raise ConfigError(f"clusters {study.clusters}: expected at most {count}, the number of tasks")
    study = dataclasses.replace(study, clusters=study.clusters or min(CLUSTERS, count))
    config, trainer, tasks = _prepare(config, out, roots, tell)
    seconds: dict[str, float] = {}
    adapters = _adapters(trainer, tasks, config, study, roots.cache, tell)
    seconds["training"] = sum(adapter.seconds for adapter in adapters)
    matrices, parts = _measure(trainer, tasks, adapters, study, config.machine.seed, seconds, tell)
    names = [task.name for task in tasks]
    merges = clusters.tree(matrices["sign"])
    cluster = clusters.clusters(merges, study.clusters)
    closeness = {name: -values if name == "wte" else values for name, values in matrices.items()}
    found = {
        "tasks": {task.name: about_task(task) for task in tasks},
        "backbone": {"name": trainer.model.backbone.name, "sha256": trainer.model.backbone.digest},
        "dim": trainer.model.dim,
        "seed": config.machine.seed,
        **dataclasses.asdict(study),
        "fisher_images": FISHER_IMAGES,
        "adapters": {
            task.name: {"accuracy": one.accuracy, "loss": one.loss, "seconds": one.seconds}
            for task, one in zip(tasks, adapters, strict=True)
        },
        "metrics": {name: values.tolist() for name, values in matrices.items()},
        "e_tran_parts": {name: values.tolist() for name, values in parts.items()},
        "correlations": correlations(closeness, stream(config.machine.seed, "mantel")),
        "order": [names[i] for i in clusters.order(merges)],
        "linkage": merges.tolist(),
        "clusters": dict(zip(names, cluster, strict=True)),
        "task_groups": clusters.task_groups(names, matrices["sign"], cluster),
        "seconds": seconds,
        "config": shown_config(config, {task.name: task for task in tasks}, trainer.model.backbone.name),
        "versions": versions(),
    }
    _write(found, matrices, merges, out)
    return found


def _prepare(config: RunConfig, out: Path, roots: Roots, tell: Tell) -> tuple[RunConfig, Trainer, list[Task]]:
    prepare_machine(config.machine)
    build_trainer(config, roots.models, torch.device("cpu"), "float32")  # what is wrong with the backbone is told first
    tell("reading tasks")
    tasks = read_tasks(config.tasks, roots)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--to {out}: cannot be made ({error.strerror})") from error
    jobs = parallel_jobs(config.machine, len(tasks))
    config = dataclasses.replace(config, machine=decide(config, roots.models, jobs=jobs))
    device = prepare_machine(config.machine)
    return config, build_trainer(config, roots.models, device, config.machine.precision, jobs=jobs), tasks


def _adapters(
    trainer: Trainer, tasks: Sequence[Task], config: RunConfig, study: Study, cache: Path, tell: Tell
) -> list[FineTuned]:
    def tuned(task: Task, lent: Trainer) -> FineTuned:
        try:
            return fine_tuned(lent, task, config, study.steps, cache)
        except DivergedError as error:
            raise DivergedError(f"{task.name}: {error}") from error

    adapters = []
    found = side_by_side(trainer, [partial(tuned, task) for task in tasks])
    for number, (task, one) in enumerate(zip(tasks, found, strict=True), 1):
        about = f"loss {one.loss:.3f}, test accuracy {100 * one.accuracy:.1f} %, {one.seconds:.0f} s"
        tell(f"{task.name} ({number}/{len(tasks)}): {counted(study.steps, 'step')}, {about}")
        adapters.append(one)
    return adapters


def _measure(
    trainer: Trainer, tasks: Sequence[Task], adapters: Sequence[FineTuned], study: Study, seed: int,
    seconds: dict[str, float], tell: Tell,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """The five measures by name, and the parts of E-Tran (source model by row, target task by column)."""
    began = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[stage], began = round(now - began, 2), now
        tell(f"{stage}: {seconds[stage]:.0f} s")

    vectors = torch.stack([adapter.weights.vector for adapter in adapters])
    matrices = {"sign": similarity(vectors).numpy(), "cosine": cosine(vectors)}
    looked_at = [stratified(task.train.labels, study.images) for task in tasks]
    labels = [task.train.labels[rows] for task, rows in zip(tasks, looked_at, strict=True)]
    frozen = _features(torch.zeros(trainer.model.dim), tasks, looked_at, trainer)
    done("features")
    fishers = []
    for task, own, y in zip(tasks, frozen, labels, strict=True):
        images = task.train.images[stratified(task.train.labels, FISHER_IMAGES)]
        fishers.append(fisher(trainer, probe(own, y), images, stream(seed, "fisher", task.name)))
    matrices["fim"] = cosine(torch.stack(fishers))
    done("fim")
    parts = {"energy": np.zeros((len(tasks), len(tasks))), "class_score": np.zeros((len(tasks), len(tasks)))}
    of_each = [partial(_features, adapter.weights.vector, tasks, looked_at) for adapter in adapters]
    for source, features in enumerate(side_by_side(trainer, of_each)):
        for target, own in enumerate(features):
            parts["energy"][source, target] = energy(own)
            score = class_score(own, labels[target], as_released=study.e_tran_as_released)
            parts["class_score"][source, target] = score
    matrices["e_tran"] = e_tran(parts["energy"], parts["class_score"])
    done("e_tran")
    matrices["wte"] = wte(frozen, labels, stream(seed, "wte"))
    done("wte")
    return matrices, parts


def _features(
    vector: torch.Tensor, tasks: Sequence[Task], rows: Sequence[np.ndarray], trainer: Trainer
) -> list[np.ndarray]:
    """Features of some training images of every task, float32 [n, features], with one adapter."""
    trainer.model.load(vector)
    return [trainer.features_as_is(task.train.images[at]).numpy() for task, at in zip(tasks, rows, strict=True)]


def _write(found: Mapping[str, Any], matrices: Mapping[str, np.ndarray], merges: np.ndarray, out: Path) -> None:
    from matu.relate import figures  # matplotlib takes its time to load

    names, r = list(found["tasks"]), found["correlations"]
    for measure, values in matrices.items():
        rows = [[name, *(f"{value:.6f}" for value in row)] for name, row in zip(names, values, strict=True)]
        _write_csv(out / f"{measure}.csv", [["task", *names], *rows])
    compared = [
        [one, other, r["pearson"][one][other], r["mantel_p"][one][other], r["pairs"]]
        for i, one in enumerate(matrices) for other in list(matrices)[i + 1 :]
    ]  # fmt: skip
    _write_csv(out / "correlations.csv", [["measure", "other", "pearson", "mantel_p", "pairs"], *compared])
    figures.similarities(names, matrices, merges, list(found["clusters"].values()), out / "similarities")
    figures.correlations(matrices, r, out / "correlations")
    write_atomic(out / "relatedness.json", json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(path, text.getvalue().encode())
