"""The same federation in one process of ours, in Flower's simulation on Ray, and in pfl-research's loop.

python benchmarks/simulation.py [--small] [--rounds 10] [--max-train N] [--programs NAME ...] [--out FOLDER]

real-8 by the paper's protocol (configs/real8.toml: 30 clients, 6 a round) where MATU_DATA and MATU_MODELS are set, else
the bundled demo-8 by the same protocol. Every program gets the same decoded images, the same shares, the same clients
in the same rounds, epochs, batch size and rate, evaluates all test images once at the end, and has two cores; each is
a process of its own, one at a time. Seconds are wall time from its start, images a second training images over the
time to the end of the last round; processor time is that of all its processes together, and says more on a machine
that does other work too. Memory is the peak of all its processes together: RSS, and PSS, which counts shared pages
once. What is not installed is left out: flwr[simulation] and pfl.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from matu.cli.common import Folders, roots
from matu.config import RunConfig, WireConfig, read_config, write_config
from matu.federation.flower import ENVIRONMENT
from matu.models import load_backbone
from matu.roots import read_tasks
from matu.simulate import deal
from watch import Watched, machine, watch

HERE = Path(__file__).parent
THREADS = 2
RIVALS = HERE / "rivals"
PROGRAMS: dict[str, str | Sequence[str]] = {
    "matu run, fedavg": "fedavg", "matu run, fedavg, one core": "fedavg --jobs 1 --threads 1", "matu run, matu": "matu",
    "flower on ray, float32": ["flower_ray.py"], "flower on ray, bf16 autocast": ["flower_ray.py", "--bf16"],
    "pfl-research, float32": ["pfl_in_process.py"], "pfl-research, bf16 autocast": ["pfl_in_process.py", "--bf16"],
}  # fmt: skip
NEEDS = {"flower_ray.py": "ray", "pfl_in_process.py": "pfl"}


def configuration(args: argparse.Namespace) -> RunConfig:
    """The paper's protocol on what this machine has."""
    config = read_config(HERE.parent / "configs/real8.toml")
    federation = dataclasses.replace(config.federation, method="fedavg", rounds=args.rounds)
    tasks, model = config.tasks, config.model
    if not (os.environ.get("MATU_DATA") and os.environ.get("MATU_MODELS")):
        tasks, model = dataclasses.replace(tasks, tasks=("demo-8",), image_size=32), RunConfig().model
    return dataclasses.replace(
        config, federation=federation, model=model, wire=WireConfig.exact(),
        tasks=dataclasses.replace(tasks, max_train=args.max_train, max_test=args.max_test),
        evaluation=dataclasses.replace(config.evaluation, evaluate_every=0),
    )  # fmt: skip


def leave_world(config: RunConfig, world: Path) -> dict[str, Any]:
    """What the rivals read, but for the schedule: images, shares, settings."""
    here = roots(Folders())
    tasks = {task.name: task for task in read_tasks(config.tasks, here)}
    backbone = load_backbone(config.model.backbone, image_size=config.tasks.image_size, models_root=here.models)
    world.mkdir()
    for name, task in tasks.items():
        for split in ("train", "test"):
            np.save(world / f"{name}-{split}-images.npy", getattr(task, split).images)
            np.save(world / f"{name}-{split}-labels.npy", getattr(task, split).labels)
    shares = deal(tasks, config.federation, config.machine.seed)
    stated: Any = backbone.module.config
    return {
        "backbone": stated._name_or_path, "mean": backbone.mean, "std": backbone.std,
        "rank": config.model.rank, "alpha": config.model.alpha, "learning_rate": config.training.learning_rate,
        "batch_size": config.training.batch_size, "epochs": config.training.local_epochs,
        "gradient_clip": config.training.gradient_clip,
        "classes": {name: len(task.classes) for name, task in tasks.items()},
        "clients": {name: {task: part.tolist() for task, part in share.items()} for name, share in shares.items()},
    }  # fmt: skip


def ours(config: RunConfig, program: str, folder: Path) -> tuple[Watched, dict[str, Any]]:
    method, *more = program.split()
    asked = dataclasses.replace(config, federation=dataclasses.replace(config.federation, method=method))
    (folder / "run.toml").write_bytes(write_config(asked))
    out = folder / "run"
    words = [sys.executable, "-m", "matu", "run", "--json", "--config", str(folder / "run.toml"), "--out", str(out)]
    watched = watch([*words, *more], out / "metrics.jsonl", folder / "log.txt", environment=surroundings())
    result = json.loads((out / "result.json").read_text())
    return watched, {"accuracy": {task: found["delivered"] for task, found in result["accuracy"].items()}}


