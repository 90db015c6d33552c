"""What the changes of one round say about each other: how much of a site's change other sites, and other tasks, share.

python benchmarks/evidence.py --run FOLDER --out FILE

FOLDER is a stopped run of a method whose server has weights of its own, with config.toml and checkpoint. Its next round
is played by all clients, every task from the server's weights; then cosines between the changes of adapters are taken:
of one task at two sites, of two tasks at one site, and of two tasks at two sites. Where changes are a part common to
the task's sites plus noise of equal length, the first is the common part's share of the squared length; the others are
what a task could learn from another's change. Errors are the jackknife's over sites. What FILE holds of other runs is
kept.
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
from matu.roots import Roots, read_tasks
from matu.seeds import stream
from matu.simulate import deal
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
            if change.any():  # a balanced site with one class trains nothing
                found[site, task] = len(indices), change
    return number, found


def summary(found: dict[tuple[str, str], tuple[int, Tensor]]) -> dict[str, Any]:
    """Mean cosines by kind of pair, with their errors, and by two tasks at two sites."""
    keys = list(found)
    rows = torch.stack([change / change.norm() for _, change in found.values()])
    cosine = (rows @ rows.T).double().numpy()
    pairs: dict[str, list[tuple[str, str, float]]] = {}
    between: dict[tuple[str, str], list[float]] = {}
    for (i, (site, task)), (j, (other_site, other_task)) in itertools.combinations(enumerate(keys), 2):
        where = "one site" if site == other_site else "two sites"
        what = "one task" if task == other_task else "two tasks"
        pairs.setdefault(f"{what}, {where}", []).append((site, other_site, float(cosine[i, j])))
        if site != other_site and task != other_task:
            first, second = sorted((task, other_task))
            between.setdefault((first, second), []).append(float(cosine[i, j]))
    return {
        "pairs": {
            kind: {"mean": float(np.mean([value for *_, value in v])), "error": jackknife(v), "count": len(v)}
            for kind, v in sorted(pairs.items())
        },
        "tasks": {" ".join(names): float(np.mean(v)) for names, v in sorted(between.items())},
        "length": float(np.mean([float(change.norm()) for _, change in found.values()])),
    }


def jackknife(pairs: list[tuple[str, str, float]]) -> float | None:
    """Standard error of the mean over pairs of sites, leaving out one site at a time; None with too few sites."""
    sites = {site for pair in pairs for site in pair[:2]}
    without = [[value for a, b, value in pairs if site not in (a, b)] for site in sorted(sites)]
    means = np.array([np.mean(values) for values in without if values])
    if len(means) < 3:
        return None
    return float(np.sqrt((len(means) - 1) * np.mean((means - means.mean()) ** 2)))


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
    config = read_config(arguments.run / "config.toml")
    f = config.federation
    name = " ".join([f.method, *f.options, f"zeta_t={f.zeta_t:g}", f"seed={config.machine.seed}", f"round={number}"])
    kept[name] = summary(found) | {"machine": processor()}
    arguments.out.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n")
    for name, entry in kept.items():
        shares = ", ".join(f"{what} {v['mean']:+.3f} ± {v['error'] or 0:.3f}" for what, v in entry["pairs"].items())
        print(f"{name}: {shares}")


if __name__ == "__main__":
    main()
