"""Image folders: sorted classes, clutter ignored, bad images named or counted."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from task_files import load, pet_rows, pixels, png, problem, truncated_png, write_image_folder, write_parquet


def test_image_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "my" / "flowers", ("tulip", "Rose", "10", "9"))
    (task,) = load(tmp_path, f"{tmp_path}/my/flowers/")
    assert (task.name, task.source) == ("flowers", "folder:flowers")
    assert task.classes == ("10", "9", "Rose", "tulip")
    assert task.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.array_equal(task.train.images[6], pixels(0))  # tulip was written first
    assert np.array_equal(task.test.images[5], pixels(111))


def test_other_files_are_ignored_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_image_folder(tmp_path / "pets")
    for hidden in (".DS_Store", "train/.DS_Store", "train/cat/._0.png", "train/cat/Thumbs.db"):
        (folder / hidden).write_bytes(b"x")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    with caplog.at_level(logging.WARNING):
        (clean,) = load(tmp_path, "pets")
    assert not caplog.records
    (folder / "train" / "cat" / "notes.txt").write_bytes(b"x")
    (folder / "train" / "cat" / "more").mkdir()
    (folder / "train" / "cat" / "more" / "UPPER.PNG").write_bytes(png(pixels(7)))
    (folder / "test" / "stray.png").write_bytes(png(pixels(8)))
    with caplog.at_level(logging.WARNING):
        (more,) = load(tmp_path, "pets")
    assert [r.getMessage() for r in caplog.records] == [
        "task 'pets': 2 files ignored (no image in a class folder, or a link to another folder), e.g. "
        "train/cat/notes.txt"
    ]
    assert len(more.train.labels) == len(clean.train.labels) + 1
    (folder / "test" / "stray.png").unlink()
    (folder / "train" / "cat" / "notes.txt").unlink()
    (folder / "train" / "dog" / "linked").symlink_to(folder / "train" / "cat" / "more")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(tmp_path, "pets")
    assert caplog.messages == [
        "task 'pets': 1 file ignored (no image in a class folder, or a link to another folder), e.g. train/dog/linked"
    ]


def test_class_folders_that_differ(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", ("ant", "cat", "dog"))
    (folder / "test" / "dog").rename(folder / "test" / "god")
    assert problem(tmp_path, "pets").startswith(
        "task 'pets': class 'dog' in train/ but not in test/; class 'god' in test/ but not in train/; "
        "both need the same class folders"
    )


def test_a_class_without_images_is_told_whatever_the_cache_holds(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", ("ant", "cat"))
    load(tmp_path, "pets")
    for split in ("train", "test"):
        (folder / split / "dog").mkdir()
    assert "no images of class 'dog'" in problem(tmp_path, "pets")


@pytest.mark.parametrize(("task", "kind"), [("mes\u00a0fleurs", "cat"), ("pets", "c\u200bat")])
def test_names_that_no_message_can_carry_are_told(tmp_path: Path, task: str, kind: str) -> None:
    write_image_folder(tmp_path / task, ("ant", kind))
    wrong = f"class {kind!r}" if task == "pets" else f"name {task!r}"
    for _ in range(2):  # from the folder, then perhaps from the cache
        assert problem(tmp_path, task) == f"task {task!r}: {wrong}, expected 1 to 255 bytes of printable text"


def test_class_folder_without_images(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", ("ant", "cat", "dog"))
    for file in (folder / "test" / "cat").iterdir():
        file.unlink()
    assert problem(tmp_path, "pets") == "task 'pets', split 'test': no images of class 'cat'"


def test_bad_images_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", each=3)
    (folder / "train" / "dog" / "1.png").write_bytes(truncated_png())
    (folder / "test" / "cat" / "empty.jpg").write_bytes(b"")
    message = problem(tmp_path, "pets")
    assert "task 'pets', split 'train': train/dog/1.png: image file is truncated" in message
    assert "task 'pets', split 'test': test/cat/empty.jpg: not an image" in message
    assert "--skip-bad-images" in message
    (task,) = load(tmp_path, "pets", skip_bad_images=True)
    assert task.skipped == 2
    assert task.left_out == "2 images could not be decoded and left out: train/dog/1.png, test/cat/empty.jpg"
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(task.train.images[3:], [pixels(10), pixels(12)])
    assert problem(tmp_path, "pets") == message  # the cached entry forgets nothing


def test_skipping_must_leave_images_of_every_class(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets")
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(b"x")
    message = problem(tmp_path, "pets", skip_bad_images=True)
    assert message == "task 'pets', split 'train': no images of class 'dog' without its 2 bad images"
    (task,) = load(tmp_path, "pets", needed=("test",))
    assert len(task.test.labels) == 4
    (folder / "test" / "cat" / "0.png").write_bytes(b"x")
    for needed in (("train", "test"), ("test",)):
        assert "test/cat/0.png" in problem(tmp_path, "pets", needed=needed)
    assert "train/dog" not in problem(tmp_path, "pets", needed=("test",))


def test_many_bad_images_are_summed_up(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", [*pet_rows(4), *[(b"x", 0)] * 9], pet_rows(2))
    lines = problem(tmp_path, "pets").splitlines()
    assert len(lines) == 7
    assert lines[5] == "task 'pets': 4 more bad images"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    file = write_image_folder(tmp_path / "pets") / "train" / "cat" / "0.png"
    file.chmod(0)
    assert f"{file} cannot be read (Permission denied)" in problem(tmp_path, "pets")


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "pets")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    message = problem(tmp_path, "pets")
    assert message.startswith("task 'pets', split 'train': ")
    assert message.endswith("pets/train cannot be read (Permission denied)")
