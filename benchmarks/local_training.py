"""Local training of one task beside the plain loop of Transformers and PEFT in float32, on the same batches.

python benchmarks/local_training.py [--task NAME] [--backbone vit-mini] [--image-size 32] [--steps 60] [--out FOLDER]

Both start from the same adapter and head and see the same images in the same order. Measured are images a second of
wall and of processor time (a part of all steps, best of the parts: what else the machine does disturbs those least),
accuracy on the test images after the last step, and where our step's time goes: every operator by its least time over
some steps. Tasks are the bundled ones, or those under MATU_DATA; other backbones are found under MATU_MODELS.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from matu.cli.common import Folders, roots
from matu.config import MachineConfig, ModelConfig, RunConfig, TasksConfig, TrainingConfig
from matu.roots import read_tasks
from matu.tasks import Task
from matu.training import Trainer, Weights, build_trainer, decide, prepare_machine
from matu.training.trainer import Fit, batches
from rivals import plain_peft
from watch import processor

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution")
PARTS = 6


class Operators(TorchDispatchMode):
    """Seconds of this thread in every operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, float]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        began = time.thread_time()
        found = operator(*arguments, **(named or {}))
        self.calls.append((str(operator.overloadpacket).removeprefix("aten."), time.thread_time() - began))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="demo:digits")
    parser.add_argument("--backbone", default="vit-mini")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config = RunConfig(
        tasks=TasksConfig(tasks=(asked.task,), image_size=asked.image_size, max_train=2000, max_test=1000),
        model=ModelConfig(backbone=asked.backbone), machine=MachineConfig(threads=asked.threads),
        training=TrainingConfig(batch_size=asked.batch, learning_rate=asked.learning_rate),
    )  # fmt: skip
    here = roots(Folders())
    (task,) = read_tasks(config.tasks, here)
    machine = decide(config, here.models)
    trainer = build_trainer(config, here.models, prepare_machine(machine), machine.precision)
    draw = np.random.default_rng(0)
    order = list(batches(np.arange(len(task.train.labels)), asked.batch, draw, steps=asked.steps, epochs=0))
    parts = [part.tolist() for part in np.array_split(np.arange(asked.steps), PARTS)]
    runs = {"ours": ours(trainer, task, order), "plain": plain(trainer, config, task, order)}
    speed = {name: {"wall": 0.0, "processor": 0.0} for name in runs}
    for part in parts:  # in turn, so that what else the machine does disturbs both
        for name, (step, _) in runs.items():
            began, used = time.perf_counter(), time.process_time()
            step(part)
            seconds = {"wall": time.perf_counter() - began, "processor": time.process_time() - used}
            images = sum(len(order[number]) for number in part)
            speed[name] = {kind: max(speed[name][kind], images / s) for kind, s in seconds.items()}
    found = {
        **{name: value for name, value in vars(asked).items() if name != "out"}, "precision": machine.precision,
        "images_a_second": {n: {k: round(v, 1) for k, v in one.items()} for n, one in speed.items()},
        "ratio": {k: round(speed["ours"][k] / speed["plain"][k], 2) for k in ("wall", "processor")},
        "accuracy": {name: round(accuracy(), 4) for name, (_, accuracy) in runs.items()},
        "step": operators(trainer, task, order[0]),
        "torch": torch.__version__, "processor": processor(),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        name = f"{Path(asked.backbone).name}-{asked.image_size}px-batch-{asked.batch}.json"
        (asked.out / name).write_text(json.dumps(found, indent=1) + "\n")


Run = tuple[Callable[[list[int]], None], Callable[[], float]]
"""Makes the steps of some numbers; the accuracy after them."""


def base(trainer: Trainer, task: Task) -> Weights:
    return Weights(torch.zeros(trainer.model.dim), torch.zeros(len(task.classes), trainer.model.backbone.features + 1))


def ours(trainer: Trainer, task: Task, order: list[np.ndarray]) -> Run:
    fit = Fit(trainer, base(trainer, task))

    def step(numbers: list[int]) -> None:
        for number in numbers:
            fit.step(task.train, order[number])

    return step, lambda: trainer.accuracy_as_is(fit.head.detach(), task.test)


def plain(trainer: Trainer, config: RunConfig, task: Task, order: list[np.ndarray]) -> Run:
    """The rivals' loop, from the same draw of the adapter."""
    backbone = trainer.model.backbone
    stated: Any = backbone.module.config
    world = {
        "backbone": stated._name_or_path, "classes": {task.name: len(task.classes)},
        "mean": backbone.mean, "std": backbone.std, "rank": config.model.rank, "alpha": config.model.alpha,
    }  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    for split in ("train", "test"):
        np.save(folder / f"{task.name}-{split}-images.npy", getattr(task, split).images)
        np.save(folder / f"{task.name}-{split}-labels.npy", getattr(task, split).labels)
    model = plain_peft.get_model(world, task.name).train()
    start = trainer.model.layout.unflatten(trainer.model.start)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(start[name.removeprefix("base_model.model.vit.")])
    trained = [p for p in model.parameters() if p.requires_grad]
    t = config.training
    optimizer = torch.optim.AdamW(trained, lr=t.learning_rate, weight_decay=t.weight_decay)
    data = {split: plain_peft.Images(folder, world, task.name, split) for split in ("train", "test")}

    def step(numbers: list[int]) -> None:
        for pixels, labels in DataLoader(data["train"], batch_sampler=[order[n].tolist() for n in numbers]):
            loss = torch.nn.functional.cross_entropy(plain_peft.logits(model, pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, t.gradient_clip)
            optimizer.step()

    return step, lambda: plain_peft.accuracy(model, data["test"], bf16=False)


def operators(trainer: Trainer, task: Task, batch: np.ndarray, repeats: int = 8) -> dict[str, Any]:
    """Milliseconds of a step by operator, and the share of matrix products in the processor time of a step."""
    fit = Fit(trainer, base(trainer, task))
    runs, whole = [], []
    for _ in range(repeats):
        began = time.process_time()
        fit.step(task.train, batch)
        whole.append(time.process_time() - began)
        with Operators() as watched:
            fit.step(task.train, batch)
        runs.append(watched.calls)
    least: dict[str, float] = collections.defaultdict(float)
    for calls in zip(*runs, strict=True):
        least[calls[0][0]] += min(seconds for _, seconds in calls)
    products, step_s = sum(least[name] for name in PRODUCTS), min(whole)
    largest = sorted(least.items(), key=lambda one: -one[1])[:12]
    return {
        "milliseconds": round(1e3 * step_s, 1), "share_in_products": round(products / step_s, 3),
        "outside_operators": round(1 - sum(least.values()) / step_s, 3),
        "operators_milliseconds": {name: round(1e3 * seconds, 2) for name, seconds in largest},
    }  # fmt: skip


if __name__ == "__main__":
    main()
