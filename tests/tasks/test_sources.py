"""Tasks in every form are found, checked and loaded; what is wrong is said with place and remedy."""

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from task_files import (
    load,
    pet_rows,
    pixels,
    png,
    truncated_png,
    write_image_folder,
    write_parquet,
    write_pets,
)

from matu.errors import ConfigError, DataError
from matu.tasks import SUITES, load_tasks, resolve
from matu.tasks.loading import stratified


def problem(tmp_path: Path, *references: str, **settings: object) -> str:
    with pytest.raises(DataError) as raised:
        load(tmp_path, *references, **settings)
    return str(raised.value)


# Parquet folders


def test_parquet_folder_keeps_rows_and_class_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", pet_rows(6), pet_rows(4, first=50), classes=("dog", "cat"))
    (task,) = load(tmp_path, "pets")
    assert (task.name, task.classes, task.source, task.skipped) == ("pets", ("dog", "cat"), "parquet:pets", 0)
    assert task.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert task.train.labels.dtype == np.int64
    assert np.array_equal(task.train.images, [pixels(i) for i in range(6)])
    assert np.array_equal(task.test.images, [pixels(50 + i) for i in range(4)])
    assert not task.train.images.flags.writeable
    assert not task.train.labels.flags.writeable


def test_classes_from_info_json_for_a_plain_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", pet_rows(4), pet_rows(2), classes=None, info={"classes": ["tabby", "pug"]})
    (task,) = load(tmp_path, "pets")
    assert task.classes == ("tabby", "pug")
    assert np.array_equal(task.test.images, [pixels(0), pixels(1)])


def test_text_labels_become_sorted_classes(tmp_path: Path) -> None:
    rows = [(png(pixels(i)), name) for i, name in enumerate(["pug", "ant", "pug", "cow"])]
    write_parquet(tmp_path / "pets", rows, rows, classes=None)
    (task,) = load(tmp_path, "pets")
    assert task.classes == ("ant", "cow", "pug")
    assert task.train.labels.tolist() == [2, 0, 2, 1]


def test_number_labels_without_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [(png(pixels(i)), number) for i, number in enumerate([10, 9, 10])]
    write_parquet(tmp_path / "pets", rows, rows, classes=None)
    (task,) = load(tmp_path, "pets")
    assert task.classes == ("9", "10")
    assert task.train.labels.tolist() == [1, 0, 1]


def test_other_column_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "typed", pet_rows(), pet_rows(), columns=("photo", "kind"))
    write_parquet(tmp_path / "usual", pet_rows(), pet_rows(), classes=None, columns=("img", "fine_label"))
    typed, usual = load(tmp_path, "typed", "usual")
    assert typed.classes == ("cat", "dog")
    assert usual.classes == ("0", "1")
    write_parquet(tmp_path / "odd", pet_rows(), pet_rows(), classes=None, columns=("photo", "kind"))
    assert problem(tmp_path, "odd") == (
        "task 'odd': no image column among photo, kind (none of that type); name it 'image' or 'img'"
    )


def test_folder_with_glob_characters(tmp_path: Path) -> None:
    (task,) = load(tmp_path, str(write_pets(tmp_path / "a[1]*" / "my pets?").absolute()))
    assert task.name == "my pets?"


Rows = list[tuple[bytes | None, object]]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], "split 'train': no images"),
        ([(png(pixels(1)), 0)], "split 'train': no images of class 'dog'"),
        (
            [*pet_rows(4), (png(pixels(1)), 2)],
            "split 'train': row 4 has label 2; the 2 classes are numbered 0 to 1",
        ),
        ([*pet_rows(4), (png(pixels(1)), -1)], "row 4 has label -1"),
        ([*pet_rows(4), (png(pixels(1)), None)], "split 'train': row 4 has no label"),
        ([*pet_rows(4), (truncated_png(), 1)], "split 'train': row 4 (4.png): image file is truncated"),
        ([*pet_rows(4), (b"text", 1)], "split 'train': row 4 (4.png): not an image file that can be read"),
        ([*pet_rows(4), (None, 1)], "split 'train': row 4: no image"),
    ],
)
def test_bad_rows(tmp_path: Path, train: Rows, said: str) -> None:
    write_parquet(tmp_path / "pets", train, pet_rows(2))
    message = problem(tmp_path, "pets")
    assert message.startswith("task 'pets'")
    assert said in message


