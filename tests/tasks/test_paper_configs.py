"""The configs of the paper's tables and figures are what the paper says, and can run."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from matu.config import RunConfig, read_config
from matu.tasks import SUITES
from matu.tasks.paper import EIGHT, PREFIX

CONFIGS = Path(__file__).parents[2] / "configs"
CLUSTERS = {
    **dict.fromkeys(("mnist", "svhn", "gtsrb"), "digits"),
    **dict.fromkeys(("sun397", "resisc45", "eurosat"), "scenes"),
    **dict.fromkeys(("dtd", "stanford_cars"), "texture and objects"),
}


def read(name: str, tmp_path: Path) -> tuple[RunConfig, dict[str, Any], dict[str, RunConfig]]:
    """The file's own configuration, its [compare], and the configuration of each setting."""
    table = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    compare, settings = table.pop("compare", {}), table.pop("settings", {})

    def checked(changes: dict[str, Any]) -> RunConfig:
        path = tmp_path / "config.toml"
        path.write_text(tomli_w.dumps({**table, "federation": {**table["federation"], **changes}}))
        config = read_config(path)
        config.check()
        return config

    return checked({}), compare, {setting: checked(changes) for setting, changes in settings.items()}


@pytest.mark.parametrize(
    ("name", "suite", "clients", "participation", "rounds"),
    [
        ("table1", "paper-8", 30, 0.2, 100),
        ("table2", "paper-8", 30, 0.2, 100),
        ("figure4", "paper-30", 30, 1.0, 300),
        ("figure5", "paper-30", 10, 1.0, 300),
        ("figure6", "paper-8", 10, 1.0, 300),
    ],
)
def test_protocol(name: str, suite: str, clients: int, participation: float, rounds: int, tmp_path: Path) -> None:
    config, _, _ = read(name, tmp_path)
    f = config.federation
    assert (config.tasks.tasks, config.tasks.image_size) == ((suite,), 224)
    assert (config.model.backbone, config.model.rank) == ("google/vit-base-patch32-224-in21k", 16)
    assert (f.clients, f.participation, f.rounds, f.zeta_c) == (clients, participation, rounds, 0.1)
    assert (config.training.local_epochs, config.training.local_steps) == (1, 0)
    assert (config.tasks.max_train, config.tasks.max_test) == (0, 0)


def test_task_skew(tmp_path: Path) -> None:
    assert [read(name, tmp_path)[0].federation.zeta_t for name in ("table1", "table2", "figure4")] == [0.0, 0.5, 0.2]


def test_figure5_varies_the_tasks_of_a_client(tmp_path: Path) -> None:
    _, compare, settings = read("figure5", tmp_path)
    assert compare["axis"] == "tasks_per_client"
    assert {"matu", "mat_fl"} <= set(compare["methods"])
    assert {name: c.federation.tasks_per_client for name, c in settings.items()} == {
        f"{k}-tasks": k for k in (2, 5, 10, 15, 20, 30)
    }
    assert len(SUITES["paper-30"]) == 30


def test_figure6_groups(tmp_path: Path) -> None:
    _, _, settings = read("figure6", tmp_path)
    assert list(settings) == ["no-conflict", "two-conflicting", "three-conflicting"]
    assert set(CLUSTERS) == set(EIGHT) == {reference.removeprefix(PREFIX) for reference in SUITES["paper-8"]}
    for clusters, config in enumerate(settings.values(), 1):
        groups = [group.split("+") for group in config.federation.task_groups]
        assert {task for group in groups for task in group} == set(EIGHT)
        assert [len({CLUSTERS[task] for task in group}) for group in groups] == [clusters] * 3
        sizes = [3, 3, 2] if clusters == 1 else [3, 3, 3]
        assert [len(set(group)) for group in groups] == sizes
