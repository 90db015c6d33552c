"""What hostile clients do to a federation of demo-8, without bounds and with them.

python benchmarks/attacks.py --out FILE [--rounds 8] [--hostile 2] [--seeds 0]

Ten clients, all in every round; the last two are hostile. They train like the others, and then send
  sign_flip   the opposite of what they learnt, ten times as long
  times_1000  what they learnt, a thousand times as long
  huge        what they learnt, with one coordinate of 10,000, which wins every election
  samples     the opposite of what they learnt, and say that it comes from 4 billion images
  backdoor    three times what they learnt from images of one task half of which have a white corner and are said to
              be of its first class
Accuracy is what clients get. Backdoor success is the share of test images of other classes, with the corner, that the
server's weights take for the first class. Finished runs are kept in the output file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import matu.simulate as simulation
from matu.artifact import load_artifact
from matu.config import (
    DefenceConfig,
    EvaluationConfig,
    FederationConfig,
    MachineConfig,
    RunConfig,
    TasksConfig,
    TrainingConfig,
)
from matu.federation.site import Site
from matu.methods import Local, Method
from matu.report import Display
from matu.roots import Roots, read_tasks
from matu.simulate import deal, simulate
from matu.tasks import Split
from matu.tasks.cache import default_cache_dir
from matu.training import Trainer, Weights, build_trainer
from matu.wire import Envelope
from matu.wire.header import write_header
from matu.wire.message import CHECKSUM_BYTES
from watch import processor

BOUNDS = {
    "none": DefenceConfig(),
    "norm 2": DefenceConfig(norm_limit=2.0, rescaler_limit=10.0, sample_limit=40),
    "norm 2, trim 0.3": DefenceConfig(norm_limit=2.0, rescaler_limit=10.0, sample_limit=40, trim=0.3),
}
Change = Callable[[Weights, Weights], Weights]
"""From where a training began and ended to what is sent."""


def times(factor: float) -> Change:
    return lambda start, end: Weights(*(s + factor * (e - s) for s, e in zip(start, end, strict=True)))


def huge(start: Weights, end: Weights) -> Weights:
    vector = end.vector.clone()
    vector[len(vector) // 2] = 1e4
    return Weights(vector, end.head)


ATTACKS: dict[str, Change] = {
    "none": times(1.0), "sign_flip": times(-10.0), "times_1000": times(1000.0), "huge": huge, "samples": times(-1.0),
    "backdoor": times(3.0),
}  # fmt: skip


def with_corner(images: np.ndarray) -> np.ndarray:
    """The images with a white square in a corner."""
    marked = np.array(images)
    marked[:, -6:, -6:] = 255
    return marked


class Hostile(Site):
    """A site that sends something else than it learnt."""

    attack, target = "none", ""

    def answer(self, request: bytes, trainer: Trainer) -> bytes:
        honest, tasks = self.method, self.tasks
        if self.attack == "backdoor" and self.target in self.indices:
            task, half = tasks[self.target], self.indices[self.target][::2]
            images, labels = np.array(task.train.images), np.array(task.train.labels)
            images[half], labels[half] = with_corner(images[half]), 0
            self.tasks = dict(tasks) | {self.target: dataclasses.replace(task, train=Split(images, labels))}
        self.method = _Changed(honest, ATTACKS[self.attack])  # type: ignore[assignment]
        try:
            reply = super().answer(request, trainer)
        finally:
            self.method, self.tasks = honest, tasks
        return with_samples(reply, (1 << 32) - 1) if self.attack == "samples" else reply


def with_samples(payload: bytes, samples: int) -> bytes:
    """The message with other sample counts."""
    header = Envelope(payload).header
    lie = write_header(dataclasses.replace(header, samples=(samples,) * len(header.tasks)))
    body = lie + payload[len(write_header(header)) : -CHECKSUM_BYTES]
    return body + hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


class _Changed:
    """A method whose trainings end elsewhere."""

    def __init__(self, method: Method, change: Change) -> None:
        self._method, self._change = method, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def local_update(self, local: Local, tensors: dict[str, Tensor]) -> Any:
        def train(starts: Mapping[str, Weights]) -> dict[str, Weights]:
            return {task: self._change(starts[task], end) for task, end in local.train(starts).items()}

        return self._method.local_update(dataclasses.replace(local, train=train), tensors)


def one(attack: str, bounds: DefenceConfig, method: str, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Accuracy of clients, and success of the backdoor, after a run."""
    config = RunConfig(
        tasks=TasksConfig(max_train=100, max_test=100),
        federation=FederationConfig(method=method, clients=10, participation=1.0, rounds=asked.rounds, zeta_c=1.0),
        training=TrainingConfig(batch_size=16, learning_rate=3e-3), defence=bounds,
        evaluation=EvaluationConfig(evaluate_every=0),
        machine=MachineConfig(seed=seed, threads=1, precision=asked.precision),
    )  # fmt: skip
    roots = Roots(None, None, default_cache_dir())
    tasks = {task.name: task for task in read_tasks(config.tasks, roots)}
    clients = deal(tasks, config.federation, seed)
    hostile = list(clients)[-asked.hostile :]
    holders = {task: [name for name, share in clients.items() if task in share] for task in tasks}
    target = max(tasks, key=lambda task: (sum(name in hostile for name in holders[task]), -len(holders[task])))

    def site(name: str, *rest: Any) -> Site:
        found: Site = (Hostile if name in hostile else Site)(name, *rest)
        if isinstance(found, Hostile):
            found.attack, found.target = attack, target
        return found

    kept, simulation.Site = simulation.Site, site  # type: ignore[misc, assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            result = simulate(config, out, roots, Display(quiet=True))
            weights = load_artifact(out / "artifact").weights(target)
    finally:
        simulation.Site = kept  # type: ignore[misc]
    others = np.flatnonzero(tasks[target].test.labels != 0)
    marked = Split(with_corner(tasks[target].test.images[others]), np.zeros(len(others), np.int64))
    trainer = build_trainer(config, None, torch.device("cpu"), asked.precision)
    return {
        "accuracy": result["mean_accuracy"]["delivered"], "left_out": result["failures"],
        "backdoor": trainer.accuracy(weights, marked), "target": target, "holders": len(holders[target]),
        "hostile_holders": sum(name in hostile for name in holders[target]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--hostile", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=["matu", "per_task_fedavg"])
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    asked = parser.parse_args()
    rows: dict[str, Any] = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else {}
    for seed in asked.seeds:
        for method in asked.methods:
            for attack in ATTACKS:
                for name, bounds in BOUNDS.items():
                    key = f"{method}, {attack}, bounds {name}, seed {seed}"
                    if key in rows:
                        continue
                    rows[key] = one(attack, bounds, method, asked, seed)
                    done = rows[key]
                    print(f"{key:60} accuracy {done['accuracy']:.3f}  backdoor {done['backdoor']:.3f}", flush=True)
                    asked.out.parent.mkdir(parents=True, exist_ok=True)
                    found = {"rounds": asked.rounds, "hostile": asked.hostile, "processor": processor(), "rows": rows}
                    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
