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
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matu.seeds import stream
from stopped import open_run
from watch import processor


def changes(folder: Path) -> tuple[str, dict[tuple[str, str], tuple[int, Tensor]]]:
    """The run's name with the round before, and by client and task: samples, and the adapter's change, float32 [d]."""
    run, method, trainer, progress = open_run(folder)
    f, t, seed = run.config.federation, run.config.training, run.config.machine.seed
    starts = method.server_weights(progress.state)
    if starts is None:
        raise SystemExit(f"{folder}: the server of '{f.method}' has no weights of its own")
    found = {}
    for site, share in run.shares.items():
        for task, indices in share.items():
            draw = stream(seed, "batches", progress.round + 1, site, task)
            end, _ = trainer.train(
                starts[task], run.tasks[task].train, indices, draw, steps=t.local_steps, epochs=t.local_epochs
            )
            change = end.vector - starts[task].vector
            if change.any():  # a balanced site with one class trains nothing
                found[site, task] = len(indices), change
    return " ".join([f.method, *f.options, f"zeta_t={f.zeta_t:g}", f"seed={seed}", f"round={progress.round}"]), found


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
    kept: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    name, found = changes(arguments.run)
    kept[name] = summary(found) | {"machine": processor()}
    arguments.out.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n")
    for name, entry in kept.items():
        shares = ", ".join(f"{what} {v['mean']:+.3f} ± {v['error'] or 0:.3f}" for what, v in entry["pairs"].items())
        print(f"{name}: {shares}")


if __name__ == "__main__":
    main()
