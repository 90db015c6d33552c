"""Memory and seconds a round of a federation in one process, by clients, tasks, and clients sampled a round.

python benchmarks/scale.py [--small] [--method matu] [--out FOLDER]

One quantity varies at a time, up to 1,000 clients, 100 tasks, three a client, and 40 clients a round. Tasks are
rendered by the demo; every (client, task) trains one step on four images, so that what is left is nearer to the
federation's own cost. Each point is a process of its own with one thread; memory is resident, seconds are processor
time, the median of its rounds but the first, with the checkpoint of each. With --out the record and its curves go
there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w

from matu.tasks.demo import more_tasks
from watch import machine, watch

Curves = dict[str, tuple[dict[str, int], tuple[int, ...]]]
LARGE: Curves = {
    "clients": ({"tasks": 100, "sampled": 20}, (40, 100, 300, 1000)),
    "tasks": ({"clients": 100, "sampled": 20}, (8, 25, 50, 100)),  # fewer, or they would have less than four images
    "sampled": ({"clients": 1000, "tasks": 100}, (5, 10, 20, 40)),
}  # fmt: skip
SMALL: Curves = {
    "clients": ({"tasks": 8, "sampled": 4}, (8, 16)), "tasks": ({"clients": 16, "sampled": 4}, (4, 8)),
    "sampled": ({"clients": 16, "tasks": 8}, (2, 4)),
}  # fmt: skip
HELD = 3
LABELS = {"clients": "clients", "tasks": "tasks", "sampled": "clients sampled a round"}


def config(clients: int, tasks: int, sampled: int, rounds: int, method: str) -> dict[str, Any]:
    names = more_tasks(tasks)
    groups = ["+".join(names[first : first + HELD]) for first in range(0, tasks, HELD)]
    return {
        "tasks": {"tasks": [f"demo:{name}" for name in names], "image_size": 32, "max_test": 20},
        "federation": {"method": method, "rounds": rounds, "clients": clients, "participation": sampled / clients,
                       "task_groups": groups, "zeta_c": 1.0, "min_samples": 1},
        "training": {"local_steps": 1, "batch_size": 4},
        "evaluation": {"evaluate_every": 0}, "machine": {"precision": "float32", "threads": 1},
    }  # fmt: skip


def measure(point: dict[str, int], rounds: int, method: str, folder: Path) -> dict[str, Any]:
    """Some rounds of one run, watched; it is stopped before the evaluation at its end."""
    name = "-".join(map(str, point.values()))
    (folder / f"{name}.toml").write_text(tomli_w.dumps(config(**point, rounds=rounds + 1, method=method)))
    out = folder / name
    words = [sys.executable, "-m", "matu", "run", "--json", "--config", f"{folder / name}.toml", "--out", str(out)]
    watched = watch(words, out / "metrics.jsonl", folder / f"{name}.log", until=rounds)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    note = json.loads((out / "checkpoint/checkpoint.json").read_text())
    rates = [b - a for a, b in itertools.pairwise(watched.line_processor_s)]
    return {
        **point, "rounds": rounds, "processor_s_a_round": round(statistics.median(rates), 3),
        "seconds_a_round": statistics.median(line["seconds"] for line in lines[1:]),
        "to_first_round_processor_s": round(watched.line_processor_s[0], 1),
        "memory_by_round_mb": [round(size) for size in watched.line_rss_mb], "peak_mb": round(watched.peak_rss_mb),
        "kb_up": lines[-1]["uplink_bytes"] / point["sampled"] / 1e3,
        "kb_down": lines[-1]["downlink_bytes"] / point["sampled"] / 1e3,
        "aggregation_a_round_s": note["totals"]["aggregation_s"] / note["round"],
        "checkpoint_mb": (out / "checkpoint" / note["state"]).stat().st_size / 1e6,
    }  # fmt: skip


def draw(found: dict[str, list[dict[str, Any]]], curves: Curves, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.5), layout="constrained", sharey="row")
    for column, (name, rows) in enumerate(found.items()):
        x = [row[name] for row in rows]
        for axis, key in ((axes[0, column], "peak_mb"), (axes[1, column], "processor_s_a_round")):
            axis.plot(x, [row[key] for row in rows], "o-")
            axis.grid(alpha=0.3)
        fixed = ", ".join(f"{value:,} {LABELS[other]}" for other, value in curves[name][0].items())
        axes[0, column].set_title(fixed, fontsize=9)
        axes[1, column].set_xlabel(LABELS[name])
    for axis in axes.flat:  # at last: a limit that is set no longer follows what is drawn
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("peak resident memory, MB")
    axes[1, 0].set_ylabel("processor seconds a round")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few clients and tasks, in seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="matu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    curves = SMALL if args.small else LARGE
    where = machine()
    found: dict[str, list[dict[str, Any]]] = {}
    known: dict[tuple[int, ...], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, (others, values) in curves.items():
            for value in values:
                point = {quantity: {**others, name: value}[quantity] for quantity in LABELS}
                key = tuple(point.values())
                if key not in known:
                    known[key] = measure(point, args.rounds, args.method, Path(place))
                    print(json.dumps(known[key]), flush=True)
                found.setdefault(name, []).append(known[key])
    record = {"method": args.method, "tasks_a_client": HELD, "dim": 92160, **where, "points": found}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
        draw(found, curves, args.out / "scale.png")


if __name__ == "__main__":
    main()
