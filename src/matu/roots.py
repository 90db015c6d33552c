"""Folders of this machine, and the tasks that a configuration names in them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from matu.config import TasksConfig
from matu.errors import ConfigError
from matu.tasks import Task, default_cache_dir, load_tasks
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


def find_roots(data: Path | None = None, models: Path | None = None, cache: Path | None = None) -> Roots:
    """The folders that are given, else those that MATU_DATA, MATU_MODELS and MATU_CACHE of the environment name.

    Raises
    ------
    ConfigError
        If there is no folder where one should be; that of the cache is made.
    """

    def root(option: str, given: Path | None, variable: str) -> Path | None:
        if given is None and os.environ.get(variable):
            option, given = variable, Path(os.environ[variable])
        if given is not None and not given.is_dir():
            raise ConfigError(f"{option}: {given} is no folder")
        return given

    return Roots(
        root("--data-root", data, "MATU_DATA"), root("--models-root", models, "MATU_MODELS"),
        cache or default_cache_dir(),
    )  # fmt: skip


def read_tasks(config: TasksConfig, roots: Roots, needed: Collection[str] = SPLITS) -> list[Task]:
    """The tasks that a configuration names, checked and decoded; bad images stop it in `needed` splits alone."""
    return load_tasks(
        config.tasks, image_size=config.image_size, data_root=roots.data, cache_dir=roots.cache,
        skip_bad_images=config.skip_bad_images, max_train=config.max_train, max_test=config.max_test,
        needed=needed,
    )  # fmt: skip
