"""References lead to their tasks; problems are told together; subsets keep the shares of classes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from task_files import (
    load,
    pet_rows,
    pixels,
    problem,
    write_image_folder,
    write_parquet,
    write_pets,
)

from matu.errors import ConfigError, DataError
from matu.tasks import SUITES, load_tasks, resolve
from matu.tasks.loading import stratified

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


def test_a_folder_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "notes").mkdir(parents=True)
    neither = f"task 'home': {home} holds neither train/ and test/ nor train.parquet and test.parquet; "
    monkeypatch.chdir(home)
    expected = "expected train.parquet + test.parquet, or train/<class>/ and test/<class>/"
    assert problem(tmp_path, ".") == neither + expected
    write_pets(home / "pets")
    assert problem(tmp_path, ".") == f"{neither}its folder pets looks like a task; name that"
    write_image_folder(home / "zoo")
    (home / "half" / "train").mkdir(parents=True)
    assert problem(tmp_path, str(home)) == f"{neither}its folders pets, zoo look like tasks; name those"


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
