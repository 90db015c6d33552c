"""Which tasks are alike: sign similarity (Eq. 5) of individually trained adapters, clusters, and groups from them.

python scripts/task_clusters.py --config configs/real8.toml --steps 300 --clusters 3 --out docs/results/real8/clusters

Needs what `matu run` on the configuration needs (MATU_DATA, MATU_MODELS). Leaves clusters.json and a heat map. The
groups of three tasks that it prints are those of the paper's Figure 6: no, two, or three tasks of different clusters.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering

from matu import similarity
from matu.bench.figures import similarity_map
from matu.config import read_config
from matu.roots import Roots, read_tasks
from matu.seeds import stream
from matu.tasks import Task, default_cache_dir
from matu.training import Trainer, Weights, build_trainer, decide, prepare_machine

GROUPS = 3
"""Groups a setting deals to the clients in turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps a task")
    parser.add_argument("--clusters", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    trainer, tasks, seed = prepare(asked.config, asked.threads)
    vectors = torch.stack([adapter(trainer, task, seed, asked.steps) for task in tasks])
    matrix = similarity(vectors).numpy()
    names = [task.name for task in tasks]
    clusters = cluster(matrix, asked.clusters)
    groups = conflict_groups(names, matrix, clusters)
    asked.out.mkdir(parents=True, exist_ok=True)
    found = {"tasks": names, "steps": asked.steps, "seed": seed, "similarity": matrix.round(6).tolist(),
             "clusters": clusters, "task_groups": groups}  # fmt: skip
    (asked.out / "clusters.json").write_text(json.dumps(found, indent=1) + "\n")
    similarity_map(names, matrix, clusters, asked.out / "similarity")
    for number in sorted(set(clusters)):
        print(f"cluster {number}: {', '.join(n for n, c in zip(names, clusters, strict=True) if c == number)}")
    for setting, chosen in groups.items():
        print(f"[settings.{setting}]\ntask_groups = {json.dumps(chosen)}")


def prepare(path: Path, threads: int) -> tuple[Trainer, list[Task], int]:
    """The configuration's trainer and tasks, on this machine."""
    config = read_config(path)
    folders = {name: Path(os.environ[name]) if name in os.environ else None for name in ("MATU_DATA", "MATU_MODELS")}
    config = dataclasses.replace(config, machine=dataclasses.replace(config.machine, threads=threads))
    machine = decide(config, folders["MATU_MODELS"])
    trainer = build_trainer(config, folders["MATU_MODELS"], prepare_machine(machine), machine.precision)
    roots = Roots(folders["MATU_DATA"], folders["MATU_MODELS"], default_cache_dir())
    tasks = read_tasks(config.tasks, roots)
    return trainer, tasks, machine.seed


def adapter(trainer: Trainer, task: Task, seed: int, steps: int) -> torch.Tensor:
    """The task vector of a task fine-tuned alone, float [d]."""
    head = torch.zeros(len(task.classes), trainer.model.backbone.features + 1)
    start = Weights(torch.zeros(trainer.model.dim), head)
    draw = stream(seed, "clusters", task.name)
    weights, loss = trainer.train(start, task.train, np.arange(len(task.train.labels)), draw, steps=steps)
    print(f"{task.name}: {steps} steps, mean loss {loss:.3f}", flush=True)
    return weights.vector


def cluster(matrix: np.ndarray, count: int) -> list[int]:
    """Average linkage on 1 - S."""
    grouping = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average")
    return [int(label) for label in grouping.fit_predict(1 - matrix)]


def conflict_groups(names: list[str], matrix: np.ndarray, clusters: list[int]) -> dict[str, list[str]]:
    """For each number of clusters in a group of three, groups that cover the tasks, the most alike (or least) first."""

    def likeness(group: tuple[int, ...]) -> float:
        return float(np.mean([matrix[a, b] for a, b in itertools.combinations(group, 2)]))

    found = {}
    for setting, kinds in (("no-conflict", 1), ("two-conflicting", 2), ("three-conflicting", 3)):
        of_kind = [g for g in itertools.combinations(range(len(names)), 3) if len({clusters[i] for i in g}) == kinds]
        of_kind.sort(key=likeness, reverse=kinds == 1)
        chosen: list[tuple[int, ...]] = []
        while of_kind and len(chosen) < GROUPS:
            covered = {i for group in chosen for i in group}
            best = max(of_kind, key=lambda g: len(set(g) - covered))  # the first of those that cover most
            chosen.append(best)
            of_kind.remove(best)
        if chosen:
            found[setting] = ["+".join(names[i] for i in group) for group in chosen]
        else:
            print(f"{setting}: no three tasks stand in {kinds} of these clusters; the setting is left out")
    return found


if __name__ == "__main__":
    main()
