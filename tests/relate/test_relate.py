"""matu relate as a person types it, and what its study promises."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from matu.cli import run_command
from matu.config import FederationConfig, MachineConfig, RunConfig, TrainingConfig, read_config
from matu.errors import DivergedError
from matu.methods.individual import individual
from matu.relate import Study, figures, relate
from matu.relate.adapters import fine_tuned
from matu.roots import Roots
from matu.training import Trainer
from world import tiny_task, tiny_trainer

CONFIG = """
[tasks]
tasks = ["left", "middle", "right"]
image_size = 8
[model]
backbone = "tiny-vit"
rank = 4
[training]
batch_size = 8
learning_rate = 1e-2
[machine]
precision = "float32"
threads = 1
"""
MEASURES = ("sign", "cosine", "fim", "e_tran", "wte")


@pytest.fixture
def home(place: Path) -> Path:
    (place / "small.toml").write_text(CONFIG)
    return place


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a small study's time."""
    for name in ("similarities", "correlations"):
        monkeypatch.setattr(figures, name, lambda *what: [])


def call(*words: str) -> int:
    try:
        return run_command(["relate", "--config", "small.toml", "--steps", "8", "--clusters", "2", *words])
    except SystemExit as stop:
        return int(str(stop.code))


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


def test_all_is_measured_and_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    shown, out = capsys.readouterr(), home / "relatedness/small"
    for word in ("3 pairs of tasks", *MEASURES, "cluster 1: ", "cluster 2: ", "relatedness/small: relatedness.json"):
        assert word in shown.out
    assert "right (3/3): 8 steps, loss" in shown.err
    assert {path.name for path in out.iterdir()} == {
        "relatedness.json", "correlations.csv", *(f"{measure}.csv" for measure in MEASURES),
        *(f"{figure}.{kind}" for figure in ("similarities", "correlations") for kind in ("png", "svg")),
    }  # fmt: skip
    found = json.loads((out / "relatedness.json").read_text())
    for measure in MEASURES:
        matrix = np.array(found["metrics"][measure])
        np.testing.assert_array_equal(matrix, matrix.T)
        names, *rows = csv.reader((out / f"{measure}.csv").read_text().splitlines())
        assert names == ["task", "left", "middle", "right"] == ["task", *(row[0] for row in rows)]
        np.testing.assert_allclose(np.array([row[1:] for row in rows], dtype=float), matrix, atol=1e-6)
    _, *rows = csv.reader((out / "correlations.csv").read_text().splitlines())
    assert len(rows) == 10
    for one, other, r, p, pairs in rows:
        assert float(r) == found["correlations"]["pearson"][other][one]
        assert float(p) == found["correlations"]["mantel_p"][one][other]
        assert pairs == "3"
    x, y = (np.array(found["metrics"][measure])[np.triu_indices(3, 1)] for measure in ("sign", "wte"))
    assert found["correlations"]["pearson"]["sign"]["wte"] == pytest.approx(-np.corrcoef(x, y)[0, 1])
    assert len(set(found["clusters"].values())) == 2
    assert (found["steps"], found["seed"], found["config"]["training"]["batch_size"]) == (8, 0, 8)
    assert str(home) not in json.dumps(found)
    with Image.open(out / "similarities.png") as image:
        assert image.width > 800


