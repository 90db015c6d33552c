"""matu inspect, predict, evaluate, export and forget, as a person types them."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artifact_cases import leave_artifact
from matu.artifact import load_artifact
from matu.vectors import similarity
from test_cli import call
from world import images_of


@pytest.fixture
def home(place: Path, tiny_vit: Path) -> Path:
    """A run folder with an artifact, and three photos of which one is broken."""
    leave_artifact(place / "run/artifact", str(tiny_vit))
    (place / "photos").mkdir()
    for label in (0, 1):
        Image.fromarray(images_of(label, 1, 0)[0]).save(place / f"photos/{label}.png")
    (place / "photos/bad.png").write_bytes(b"\x89PNG")
    return place


def test_names_that_are_no_text_are_shown_as_far_as_they_go(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(home / "photos/0.png", os.fsencode(home) + b"/photos/caf\xe9.png")
    (home / "photos/bad.png").unlink()
    for form in ((), ("--csv",)):
        assert call("predict", "run", "photos", "--task", "left", *form) == 0
        shown = capsys.readouterr().out
        assert "photos/caf\ufffd.png" in shown
        shown.encode()


def test_inspect_says_what_it_weighs_and_how_alike_tasks_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    artifact = load_artifact(home / "run")
    files = list((home / "run/artifact").iterdir())
    assert found["bytes"]["total"] == sum(path.stat().st_size for path in files)
    dim = artifact.packed.dim
    assert found["bytes"]["float32"] == 4 * (3 * dim + (3 + 3 + 4) * 17)
    assert found["bytes"]["shared"] == 4 * dim
    assert found["tasks"]["right"]["bytes"] == dim // 8 + 4 + 4 * 4 * 17
    assert found["tasks"]["right"]["classes"] == ["bar-0", "bar-1", "bar-2", "bar-3"]
    assert found["tasks"]["left"]["accuracy"]["artifact"] == 0.7
    mask = artifact.packed.mask("middle")
    assert found["tasks"]["middle"]["mask_density"] == pytest.approx(float(mask.double().mean()))
    vectors = torch.stack([artifact.vector(task) for task in artifact.tasks])
    assert found["similarity"]["sign"] == similarity(vectors).tolist()
    cosine = np.corrcoef(vectors.numpy())  # of vectors without a mean it would be the cosine
    assert np.allclose(found["similarity"]["cosine"], cosine, atol=0.05)
    assert call("inspect", "run/artifact") == 0
    shown = capsys.readouterr().out
    for word in (
        "3 tasks on tiny-vit, unified",
        "by matu of matu",
        "times as much",
        "left",
        "70.0",
        "Eq. 5",
        "alike by construction",
    ):
        assert word in shown


def test_inspect_of_separate_vectors_has_no_masks(
    home: Path, tiny_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_artifact(home / "plus", str(tiny_vit), method="matu_plus")
    assert call("inspect", "plus") == 0
    shown = capsys.readouterr().out
    assert "3 tasks on tiny-vit, separate" in shown
    assert "mask" not in shown
    assert "by construction" not in shown


def test_predict_prints_a_table_json_or_csv_and_tells_the_broken(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", "run", "photos", "--task", "right") == 1, "one could not be read"
    shown = capsys.readouterr()
    assert "photos/1.png" in shown.out
    assert "bar-" in shown.out
    assert "matu: photos/bad.png: not an image file that can be read" in shown.err
    assert call("predict", "run", "--task", "right", "photos", "--json", "--top", "2") == 1
    listed = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in listed] == ["photos/0.png", "photos/1.png", "photos/bad.png"]
    assert listed[2] == {"image": "photos/bad.png", "problem": "not an image file that can be read"}
    assert listed[0]["top"][0] == {"label": listed[0]["label"], "probability": listed[0]["probability"]}
    assert listed[0]["top"][1]["probability"] <= listed[0]["probability"]
    assert call("predict", "run", "photos/1.png", "photos/0.png", "--task", "right", "--csv", "--top", "2") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["image"], row["rank"]) for row in rows] == [
        ("photos/1.png", "1"), ("photos/1.png", "2"), ("photos/0.png", "1"), ("photos/0.png", "2")
    ]  # fmt: skip
    assert rows[2]["label"] == listed[0]["label"]
    assert float(rows[2]["probability"]) == pytest.approx(listed[0]["probability"], abs=1e-5)


def test_evaluate_measures_the_tasks_that_are_named(
    home: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", "run", "--tasks", "left", "right", "--json", "--max-test", "9") == 0
    found = json.loads(capsys.readouterr().out)
    assert {task: one["images"] for task, one in found.items()} == {"left": 9, "right": 9}
    assert call("evaluate", "run", "--tasks", "left") == 0
    assert "70.0" in capsys.readouterr().out
    shutil.copytree(tiny_data / "left", home / "left")
    (home / "left/train/bar-0/000.png").write_bytes(b"a training image, which is not measured")
    assert call("evaluate", "run", "--tasks", "./left") == 0
    assert "70.0" in capsys.readouterr().out
    (home / "left/test/bar-0/000.png").write_bytes(b"no image")
    assert call("evaluate", "run", "--tasks", "./left") == 2
    assert "test/bar-0/000.png" in capsys.readouterr().err


def test_export_and_forget_write_new_folders(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", "run", "--all", "--to", "adapters") == 0
    assert "left: adapters/left" in capsys.readouterr().out
    assert {path.parent.name for path in home.glob("adapters/*/adapter_model.safetensors")} == {
        "left", "middle", "right"
    }  # fmt: skip
    assert call("export", "run", "--task", "left", "--to", "whole", "--merged") == 0
    assert (home / "whole/model.safetensors").is_file()
    assert call("forget", "run", "--task", "left", "--to", "rest") == 0
    assert load_artifact(home / "rest").tasks == ("middle", "right")
    assert call("forget", "rest", "--task", "right", "--to", "turned", "--negate", "0.5") == 0
    assert load_artifact(home / "turned").note["provenance"]["changes"] == [
        "without left", "right negated, scale 0.5"
    ]  # fmt: skip
    assert load_artifact(home / "run").tasks == ("left", "middle", "right")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect"], "artifact"),
        (["inspect", "photos"], "photos: no artifact"),
        (["inspect", "nowhere"], "nowhere: no artifact"),
        (["predict", "run", "photos"], "no --task: expected one of left, middle, right"),
        (["predict", "run", "photos", "--task", "far"], "--task far: expected one of left, middle, right"),
        (["predict", "run", "--task", "left"], "no files: no image to classify"),
        (["predict", "run", "gone.png", "--task", "left"], "gone.png: no such file or folder"),
        (["predict", "run", "photos", "--task", "left", "--top", "0"], "--top 0: expected 1 or more"),
        (["predict", "run", "photos", "--task", "left", "--json", "--csv"], "only one of them"),
        (["predict", "run", "photos", "--task", "left", "--backbone", "vit-mini"], "fits no other"),
        (["predict", "run", "photos", "--task", "left", "--models-root", "gone"], "--models-root: gone is no folder"),
        (["predict", "run", "photos", "--task", "left", "--device", "tpu"], "device 'tpu': expected cpu or cuda"),
        (["evaluate", "run"], "--tasks"),
        (["evaluate", "run", "--tasks", "demo:signs"], "task 'signs': unknown to the artifact"),
        (["evaluate", "run", "--tasks", "left", "--max-test", "-1"], "max_test = -1"),
        (["export", "run", "--task", "left"], "--to"),
        (["export", "run", "--to", "x"], "expected one of left, middle, right"),
        (["export", "run", "--all", "--task", "left", "--to", "x"], "only one of them"),
        (["export", "run", "--task", "left", "--to", "photos"], "photos: there already, and not empty"),
        (["export", "run", "--task", "left", "--to", "photos/0.png/x"], "cannot be made"),
        (["forget", "run", "--task", "far", "--to", "x"], "--task far: expected one of"),
        (["forget", "run", "--task", "left", "--to", "photos"], "photos: there already, and not empty"),
        (["forget", "run", "--task", "left", "--to", "x", "--negate", "-1"], "--negate -1.0: expected more than 0"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert call(*words) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert {path.name for path in home.iterdir()} <= {"run", "photos", "cache"}