@pytest.mark.parametrize("keep", [0, 10, 600, -8])
def test_corrupt_parquet(tmp_path: Path, keep: int) -> None:
    file = write_pets(tmp_path / "pets") / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    message = problem(tmp_path, "pets")
    assert message.startswith("task 'pets', split 'train'")
    assert "train.parquet is not a readable parquet file" in message


def test_damage_inside_a_parquet_file(tmp_path: Path) -> None:
    file = write_pets(tmp_path / "pets") / "train.parquet"
    data = bytearray(file.read_bytes())
    data[4:60] = bytes(56)  # the first page's header; the footer stays whole
    file.write_bytes(bytes(data))
    assert problem(tmp_path, "pets").startswith("task 'pets', split 'train': damaged table (")


def test_no_connection_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_pets(tmp_path / "pets")
    write_image_folder(tmp_path / "zoo")
    load(tmp_path, "pets", "zoo")
    assert not asked


def test_nothing_is_printed_about_a_corrupt_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (write_pets(tmp_path / "pets") / "test.parquet").write_bytes(b"PAR1")
    problem(tmp_path, "pets")
    assert capfd.readouterr() == ("", "")


def test_class_lists_that_contradict(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "pets", pet_rows(), pet_rows(), info={"classes": ["cat", "cow"]})
    assert "must list the same classes; 2 and 2 found that differ, first 'dog' and 'cow'" in problem(tmp_path, "pets")
    (folder / "info.json").write_text("{")
    assert "info.json is no readable JSON object" in problem(tmp_path, "pets")
    (folder / "info.json").write_text('{"classes": "cat, dog"}')
    assert "'classes' in" in problem(tmp_path, "pets")


def test_one_class_or_repeated_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one", [(png(pixels(1)), 0)], [(png(pixels(1)), 0)], classes=["cat"])
    assert "task 'one': one class only ('cat'); at least 2 are needed" in problem(tmp_path, "one")
    info = {"classes": ["cat", "cat"]}
    write_parquet(tmp_path / "twice", pet_rows(), pet_rows(), classes=None, info=info)
    assert "class name 'cat' occurs more than once" in problem(tmp_path, "twice")


# Image folders


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
        "task 'pets': 2 files are no images in a class folder and are ignored, e.g. train/cat/notes.txt"
    ]
    assert len(more.train.labels) == len(clean.train.labels) + 1