@pytest.mark.usefixtures("undrawn")
def test_two_tasks_have_two_clusters_and_a_folder_of_their_names(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = read_config(home / "small.toml")
    words = ["--backbone", base.model.backbone, "--image-size", "8", "--batch-size", "8", "--threads", "1"]
    assert run_command(["relate", "--tasks", "left", "right", "--steps", "2", *words]) == 0
    found = json.loads((home / "relatedness/left-right/relatedness.json").read_text())
    assert sorted(found["clusters"].values()) == [0, 1]
    assert "relatedness/left-right: relatedness.json" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_task_is_trained_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, trained, stop_after = Trainer.train, [], 2

    def watched(self: Trainer, weights: Any, split: Any, *rest: Any, **more: Any) -> Any:
        if len(trained) == stop_after:
            raise KeyboardInterrupt
        trained.append(len(split.labels))
        return train(self, weights, split, *rest, **more)

    monkeypatch.setattr(Trainer, "train", watched)
    assert call() == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not list((home / "relatedness/small").iterdir())
    stop_after = 9
    assert call("--json") == 0
    assert len(trained) == 3
    first = capsys.readouterr()
    assert first.err == ""
    assert call("--json") == 0
    assert len(trained) == 3
    again = json.loads(capsys.readouterr().out)
    assert without_times(again) == without_times(json.loads(first.out))
    whole = json.loads(first.out)
    assert call("--json", "--cache", "other") == 0
    fresh = json.loads(capsys.readouterr().out)
    assert fresh["metrics"] == whole["metrics"]
    assert len(trained) == 6
    assert call("--json", "--seed", "1") == 0
    assert len(trained) == 9
    assert json.loads(capsys.readouterr().out)["metrics"]["sign"] != whole["metrics"]["sign"]


@pytest.mark.usefixtures("undrawn")
def test_e_tran_as_released_is_another_class_score(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain: dict[str, Any] = {}
    released: dict[str, Any] = {}
    for found, words in ((plain, ()), (released, ("--e-tran-as-released",))):
        assert call("--json", *words) == 0
        found.update(json.loads(capsys.readouterr().out))
    assert released["e_tran_as_released"] is True
    assert [m for m in MEASURES if plain["metrics"][m] != released["metrics"][m]] == ["e_tran"]
    assert plain["e_tran_parts"]["energy"] == released["e_tran_parts"]["energy"]


@pytest.mark.usefixtures("undrawn")
def test_side_by_side_it_finds_the_same(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("--to", "alone") == 0
    monkeypatch.setattr("matu.training.machine.cores", lambda: 3)
    assert call("--to", "beside", "--cache", str(home / "another")) == 0
    found = [without_times(json.loads((home / to / "relatedness.json").read_text())) for to in ("alone", "beside")]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert "left (1/3): 8 steps" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_adapter_is_trained_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--json") == 0
    whole = json.loads(capsys.readouterr().out)
    kept = sorted((home / "cache/adapters").iterdir())
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    kept[1].write_bytes(kept[2].read_bytes())
    assert call("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "steps 0: expected 1 or more"),
        (["--images", "-5"], "images -5: expected 1 or more"),
        (["--clusters", "-1"], "clusters -1: expected 1 or more"),
        (["--clusters", "4"], "clusters 4: expected at most 3, the number of tasks"),
        (["--clusters", "3", "--tasks", "left", "nowhere"], "clusters 3: expected at most 2, the number of tasks"),
        (["--tasks", "left"], "one alone is related to none; expected two or more"),
        (["--tasks", "left", "nowhere"], "nowhere"),
        (["--to", "small.toml/out"], "--to small.toml/out: cannot be made"),
        (["--backbone", "nonsense", "--tasks", "left", "nowhere"], "no such bundled model"),
        (["--participation", "2"], "participation 2.0"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_wrong_input_is_told_before_any_work(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert call(*words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert not (home / "cache/adapters").exists()
    assert not (home / "relatedness").exists()


def test_a_training_that_diverges_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*rest: Any, **more: Any) -> Any:
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(Trainer, "train", diverge)
    assert call() == 1
    assert "left: the loss is nan" in capsys.readouterr().err


def test_the_adapter_is_that_of_the_individual_reference(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    config = RunConfig(
        federation=FederationConfig(rounds=2, participation=1.0), machine=MachineConfig(),
        training=TrainingConfig(batch_size=8, learning_rate=1e-2),
    )  # fmt: skip
    alone = individual(trainer, {"left": task}, config, holders={"left": 1}, cache=tmp_path, tell=lambda text: None)
    steps = 2 * -(-len(task.train.labels) // 8)
    one = alone["left"]
    assert one is not None
    assert fine_tuned(trainer, task, config, steps, tmp_path).accuracy == one.budget


@pytest.mark.usefixtures("undrawn")
def test_measures_agree_on_what_is_plain(home: Path, tiny_vit: Path, tiny_data: Path) -> None:
    """Two tasks of one kind of images, and one of another kind: no measure takes the strangers for twins."""
    left = tiny_data / "left"
    for name, turned in (("twin", False), ("across", True)):
        for path in sorted(left.rglob("*.png")):
            place = home / name / path.relative_to(left)
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                pixels = np.array(image)
            Image.fromarray(255 - pixels.transpose(1, 0, 2) if turned else pixels).save(place)
    config = read_config(home / "small.toml")
    tasks = (str(left), str(home / "twin"), str(home / "across"))
    config = dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, tasks=tasks))
    roots = Roots(None, tiny_vit.parent, home / "cache")
    found = relate(config, Study(steps=30, clusters=2), home / "out", roots, lambda text: None)
    for measure, values in found["metrics"].items():
        twins, first, second = np.array(values)[np.triu_indices(3, 1)] * (-1 if measure == "wte" else 1)
        assert twins > max(first, second), measure
    assert found["clusters"]["left"] == found["clusters"]["twin"] != found["clusters"]["across"]
