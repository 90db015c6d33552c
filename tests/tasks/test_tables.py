"""Parquet folders and hub datasets: rows, labels and class names as stored; damage is told with its place."""

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
    problem,
    truncated_png,
    write_image_folder,
    write_parquet,
    write_pets,
)

from matu.tasks.hub import hub_answers

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


def test_labels_of_two_kinds(tmp_path: Path) -> None:
    text = [(png(pixels(i)), name) for i, name in enumerate(["0", "1"])]
    write_parquet(tmp_path / "pets", pet_rows(), text, classes=None)
    assert problem(tmp_path, "pets") == "task 'pets': labels of several kinds (int, str); one is needed"
    halves = [(png(pixels(i)), i / 2) for i in range(4)]
    write_parquet(tmp_path / "halves", halves, halves, classes=None)
    assert "row 0 has label 0.0; a whole number or text is needed" in problem(tmp_path, "halves")


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
    assert problem(tmp_path, "pets") == (
        "task 'pets': the splits and info.json must list the same classes in the same order, "
        "but lists of 2 and 2 differ: 'dog' and 'cow'"
    )
    (folder / "info.json").write_text('{"classes": ["cat", "dog", "cow"]}')
    assert "lists of 2 and 3 differ: one is longer" in problem(tmp_path, "pets")
    (folder / "info.json").write_text("{")
    assert "info.json is not a readable JSON object" in problem(tmp_path, "pets")
    (folder / "info.json").write_text('{"classes": "cat, dog"}')
    assert "'classes' in" in problem(tmp_path, "pets")


def test_one_class_or_repeated_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one", [(png(pixels(1)), 0)], [(png(pixels(1)), 0)], classes=["cat"])
    write_parquet(tmp_path / "unnamed", pet_rows(), pet_rows(), classes=None, info={"classes": ["cat", " "]})
    assert "task 'unnamed': class 1 has no name" in problem(tmp_path, "unnamed")
    assert "task 'one': one class only ('cat'); at least 2 are needed" in problem(tmp_path, "one")
    info = {"classes": ["cat", "cat"]}
    write_parquet(tmp_path / "twice", pet_rows(), pet_rows(), classes=None, info=info)
    assert "class name 'cat' occurs more than once" in problem(tmp_path, "twice")


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
        monkeypatch.setattr("matu.tasks.hub.hub_answers", lambda: True)
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


def test_a_typed_label_column_beside_one_of_the_usual_name_is_asked_about(
    tmp_path: Path, hub: Callable[[object], list[tuple[object, ...]]]
) -> None:
    splits = {split: hub_table(6).rename_column("fine_label", "animal") for split in ("train", "test")}
    hub(splits)
    assert len(load(tmp_path, "hub:someone/pets")[0].train.labels) == 6, "its type decides"
    hub({split: table.add_column("label", list("ababab")) for split, table in splits.items()})
    assert problem(tmp_path, "hub:someone/zoo") == (
        "task 'zoo': label column 'animal' by its type or 'label' by its name? rename one"
    )


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


def test_hub_out_of_reach_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    asked: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=refuse))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    hub_answers.cache_clear()
    message = problem(tmp_path, "hub:someone/pets", "hub:someone/zoo")
    hub_answers.cache_clear()
    assert asked == [(constants.ENDPOINT,)]
    assert message.splitlines() == [
        f"task {name!r}: hub dataset 'someone/{name}' cannot be loaded: "
        f"Couldn't reach 'someone/{name}' on the Hub (OfflineModeIsEnabled)"
        for name in ("pets", "zoo")
    ]
    assert not datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_hub_dataset_through_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of that name in the working directory is what the library takes before it asks the hub.
    write_parquet(tmp_path / "someone" / "pets", pet_rows(6), pet_rows(4, first=50))
    monkeypatch.chdir(tmp_path)
    assert "a folder someone/pets lies here too" in problem(tmp_path, "hub:someone/pets")
    monkeypatch.setattr("matu.tasks.hub._lies_here", lambda _: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (task,) = load(tmp_path, "hub:someone/pets")
    assert (task.classes, task.source) == (("cat", "dog"), "hub:someone/pets")
    assert np.array_equal(task.train.images, [pixels(i) for i in range(6)])
    (again,) = load(tmp_path, "hub:someone/pets")
    assert again.digest == task.digest
    assert len(list((tmp_path / "cache" / "tasks").iterdir())) == 1