def rival(words: Sequence[str], world: Path, rounds: int, folder: Path) -> tuple[Watched, dict[str, Any]]:
    script, *more = words
    command = [sys.executable, str(RIVALS / script), str(world), "--rounds", str(rounds), "--threads", str(THREADS)]
    lines = folder / "rounds.jsonl"
    watched = watch([*command, *more], lines, folder / "log.txt", environment=surroundings(), folder=folder)
    return watched, json.loads((folder / "result.json").read_text())


def surroundings() -> dict[str, str]:
    """No telemetry, no network; and every program's own choice of threads."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return kept | ENVIRONMENT | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def row(watched: Watched, result: dict[str, Any], images: list[int]) -> dict[str, Any]:
    ends = watched.line_s
    between = [b - a for a, b in itertools.pairwise(ends)]
    accuracy = result["accuracy"]
    return {
        "wall_s": round(watched.wall_s, 1), "processor_s": round(watched.processor_s, 1),
        "first_round_s": round(ends[0], 1), "first_round_processor_s": round(watched.line_processor_s[0], 1),
        "round_s": round(statistics.median(between), 2) if between else None,
        "images_per_s": round(sum(images) / ends[-1], 1),
        "images_per_s_after_first": round(sum(images[1:]) / (ends[-1] - ends[0]), 1) if between else None,
        "images_per_processor_s": round(sum(images) / watched.processor_s, 1),
        "peak_rss_mb": round(watched.peak_rss_mb), "peak_pss_mb": round(watched.peak_pss_mb),
        "mean_accuracy": round(sum(accuracy.values()) / len(accuracy), 4), "accuracy": accuracy,
        "round_ends_s": [round(end, 2) for end in ends],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two rounds, 300 training and 40 test images a task")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--max-train", type=int)
    parser.add_argument("--max-test", type=int)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name, small, full in (("rounds", 2, 10), ("max_train", 300, 0), ("max_test", 40, 0)):
        if getattr(args, name) is None:
            setattr(args, name, small if args.small else full)
    os.environ.update(ENVIRONMENT)
    config = configuration(args)
    record: dict[str, Any] = {
        "tasks": list(config.tasks.tasks), "max_train": args.max_train, "max_test": args.max_test,
        "rounds": args.rounds, "threads": THREADS, **machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "flwr")}, "programs": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        world = Path(place) / "world"
        settings = leave_world(config, world)
        first = "matu run, fedavg"  # its rounds are the schedule of all
        for number, name in enumerate([first, *(name for name in args.programs if name != first)]):
            program, folder = PROGRAMS[name], Path(place) / str(number)
            folder.mkdir()
            if isinstance(program, str):
                found = ours(config, program, folder)
            elif importlib.util.find_spec(NEEDS[program[0]]) is None:
                print(f"{name}: {NEEDS[program[0]]} is not installed")
                continue
            else:
                found = rival(program, world, args.rounds, folder)
            if name == first:
                lines = (folder / "run/metrics.jsonl").read_text().splitlines()
                settings["schedule"] = [json.loads(line)["clients"] for line in lines]
                (world / "world.json").write_text(json.dumps(settings))
                images = [trained(settings, clients) for clients in settings["schedule"]]
                record["images"] = images
            check(name, folder, images)
            record["programs"][name] = row(*found, images)
            print(table(record), end="\n\n", flush=True)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / "simulation.json").write_text(json.dumps(record, indent=1) + "\n")


def trained(settings: dict[str, Any], clients: list[str]) -> int:
    """Training images of a round."""
    return settings["epochs"] * sum(len(part) for name in clients for part in settings["clients"][name].values())


def check(name: str, folder: Path, images: list[int]) -> None:
    """Equal work: what a rival says that it trained on."""
    lines = folder / "rounds.jsonl"
    if lines.is_file():
        told = [json.loads(line)["images"] for line in lines.read_text().splitlines()]
        if told != images:
            raise SystemExit(f"{name}: trained on {told} images a round, {images} were asked for")


def table(record: dict[str, Any]) -> str:
    found = record["programs"]
    base = found["matu run, fedavg"]
    titles = {"wall s": 8, "x": 6, "cpu s": 8, "x ": 6, "1st s": 7, "round s": 8, "img/s": 7, "MB": 7, "acc %": 7}
    lines = [f"{'':30}" + "".join(f"{title.strip():>{width}}" for title, width in titles.items())]
    for name, one in found.items():
        lines.append(
            f"{name:30}{one['wall_s']:8.1f}{one['wall_s'] / base['wall_s']:6.1f}{one['processor_s']:8.1f}"
            f"{one['processor_s'] / base['processor_s']:6.1f}{one['first_round_s']:7.1f}{one['round_s'] or 0:8.2f}"
            f"{one['images_per_s']:7.1f}{one['peak_pss_mb']:7.0f}{100 * one['mean_accuracy']:7.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