def test_class_folders_that_differ(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", ("ant", "cat", "dog"))
    (folder / "test" / "dog").rename(folder / "test" / "god")
    assert problem(tmp_path, "pets").startswith(
        "task 'pets': class 'dog' in train/ but not in test/; class 'god' in test/ but not in train/; "
        "both need the same class folders"
    )


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
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(task.train.images[3:], [pixels(10), pixels(12)])
    assert problem(tmp_path, "pets") == message  # the cached entry forgets nothing


def test_skipping_must_leave_images_of_every_class(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets")
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(b"x")
    message = problem(tmp_path, "pets", skip_bad_images=True)
    assert message == "task 'pets', split 'train': no images of class 'dog' once 2 bad images are left out"


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


# References


def test_missing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "expected train.parquet + test.parquet, or train/<class>/ and test/<class>/"
    assert problem(tmp_path, "svhn") == f"task 'svhn': no folder svhn under MATU_DATA ({tmp_path}); {expected}"
    assert problem(tmp_path, "./svhn") == (
        "task './svhn': no such folder; expected one with train.parquet + test.parquet, "
        "or train/<class>/ and test/<class>/"
    )
    with pytest.raises(DataError, match="MATU_DATA is not set"):
        load_tasks(["svhn"], image_size=8, data_root=None, cache_dir=tmp_path / "cache")
    (tmp_path / "svhn" / "train").mkdir(parents=True)
    assert problem(tmp_path, "svhn") == f"task 'svhn': train/ in {tmp_path}/svhn; {expected}"


def test_bare_name_prefers_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pets(tmp_path / "data" / "pets")
    write_image_folder(tmp_path / "here" / "pets")
    monkeypatch.chdir(tmp_path / "here")
    sources = [load(tmp_path, "pets", data_root=root)[0].source for root in (tmp_path / "data", None)]
    assert sources == ["parquet:pets", "folder:pets"]
    assert load(tmp_path, "./pets", data_root=tmp_path / "data")[0].source == "folder:pets"


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    write_image_folder(tmp_path / "other" / "pets")
    message = problem(tmp_path, "pets", f"{tmp_path}/other/pets")
    assert message.startswith(f"two tasks are named 'pets': 'pets' and '{tmp_path}/other/pets'")


def test_all_problems_of_all_tasks_come_together(tmp_path: Path) -> None:
    write_pets(tmp_path / "good")
    write_parquet(tmp_path / "empty", [], pet_rows(2))
    lines = problem(tmp_path, "absent", "good", "empty", "hub:a/b/c/d").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "task 'absent'",
        "task 'empty', split 'train'",
        "task 'hub",
    ]
    write_parquet(tmp_path / "bad1", [*pet_rows(), (b"", 1)], pet_rows())
    write_parquet(tmp_path / "bad2", [*pet_rows(), (b"", 1)], pet_rows())
    message = problem(tmp_path, "bad1", "bad2")
    assert "task 'bad1', split 'train': row 6" in message
    assert "task 'bad2', split 'train': row 6" in message


def test_results_name_no_path(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    write_image_folder(tmp_path / "zoo")
    for task in load(tmp_path, "pets", f"{tmp_path}/zoo"):
        assert str(tmp_path) not in json.dumps([task.name, task.source, task.digest, task.classes])


def test_settings_out_of_range(tmp_path: Path) -> None:
    for settings in ({"image_size": 0}, {"max_train": -1}, {"max_test": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            load(tmp_path, "pets", **settings)
    with pytest.raises(ConfigError, match="no tasks given"):
        load(tmp_path)


# Demo tasks and suites


def test_demo_task_at_two_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matu.tasks.sources as sources

    def render(name: str, *, train: int, test: int, seed: int) -> SimpleNamespace:
        images = np.stack([pixels(i, 32) for i in range(6)])
        labels = np.array([0, 1, 2, 0, 1, 2])
        return SimpleNamespace(
            name=name,
            classes=("a", "b", "c"),
            train_images=images,
            train_labels=labels,
            test_images=images[:3],
            test_labels=labels[:3],
        )

    monkeypatch.setattr(sources, "render_task", render)
    (task,) = load(tmp_path, "demo:signs", image_size=32)
    assert (task.name, task.source, task.classes) == ("signs", "demo:signs", ("a", "b", "c"))
    assert np.array_equal(task.train.images[4], pixels(4, 32))
    (large,) = load(tmp_path, "demo:signs", image_size=64)
    assert large.train.images.shape == (6, 64, 64, 3)
    assert large.digest != task.digest


def test_unknown_demo_task(tmp_path: Path) -> None:
    assert "unknown task 'nope'" in problem(tmp_path, "demo:nope")


def test_suites() -> None:
    assert [len(SUITES[name]) for name in ("demo-8", "real-8", "real-22")] == [8, 8, 22]
    assert len(set(SUITES["real-22"])) == 22
    assert resolve(["./x", "demo-8", "y"]) == ["./x", *SUITES["demo-8"], "y"]
    assert all(reference.startswith("demo:") for reference in SUITES["demo-8"])


# Hub


def hub_table(count: int, first: int = 0, **more: list[int]) -> datasets.Dataset:
    rows = pet_rows(count, first)
    features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog"])}
    features |= {name: datasets.ClassLabel(names=["pet", "wild"]) for name in more}
    columns = {
        "img": [{"bytes": d, "path": None} for d, _ in rows],
        "fine_label": [y for _, y in rows],
        **more,
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[tuple[object, ...]]]:
    """Let the hub hold one dataset, or fail with an error; gives back the list of what is asked for."""

    def install(held: object) -> list[tuple[object, ...]]:
        asked: list[tuple[object, ...]] = []

        def load_dataset(path: str, config: str | None, *, revision: str | None) -> object:
            asked.append((path, config, revision))
            if isinstance(held, Exception):
                raise held
            return held

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return install


def test_hub_dataset(tmp_path: Path, hub: Callable[[object], list[tuple[object, ...]]]) -> None:
    held = {"train": hub_table(6, coarse_label=[0] * 6), "validation": hub_table(4, 50, coarse_label=[1] * 4)}
    asked = hub(held)
    (task,) = load(tmp_path, "hub:someone/pets/small@v2")
    assert asked == [("someone/pets", "small", "v2")]
    assert (task.name, task.source) == ("pets", "hub:someone/pets/small@v2")
    assert task.classes == ("cat", "dog")
    assert np.array_equal(task.test.images, [pixels(50 + i) for i in range(4)])


def test_hub_prefers_test_over_validation(tmp_path: Path, hub: Callable[[object], list[tuple[object, ...]]]) -> None:
    hub({"train": hub_table(6), "validation": hub_table(4), "test": hub_table(2)})
    assert len(load(tmp_path, "hub:someone/pets")[0].test.labels) == 2


def test_hub_problems(tmp_path: Path, hub: Callable[[object], list[tuple[object, ...]]]) -> None:
    hub({"train": hub_table(6), "extra": hub_table(6)})
    assert problem(tmp_path, "hub:someone/pets") == (
        "task 'pets': hub dataset 'someone/pets' has 2 splits ('train', 'extra'); "
        "'train' and 'test' (or 'validation') are needed"
    )
    hub(ConnectionError("Couldn't reach 'someone/pets'\nlong trace"))
    assert problem(tmp_path, "hub:someone/pets") == (
        "task 'pets': hub dataset 'someone/pets' cannot be loaded: Couldn't reach 'someone/pets'"
    )


# Subsets


def test_subset_keeps_the_shares_of_classes() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    assert np.bincount(labels[stratified(labels, 10)]).tolist() == [6, 3, 1]
    assert np.bincount(labels[stratified(labels, 3)]).tolist() == [1, 1, 1]
    assert len(stratified(labels, 2)) == 2
    for limit in (0, 100, 500):
        assert stratified(labels, limit).tolist() == list(range(100))
    for limit in range(3, 100):
        chosen = stratified(labels, limit)
        assert len(np.unique(chosen)) == limit
        assert np.bincount(labels[chosen], minlength=3).min() >= 1
        assert np.abs(np.bincount(labels[chosen]) - limit * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_subset_is_loaded_and_repeatable(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets", pet_rows(20), pet_rows(8, first=50))
    (whole,) = load(tmp_path, "pets")
    (part,) = load(tmp_path, "pets", max_train=6, max_test=4)
    assert np.bincount(part.train.labels).tolist() == [3, 3]
    assert np.bincount(part.test.labels).tolist() == [2, 2]
    chosen = stratified(whole.train.labels, 6)
    assert np.array_equal(part.train.images, whole.train.images[chosen])
    assert part.digest != whole.digest
    assert load(tmp_path, "pets", max_train=6, max_test=4, cache_dir=tmp_path / "c2")[0].digest == part.digest
