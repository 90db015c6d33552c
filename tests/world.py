"""A world small enough for a test: a ViT of a few thousand parameters and tasks of a few 8 px images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from matu.config import RunConfig, TrainingConfig
from matu.federation.site import Site
from matu.methods import Problem
from matu.methods.matu import Matu
from matu.models import AdaptedModel, load_backbone
from matu.tasks import Split, Task, class_list
from matu.training import Trainer
from matu.vectors import Layout
from matu.wire import Codecs, Header, encode

SIZE = 8


def save_tiny_vit(folder: Path) -> Path:
    """A random ViT for 8 px images (patch 4, width 16, 2 layers) in Hugging Face format."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIZE,
        patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def tiny_trainer(folder: Path, *, low_precision: bool = False, rank: int = 4, **training: float) -> Trainer:
    """A trainer on the tiny ViT, on the CPU."""
    model = AdaptedModel(
        load_backbone(str(folder), image_size=SIZE), rank=rank, alpha=4.0, targets=("query", "key", "value"),
        adapter_seed=0, device=torch.device("cpu"), low_precision=low_precision,
    )  # fmt: skip
    return Trainer(model, TrainingConfig(**{"batch_size": 8, "learning_rate": 1e-2, **training}))  # type: ignore[arg-type]


def tiny_problem(classes: Mapping[str, int], dim: int, features: int) -> Problem:
    """The sizes of a problem whose adapter is one parameter of `dim` numbers."""
    return Problem(classes, Layout(("adapter",), ((dim,),)), features)


def tiny_site(folder: Path, kind: type[Site] = Site) -> Site:
    """A site of two tasks that plays `matu`."""
    trainer, tasks = tiny_trainer(folder), {name: tiny_task(name) for name in ("left", "right")}
    problem = Problem({"left": 3, "right": 3}, trainer.model.layout, trainer.model.backbone.features)
    indices = {"left": np.arange(0, 60, 2), "right": np.arange(10)}
    return kind("north", indices, tasks, trainer, Matu(problem, RunConfig()), "matu", "ab" * 16, seed=0)


def ask(site: Site, /, **changes: object) -> bytes:
    """A message of the first round to the tiny site; `changes` are of its header."""
    tasks: Any = changes.get("tasks", tuple(site.tasks))
    fields: dict[str, Any] = {
        "method": "matu", "run": site.run, "kind": "train", "round": 1, "site": "north", "tasks": tasks,
        "fingerprint": site.trainer.model.fingerprint,
        "class_lists": tuple(class_list(site.tasks[t].classes) for t in tasks),
    } | changes  # fmt: skip
    method = site.method
    return encode(Header(**fields), method.downlink_parts(tasks), method.downlink({}, "north", tasks), Codecs())


def images_of(label: int, count: int, seed: int) -> np.ndarray:
    """Noisy images uint8 [count, 8, 8, 3] with a bright bar that tells the label."""
    draw = np.random.default_rng([seed, label])
    images = draw.integers(0, 60, (count, SIZE, SIZE, 3))
    images[:, :, 2 * label : 2 * label + 2] += 120
    return images.astype(np.uint8)


def tiny_task(name: str, *, classes: int = 3, train: int = 20, test: int = 8, seed: int = 0) -> Task:
    """A task whose classes are told by the place of a bar; counts are per class."""

    def split(count: int, draw: int) -> Split:
        images = np.concatenate([images_of(label, count, draw) for label in range(classes)])
        return Split(images, np.repeat(np.arange(classes), count))

    return Task(
        name, tuple(f"bar-{i}" for i in range(classes)), split(train, 2 * seed), split(test, 2 * seed + 1),
        f"test:{name}", f"{name}-{seed}",
    )  # fmt: skip


def save_image_folder(folder: Path, task: Task) -> Path:
    """The task as folders of PNG files, as a user would have it."""
    splits: Mapping[str, Split] = {"train": task.train, "test": task.test}
    for name, split in splits.items():
        for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            place = folder / name / task.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i:03d}.png")
    return folder
