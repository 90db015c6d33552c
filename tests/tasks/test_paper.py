"""The paper's suites: from folders, from the hub, and what is said where a dataset is missing or another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from task_files import load, pixels, png, problem, write_image_folder, write_parquet

from matu.errors import DataError
from matu.tasks import SUITES, load_tasks
from matu.tasks.paper import EIGHT, PAPER, PAPER_8

PAGE = Path(__file__).parents[2] / "docs" / "paper-data.md"
PNGS = [png(pixels(shade, 16)) for shade in range(8)]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matu.tasks.hub.hub_answers", lambda: False)


def write_dataset(root: Path, name: str, classes: int | None = None, images: int = 1) -> None:
    """An image folder with so many classes (the registry's, if not said), `images` of each in both splits."""
    for label in range(classes or PAPER[name].classes or 26):
        for split, shift in (("train", 0), ("test", 1)):
            folder = root / name / split / f"class {label:03}"
            folder.mkdir(parents=True)
            for i in range(images):
                (folder / f"{i}.png").write_bytes(PNGS[(label + shift + i) % len(PNGS)])


# The registry


def test_suites() -> None:
    assert SUITES["paper-8"] == tuple(
        f"paper:{name}" for name in ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
    )
    assert len(set(SUITES["paper-30"])) == len(PAPER) == 30
    assert set(PAPER_8) < set(SUITES["paper-30"])


def test_class_counts_of_the_eight() -> None:
    assert [PAPER[name].classes for name in EIGHT] == [397, 196, 45, 10, 10, 43, 10, 47]
    assert [name for name, dataset in PAPER.items() if dataset.classes is None] == ["emnist"]


def test_every_record_says_where_it_comes_from() -> None:
    for dataset in PAPER.values():
        assert dataset.source
        assert dataset.split
        assert dataset.hub is None or 2 <= len(dataset.hub.split("/")) <= 3
        assert (dataset.train is None) == (dataset.test is None)
    assert PAPER["svhn"].hub == "ufldl-stanford/svhn/cropped_digits"
    assert PAPER["flowers5"].obtain.startswith("kaggle datasets download alxmamaev/flowers-recognition --unzip")
    assert sum(dataset.hub is not None for dataset in PAPER.values()) == 15


def test_the_page_lists_every_dataset() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    listed = {row[0].strip("`"): row for row in rows if row and row[0].startswith("`")}
    assert list(listed) == list(PAPER)
    for name, (_, classes, train, test, source, licence, split) in listed.items():
        dataset = PAPER[name]
        assert classes == str(dataset.classes or "not stated")
        assert (train, test) == tuple("–" if n is None else f"{n:,}" for n in (dataset.train, dataset.test))
        assert source.replace("`", "") == dataset.source
        assert licence == (dataset.licence or "not stated")
        assert split in ("own", "every fifth", "not stated")


# Folders


def test_paper_8_from_folders(tmp_path: Path) -> None:
    for name in EIGHT[:-1]:
        write_dataset(tmp_path, name)
    names = [f"texture {i}" for i in range(47)]
    write_parquet(tmp_path / "dtd", *(2 * [[(PNGS[i % 8], i) for i in range(47)]]), classes=names)
    tasks = load(tmp_path, "paper-8", image_size=32)
    assert tuple(task.name for task in tasks) == EIGHT
    assert [len(task.classes) for task in tasks] == [397, 196, 45, 10, 10, 43, 10, 47]
    assert {task.source for task in tasks} == {"parquet:dtd", *(f"folder:{name}" for name in EIGHT[:-1])}
    assert all(task.train.images.shape == (len(task.classes), 32, 32, 3) for task in tasks)
    assert tasks[0].classes[:2] == ("class 000", "class 001")
    assert tasks[-1].classes == tuple(names)
    again = load(tmp_path, "paper-8", image_size=32)
    assert [task.digest for task in again] == [task.digest for task in tasks]


def test_emnist_may_have_any_number_of_classes(tmp_path: Path) -> None:
    write_dataset(tmp_path, "emnist", 26)
    assert len(load(tmp_path, "paper:emnist")[0].classes) == 26


def test_another_number_of_classes(tmp_path: Path) -> None:
    write_dataset(tmp_path, "sun397", 12)
    write_dataset(tmp_path, "eurosat", 11)
    expected = [
        "task 'sun397': 12 classes found, the paper's has 397",
        "task 'eurosat': 11 classes found, the paper's has 10",
    ]
    assert problem(tmp_path, "paper:sun397", "paper:eurosat").splitlines() == expected
    # A bare name is any folder of that name; what it leaves in the cache does not pass for the paper's dataset.
    assert len(load(tmp_path, "sun397")[0].classes) == 12
    assert problem(tmp_path, "paper:sun397", "paper:eurosat").splitlines() == expected


def test_a_folder_in_neither_form(tmp_path: Path) -> None:
    (tmp_path / "mnist" / "train").mkdir(parents=True)
    assert problem(tmp_path, "paper:mnist").startswith(f"task 'mnist': train/ in {tmp_path}/mnist; expected")


def test_a_folder_here_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "here" / "cats_dogs")
    monkeypatch.chdir(tmp_path / "here")
    assert "no folder cats_dogs under MATU_DATA" in problem(tmp_path, "paper:cats_dogs")


