"""Artifacts of random weights, as a run would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from matu.artifact import save_artifact
from matu.config import FederationConfig, ModelConfig, RunConfig, TasksConfig
from matu.methods import Problem, find_method
from matu.training import Weights, build_trainer
from world import tiny_task

CLASSES = {"left": 3, "middle": 3, "right": 4}


def leave_artifact(
    folder: Path, backbone: str, *, method: str = "matu", size: int = 8, classes: dict[str, int] = CLASSES, **model: Any
) -> dict[str, Weights]:
    """Write an artifact of random vectors and heads; the weights that it was made from."""
    settings = ModelConfig(backbone=backbone, **{"rank": 4, "alpha": 4.0, **model})
    config = RunConfig(
        tasks=TasksConfig(image_size=size), model=settings, federation=FederationConfig(method=method, rounds=3)
    )
    adapted = build_trainer(config, None, torch.device("cpu"), "float32").model
    problem = Problem(classes, adapted.layout, adapted.backbone.features)
    draw = torch.Generator().manual_seed(0)
    weights = {
        task: Weights(
            0.2 * torch.randn(adapted.dim, generator=draw), torch.randn(problem.head_shape(task), generator=draw)
        )
        for task in classes
    }
    tasks = {name: tiny_task(name, classes=count) for name, count in classes.items()}
    accuracy = {"left": {"delivered": 0.5, "server": 0.75, "artifact": 0.7, "individual": None}}
    save_artifact(
        folder, weights, adapted, tasks, config, find_method(method)(problem, config),
        run="5" * 64, rounds=3, accuracy=accuracy,
    )  # fmt: skip
    return weights
