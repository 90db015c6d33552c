"""What the changes of one round say about each other: how much of a site's change other sites, and other tasks, share.

python benchmarks/evidence.py --run FOLDER --out FILE

FOLDER is a stopped run of matu, with config.toml and checkpoint. Its next round is played by all clients, every task
from the server's own weights; then cosines between the changes of adapters are taken: of one task at two sites, of two
tasks at one site, and of two tasks at two sites. The first is the share of a site's change that is the task's and not
the site's (its reliability); the others are what a task could learn from another task's change. Finished measurements
are kept in the output file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from matu.config import read_config
from matu.methods import Method, Problem, find_method
from matu.seeds import stream
from matu.simulate import Roots, deal, read_tasks
from matu.tasks import held_out
from matu.tasks.cache import default_cache_dir
from matu.training import build_trainer, prepare_machine
from training_step import processor


def changes(folder: Path, roots: Roots) -> tuple[int, dict[tuple[str, str], tuple[int, Tensor]]]:
    """The round before, and by client and task: samples, and the change of the adapter, float32 [d]."""
    config = read_config(folder / "config.toml")
    config = dataclasses.replace(config, machine=dataclasses.replace(config.machine, threads=1))
    tasks = {task.name: task for task in read_tasks(config.tasks, roots)}
    if config.evaluation.held_out:
        tasks = {name: held_out(task) for name, task in tasks.items()}
    shares = deal(tasks, config.federation, config.machine.seed)
    trainer = build_trainer(config, roots.models, prepare_machine(config.machine), config.machine.precision)
    classes = {name: len(task.classes) for name, task in tasks.items()}
    kind = find_method(config.federation.method)
    if not issubclass(kind, Method):
        raise SystemExit(f"{folder}: method '{config.federation.method}' has no server")
    method = kind(Problem(classes, trainer.model.layout, trainer.model.backbone.features), config)
    trainer = dataclasses.replace(trainer, objective=method.objective)
    (file,) = (folder / "checkpoint").glob("state-*.safetensors")
    number = int(file.stem.partition("-")[2])
    state = {n.removeprefix("server|"): x for n, x in load_file(file).items() if n.startswith("server|")}
    starts = method.server_weights(state)
    if starts is None:
        raise SystemExit(f"{folder}: the server of '{config.federation.method}' has no weights of its own")
    found = {}
    for site, share in shares.items():
        for task, indices in share.items():
            draw = stream(config.machine.seed, "batches", number + 1, site, task)
            end, _ = trainer.train(
                starts[task], tasks[task].train, indices, draw,
                steps=config.training.local_steps, epochs=config.training.local_epochs,
            )  # fmt: skip
            change = end.vector - starts[task].vector
            if change.any():  # a balanced site with one class has none
                found[site, task] = len(indices), change
    return number, found


def summary(found: dict[tuple[str, str], tuple[int, Tensor]]) -> dict[str, Any]:
    """Mean cosines by kind of pair, with their standard errors over pairs, and by pair of tasks."""
    keys = list(found)
    rows = torch.stack([change / change.norm() for _, change in found.values()])
    cosine = (rows @ rows.T).double().numpy()
    pairs: dict[str, list[float]] = {"one task, two sites": [], "two tasks, one site": [], "two tasks, two sites": []}
    between: dict[tuple[str, str], list[float]] = {}
    for (i, (site, task)), (j, (other_site, other_task)) in itertools.combinations(enumerate(keys), 2):
        where = "one site" if site == other_site else "two sites"
        what = "one task" if task == other_task else "two tasks"
        pairs[f"{what}, {where}"].append(float(cosine[i, j]))
        first, second = sorted((task, other_task))
        between.setdefault((first, second), []).append(float(cosine[i, j]))
    return {
        "pairs": {
            name: {"mean": float(np.mean(v)), "error": float(np.std(v) / np.sqrt(len(v))), "count": len(v)}
            for name, v in pairs.items()
        },
        "tasks": {" ".join(names): float(np.mean(v)) for names, v in sorted(between.items())},
        "length": float(np.mean([float(change.norm()) for _, change in found.values()])),
    }


def main() -> None:
    """Measure, and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    roots = Roots(
        *(Path(os.environ[name]) if name in os.environ else None for name in ("MATU_DATA", "MATU_MODELS")),
        Path(os.environ.get("MATU_CACHE", default_cache_dir())),
    )  # fmt: skip
    kept: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    number, found = changes(arguments.run, roots)
    method = read_config(arguments.run / "config.toml").federation.method
    kept[f"{method}, round {number}"] = summary(found) | {"machine": processor()}
    arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    for name, entry in kept.items():
        shares = ", ".join(f"{what} {v['mean']:+.3f} ± {v['error']:.3f}" for what, v in entry["pairs"].items())
        print(f"{name}: {shares}")


if __name__ == "__main__":
    main()