def test_unknown_name(tmp_path: Path) -> None:
    message = problem(tmp_path, "paper:imagenet")
    assert message.startswith("task 'paper:imagenet': no dataset of the paper has that name; known are mnist, cifar10")


# What is missing


def test_everything_missing_is_told_at_once(tmp_path: Path) -> None:
    write_dataset(tmp_path, "beans")
    message = problem(tmp_path, "paper-30")
    blocks = message.split("\ntask ")
    assert [block.removeprefix("task ").split("'")[1] for block in blocks] == [n for n in PAPER if n != "beans"]
    for block in blocks:
        name = block.removeprefix("task ").split("'")[1]
        assert f"no folder {name} under MATU_DATA ({tmp_path})" in block
        assert f"  get it: {PAPER[name].obtain}" in block
        assert f"MATU_DATA/{name}/train/<class>/*.jpg and MATU_DATA/{name}/test/<class>/*.jpg" in block
        assert f"or MATU_DATA/{name}/train.parquet and MATU_DATA/{name}/test.parquet" in block
        assert ("the Hugging Face hub cannot be reached" in block) == (PAPER[name].hub is not None)
    assert "task 'kvasir_v2' (8 classes): " in message
    assert "task 'emnist' (number of classes not stated): " in message


def test_without_a_data_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_tasks(["paper:weather11"], image_size=8, data_root=None, cache_dir=tmp_path)
    assert str(raised.value).splitlines() == [
        "task 'weather11' (11 classes): MATU_DATA is not set",
        "  get it: download it by hand: https://doi.org/10.7910/DVN/M8JQCR (Harvard Dataverse)",
        "  split: the source has none and the paper states none: of each class's files in sorted order every fifth "
        "is test",
        "  put it: MATU_DATA/weather11/train/<class>/*.jpg and MATU_DATA/weather11/test/<class>/*.jpg, "
        "or MATU_DATA/weather11/train.parquet and MATU_DATA/weather11/test.parquet",
    ]


# The hub

Hub = Callable[[dict[str, Any]], list[tuple[object, ...]]]


