"""Folders of this machine, and the tasks that a configuration names in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from matu.config import TasksConfig
from matu.tasks import Task, load_tasks
from matu.tasks.task import SPLITS


@dataclass(frozen=True)
class Roots:
    """Where this machine keeps things; never part of a configuration or a result.

    Attributes
    ----------
    data, models
        Folders of tasks and of backbones, or None.
    cache
        Decoded images and reference results.
    """

    data: Path | None
    models: Path | None
    cache: Path


def read_tasks(config: TasksConfig, roots: Roots, needed: Collection[str] = SPLITS) -> list[Task]:
    """The tasks that a configuration names, checked and decoded; bad images stop it in `needed` splits alone."""
    return load_tasks(
        config.tasks, image_size=config.image_size, data_root=roots.data, cache_dir=roots.cache,
        skip_bad_images=config.skip_bad_images, max_train=config.max_train, max_test=config.max_test,
        needed=needed,
    )  # fmt: skip
