"""The small world of the tests, and the profiles of the property tests.

`ci` is quick and repeatable, `long` draws 1,300 new cases for each property.
"""

import faulthandler
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

EXIT_S = 120
"""Seconds that Python may take to end after the tests; then every thread's stack is printed, and it is ended."""

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
torch.set_num_threads(1)  # of tensors this small a second thread only waits, for very long where cores are shared
os.environ["OMP_NUM_THREADS"] = "1"  # and in the processes that tests start

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=1300, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("MATU_HYPOTHESIS", "ci"))


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random ViT of a few thousand parameters."""
    from world import save_tiny_vit

    return save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny-vit")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks as image folders: left, middle (3 classes each) and right (4 classes)."""
    from world import save_image_folder, tiny_task

    root = tmp_path_factory.mktemp("data")
    for seed, (name, classes) in enumerate({"left": 3, "middle": 3, "right": 4}.items()):
        save_image_folder(root / name, tiny_task(name, classes=classes, seed=seed))
    return root


@pytest.fixture(scope="session")
def garden(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, models/ and a finished run in runs/garden."""
    from matu.config import (
        EvaluationConfig,
        FederationConfig,
        MachineConfig,
        ModelConfig,
        RunConfig,
        TasksConfig,
        TrainingConfig,
    )
    from matu.report import Display
    from matu.roots import Roots
    from matu.simulate import simulate
    from world import save_image_folder, tiny_task

    home = tmp_path_factory.mktemp("garden")
    for seed, (name, classes) in enumerate({"birds": 4, "flowers": 3}.items()):
        save_image_folder(home / "data" / name, tiny_task(name, classes=classes, seed=seed))
    shutil.copytree(tiny_vit, home / "models" / "tiny-vit")
    config = RunConfig(
        tasks=TasksConfig(tasks=("birds", "flowers"), image_size=8),
        model=ModelConfig(backbone="tiny-vit", rank=4, alpha=4.0),
        federation=FederationConfig(clients=3, participation=1.0, rounds=6, zeta_c=10.0, tasks_per_client=2),
        training=TrainingConfig(batch_size=8, learning_rate=1e-2),
        evaluation=EvaluationConfig(evaluate_every=3, reference=True),
        machine=MachineConfig(precision="float32", threads=1),
    )
    roots = Roots(home / "data", home / "models", home / "cache")
    simulate(config, home / "runs" / "garden", roots, Display(quiet=True))
    return home


@pytest.fixture
def place(tiny_vit: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which commands find the tiny ViT, the three tasks and a cache of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MATU_DATA", str(tiny_data))
    monkeypatch.setenv("MATU_MODELS", str(tiny_vit.parent))
    monkeypatch.setenv("MATU_CACHE", str(tmp_path / "cache"))
    return tmp_path


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The line over Flower's processes is the longest and mostly waits: the other lines give way to it."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("flower"):
        os.nice(19)  # below Ray's workers too, which start at 15


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        faulthandler.dump_traceback_later(EXIT_S, exit=True, file=sys.__stderr__)