def table(count: int, image: str = "image", **labels: int) -> datasets.Dataset:
    """Rows with an image, and label columns with so many classes each; the images tell a table of another length."""
    rows = range(count)
    columns = {image: [{"bytes": PNGS[(count + i) % 8], "path": None} for i in rows]}
    columns |= {name: [i % classes for i in rows] for name, classes in labels.items()}
    kinds = {name: datasets.ClassLabel(names=[f"{name} {i}" for i in range(n)]) for name, n in labels.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({image: datasets.Image(), **kinds}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Let the hub answer and hold one dataset; gives back the list of what is asked for."""

    def install(held: dict[str, Any]) -> list[tuple[object, ...]]:
        asked: list[tuple[object, ...]] = []

        def load_dataset(path: str, config: str | None, *, revision: str | None) -> object:
            asked.append((path, config, revision))
            return held

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr("matu.tasks.hub.hub_answers", lambda: True)
        return asked

    return install


def test_hub_split_called_validation(tmp_path: Path, hub: Hub) -> None:
    asked = hub({"train": table(102, label=101), "validation": table(101, label=101)})
    (task,) = load(tmp_path, "paper:food101", image_size=16)
    assert asked == [("ethz/food101", None, None)]
    assert (task.name, task.source, len(task.classes)) == ("food101", "hub:ethz/food101", 101)
    assert (len(task.train.labels), len(task.test.labels)) == (102, 101)


def test_hub_validation_is_not_test_where_there_is_a_test_split(tmp_path: Path, hub: Hub) -> None:
    hub({"train": table(9, labels=3), "validation": table(6, labels=3), "test": table(3, labels=3)})
    (task,) = load(tmp_path, "paper:beans")
    assert task.classes == ("labels 0", "labels 1", "labels 2")
    assert len(task.test.labels) == 3


def test_hub_configuration(tmp_path: Path, hub: Hub) -> None:
    asked = hub({"train": table(10, label=10), "test": table(11, label=10), "extra": table(12, label=10)})
    (task,) = load(tmp_path, "paper:svhn", image_size=16)
    assert asked == [("ufldl-stanford/svhn", "cropped_digits", None)]
    assert (task.name, len(task.train.labels), len(task.test.labels)) == ("svhn", 10, 11)
    assert np.array_equal(task.train.images, [pixels((10 + i) % 8, 16) for i in range(10)])


@pytest.mark.parametrize("fine", ["fine_label", "label"])
def test_hub_fine_labels(tmp_path: Path, hub: Hub, fine: str) -> None:
    hub({split: table(100, "img", **{"coarse_label": 20, fine: 100}) for split in ("train", "test")})
    assert load(tmp_path, "paper:cifar100")[0].classes == tuple(f"{fine} {i}" for i in range(100))


def test_hub_named_columns(tmp_path: Path, hub: Hub) -> None:
    hub({split: table(37, label_cat_dog=2, label=37) for split in ("train", "test")})
    (task,) = load(tmp_path, "paper:oxford_pet")
    assert (task.name, task.classes[36]) == ("oxford_pet", "label 36")
    hub({split: table(37, label_cat_dog=2, breed=37) for split in ("train", "test")})
    assert problem(tmp_path, "paper:oxford_pet") == (
        "task 'oxford_pet': hub dataset 'timm/oxford-iiit-pet' has no column 'label'; "
        "its columns are image, label_cat_dog, breed"
    )


def test_hub_problems(tmp_path: Path, hub: Hub) -> None:
    hub({"train": table(12, label=12), "test": table(12, label=12)})
    assert problem(tmp_path, "paper:sun397") == "task 'sun397': 12 classes found, the paper's has 397"
    hub({"train": table(101, label=101), "test": table(101, label=101)})
    assert problem(tmp_path, "paper:food101") == (
        "task 'food101': hub dataset 'ethz/food101' has 2 splits ('train', 'test'); 'train' and 'validation' are needed"
    )


def test_a_folder_comes_before_the_hub(tmp_path: Path, hub: Hub) -> None:
    asked = hub({})
    write_dataset(tmp_path, "beans")
    assert load(tmp_path, "paper:beans")[0].source == "folder:beans"
    assert asked == []


def test_nothing_is_fetched_while_a_dataset_is_missing(tmp_path: Path, hub: Hub) -> None:
    asked = hub({})
    assert problem(tmp_path, "paper:beans", "paper:weather11").startswith("task 'weather11' (11 classes): no folder")
    assert asked == []


def test_what_the_library_holds_is_taken_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of that name in the working directory stands for the library's cache.
    rows = [(PNGS[i], i) for i in range(3)]
    write_parquet(tmp_path / "AI-Lab-Makerere" / "beans", rows, rows, classes=["a", "b", "c"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr("matu.tasks.hub._lies_here", lambda _: False)
    assert load(tmp_path, "paper:beans")[0].source == "hub:AI-Lab-Makerere/beans"
