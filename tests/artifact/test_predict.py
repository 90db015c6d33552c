"""Images classified by an artifact, and its accuracy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artifact_cases import leave_artifact
from matu.artifact import Artifact, load_artifact
from matu.artifact.predict import evaluate, find_images, predict
from matu.errors import ConfigError, DataError
from matu.training import Trainer
from world import images_of, tiny_task


@pytest.fixture(scope="module")
def artifact(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifact")
    leave_artifact(folder, str(tiny_vit))
    return load_artifact(folder)


@pytest.fixture(scope="module")
def trainer(artifact: Artifact, tiny_vit: Path) -> Trainer:
    return artifact.trainer(models_root=tiny_vit.parent)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seventy images in two folders, a broken one, and a text."""
    (tmp_path / "deep/er").mkdir(parents=True)
    for i, pixels in enumerate(np.concatenate([images_of(label, 35, 7) for label in (0, 1)])):
        Image.fromarray(pixels).save(tmp_path / ("deep/er" if i % 2 else "deep") / f"{i:02d}.png")
    (tmp_path / "deep/10.png").write_bytes(b"no image")
    (tmp_path / "deep/notes.txt").write_text("not one either")
    return tmp_path / "deep"


def test_folders_are_searched_and_files_taken_as_they_are(photos: Path) -> None:
    found = find_images([photos, photos / "notes.txt"])
    assert len(found) == 71
    assert found[-1] == photos / "notes.txt"
    assert found[:-1] == sorted(photos.rglob("*.png"))
    with pytest.raises(DataError, match="nowhere: no such file"):
        find_images([photos, photos / "nowhere"])
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image"):
        find_images([photos / "empty"])


def test_probabilities_are_those_of_the_tasks_own_logits(artifact: Artifact, trainer: Trainer, photos: Path) -> None:
    """In batches, with a broken image among them."""
    images = find_images([photos])
    found = list(predict(artifact, trainer, "right", images, top=9))
    assert [one.image for one in found] == images
    assert [one.image.name for one in found if one.problem] == ["10.png"]
    weights = artifact.weights("right")
    trainer.model.load(weights.vector)
    for one in found:
        if one.problem:
            assert one.top == ()
            continue
        pixels = np.asarray(Image.open(one.image))[None]
        expected = trainer.predict_as_is(weights.head, pixels).softmax(dim=1)[0]
        assert one.label == artifact.classes("right")[int(expected.argmax())]
        assert [share for _, share in one.top] == pytest.approx(
            expected.sort(descending=True).values.tolist(), abs=1e-5
        )
        assert dict(one.top) == pytest.approx(
            dict(zip(artifact.classes("right"), expected.tolist(), strict=True)), abs=1e-5
        )


def test_nothing_but_broken_images_is_told(artifact: Artifact, trainer: Trainer, photos: Path) -> None:
    (one,) = predict(artifact, trainer, "left", [photos / "10.png"])
    assert one.problem == "not an image file that can be read"


def test_accuracy_is_that_of_the_trainer_beside_what_the_run_stated(artifact: Artifact, trainer: Trainer) -> None:
    tasks = [tiny_task("left"), tiny_task("right", classes=4)]
    found = evaluate(artifact, trainer, tasks)
    assert {name: one["stated"] for name, one in found.items()} == {"left": 0.7, "right": None}
    for task in tasks:
        assert found[task.name]["images"] == len(task.test.labels)
        assert found[task.name]["accuracy"] == trainer.accuracy(artifact.weights(task.name), task.test)


def test_other_tasks_and_other_classes_are_refused_together(artifact: Artifact, trainer: Trainer) -> None:
    renamed = dataclasses.replace(tiny_task("middle"), classes=("bar-0", "bar-2", "bar-1"))
    with pytest.raises(DataError) as raised:
        evaluate(artifact, trainer, [tiny_task("far"), tiny_task("left", classes=2), renamed])
    assert str(raised.value).splitlines() == [
        "task 'far': unknown to the artifact, which has left, middle, right",
        "task 'left': 2 classes here, 3 in the artifact",
        "task 'middle': class 1 is 'bar-2' here, 'bar-1' in the artifact",
    ]


def test_without_a_name_only_a_single_task_is_meant(artifact: Artifact, tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), classes={"left": 3})
    assert load_artifact(tmp_path).one_of("") == "left"
    assert artifact.one_of("right") == "right"
    for name in ("", "far"):
        with pytest.raises(ConfigError, match="expected one of left, middle, right"):
            artifact.one_of(name)


def test_linearised_features_stay_linearised(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), method="ntk_fedavg")
    artifact = load_artifact(tmp_path)
    trainer, images = artifact.trainer(models_root=tiny_vit.parent), images_of(0, 2, 0)
    trainer.model.load(artifact.vector("left"))
    linear = trainer.model.linearised_features(torch.from_numpy(images))
    torch.testing.assert_close(trainer.features(images), linear)
    assert not torch.allclose(trainer.model.features(torch.from_numpy(images)), linear)
