"""What the documentation shows works, and what it lists is there."""

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from matu.artifact import load_artifact
from matu.cli import run_command
from matu.config import EvaluationConfig, read_config
from matu.federation.checkpoint import load_checkpoint
from matu.methods import method_names
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate

pytestmark = pytest.mark.xdist_group("garden")

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results-explained.md").read_text(encoding="utf-8")
ARTIFACT = (DOCS / "artifact.md").read_text(encoding="utf-8")


@pytest.fixture
def result(garden: Path) -> dict[str, Any]:
    return json.loads((garden / "runs/garden/result.json").read_text())


def test_the_artifact_is_used_as_shown(
    garden: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = garden / "data/flowers/test/bar-1/008.png"
    shutil.copy(photo, garden / "photo.jpg")
    monkeypatch.chdir(garden)
    (code,) = re.findall(r"```python\n(.*?)```", ARTIFACT, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code, shown)
    name, label, _, other, share = capsys.readouterr().out.split()
    assert (name, label, other) == ("photo.jpg", *(label for label, _ in shown["found"].top))
    assert share == f"{shown['found'].top[1][1]:.3f}"
    for task, found in result["accuracy"].items():
        images = sorted((garden / "data" / task / "test").glob("*/*"))
        said = shown["predict"](shown["artifact"], shown["trainer"], task, images)
        right = [one.label == one.image.parent.name for one in said]
        assert sum(right) / len(right) == found["artifact"] > 1.5 * result["tasks"][task]["chance"]


def test_the_commands_of_the_artifact_work_as_shown(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(garden)
    monkeypatch.setenv("MATU_MODELS", str(garden / "models"))
    monkeypatch.setenv("MATU_CACHE", str(garden / "cache"))
    shutil.copy(garden / "data/flowers/test/bar-1/008.png", garden / "photo.jpg")
    for task in ("birds", "flowers"):
        (garden / task).symlink_to(garden / "data" / task)
    block = ARTIFACT.split("```")[1]
    lines = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
    assert [words[:2] for words in lines] == [
        ["matu", command] for command in ("inspect", "predict", "evaluate", "export", "forget")
    ]
    for words in lines:
        assert run_command(words[1:]) == 0, capsys.readouterr().err
    assert (garden / "adapters/birds/adapter_model.safetensors").is_file()
    assert load_artifact(garden / "without-birds").tasks == ("flowers",)


def test_clients_with_all_tasks_are_delivered_the_artifact(result: dict[str, Any]) -> None:
    for found in result["accuracy"].values():
        assert found["delivered"] == pytest.approx(found["artifact"], abs=1e-12)


def section(title: str) -> set[str]:
    """What stands in backquotes in a section."""
    return set(re.findall(r"`([^`]+)`", PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]))


def keys(table: Mapping[str, Any], *open_keys: str) -> set[str]:
    """The keys of a table, and those of the tables under `open_keys`: task.* means of any task."""
    found = set(table)
    for path in open_keys:
        name, _, any_task = path.partition(".")
        below = table[name]
        found |= set(next(iter(below.values())) if any_task else below)
    return found


def test_every_key_is_explained(garden: Path, result: dict[str, Any]) -> None:
    opened = ("tasks.*", "backbone", "accuracy.*", "normalised", "worst_client", "individual.*", "bytes", "seconds")
    assert keys(result, *opened) <= section("result.json")
    for line in (garden / "runs/garden/metrics.jsonl").read_text().splitlines():
        written = json.loads(line)
        assert keys(written, *(["accuracy"] if "accuracy" in written else [])) <= section("metrics.jsonl")


METHODS = (DOCS / "methods.md").read_text(encoding="utf-8")


def test_a_method_of_ones_own_is_one_file(tmp_path: Path, garden: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", METHODS, re.DOTALL)
    (tmp_path / "momentum.py").write_text(code)
    config = read_config(garden / "runs/garden/config.toml")
    federation = dataclasses.replace(config.federation, method=str(tmp_path / "momentum.py"))
    config = dataclasses.replace(config, federation=federation, evaluation=EvaluationConfig())
    roots = Roots(garden / "data", garden / "models", garden / "cache")
    found = simulate(config, tmp_path / "run", roots, Display(quiet=True))
    assert found["method"] == "momentum"
    assert found["mean_accuracy"]["delivered"] > 0.4
    plain = dataclasses.replace(config, federation=dataclasses.replace(federation, method="fedavg"))
    simulate(plain, tmp_path / "plain", roots, Display(quiet=True))
    mine, other = _state(tmp_path / "run"), _state(tmp_path / "plain")
    assert set(mine) - set(other) == {"speed"}
    assert not torch.equal(mine["adapter"], other["adapter"]), "the momentum does something"


def _state(run: Path) -> Mapping[str, torch.Tensor]:
    identity = json.loads((run / "checkpoint/checkpoint.json").read_text())["run"]
    progress = load_checkpoint(run / "checkpoint", identity)
    assert progress is not None
    return progress.state


def test_every_method_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", METHODS, re.MULTILINE)
    assert sorted(rows) == list(method_names())


SERVING = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_an_artifact_is_served_as_shown(
    garden: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(garden / "data/flowers/test/bar-1/008.png", garden / "photo.jpg")
    shutil.copy(garden / "data/birds/test/bar-3/024.png", garden / "other.jpg")
    monkeypatch.chdir(garden)
    (code,) = re.findall(r"```python\n(.*?)```", SERVING, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code, shown)
    asked = [
        (image, task) for task in result["accuracy"] for image in sorted((garden / "data" / task).glob("test/*/*"))
    ]
    asked = [*asked[::2], *asked[1::2]]  # the tasks in turns
    labels = shown["classify"](asked)
    for task, found in result["accuracy"].items():
        mine = [label == image.parent.name for label, (image, of) in zip(labels, asked, strict=True) if of == task]
        assert sum(mine) / len(mine) == found["artifact"] > 1.5 * result["tasks"][task]["chance"]
    assert capsys.readouterr().out.strip() == str(
        shown["classify"]([(Path("photo.jpg"), "flowers"), (Path("other.jpg"), "birds")])
    )
