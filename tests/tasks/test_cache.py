"""The cache gives back what was decoded, notices damage, and never keeps half an entry."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from task_files import load, pet_rows, pixels, png, write_image_folder, write_parquet, write_pets

from matu.errors import DataError
from matu.tasks import cache, default_cache_dir
from matu.tasks.task import Task


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts, in its first place, the images decoded from now on."""
    count = [0]
    real = cache.decode

    def counting(data: bytes | Path, size: int) -> np.ndarray:
        count[0] += 1
        return real(data, size)

    monkeypatch.setattr(cache, "decode", counting)
    return count


def entry(tmp_path: Path) -> Path:
    (only,) = (tmp_path / "cache" / "tasks").iterdir()
    return only


def same(a: Task, b: Task) -> bool:
    return a.digest == b.digest and np.array_equal(a.train.images, b.train.images) and a.classes == b.classes


def test_second_load_decodes_nothing(tmp_path: Path, decoded: list[int]) -> None:
    write_pets(tmp_path / "pets")
    (first,) = load(tmp_path, "pets")
    assert decoded == [10]
    (second,) = load(tmp_path, "pets")
    assert decoded == [10]
    assert same(first, second)


def test_entry_follows_content_not_place(tmp_path: Path, decoded: list[int]) -> None:
    folder = write_image_folder(tmp_path / "pets")
    (first,) = load(tmp_path, "pets")
    folder.rename(tmp_path / "zoo")
    (moved,) = load(tmp_path, "zoo")
    assert decoded == [8]
    assert (moved.name, moved.source, moved.digest) == ("zoo", "folder:zoo", first.digest)
    (tmp_path / "zoo" / "train" / "cat" / "0.png").write_bytes(png(pixels(77)))
    (changed,) = load(tmp_path, "zoo")
    assert decoded == [16]
    assert np.array_equal(changed.train.images[0], pixels(77))
    assert changed.digest != first.digest


def test_class_names_are_content(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets")
    (first,) = load(tmp_path, "pets")
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "cow")
    (renamed,) = load(tmp_path, "pets")
    assert renamed.classes == ("cow", "dog")
    assert renamed.digest != first.digest


def test_a_disk_that_fails_once_makes_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "pets")
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "0.png":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as once:
        once.setattr(Path, "read_bytes", fail)
        with pytest.raises(DataError, match=r"0\.png cannot be read \(Input/output error\)"):
            load(tmp_path, "pets", skip_bad_images=True)
    (task,) = load(tmp_path, "pets")
    assert not task.bad


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_others_may_read_the_cache(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "pets")
    load(tmp_path, "pets")
    assert entry(tmp_path).stat().st_mode & 0o777 == 0o755


def test_other_size_is_another_entry(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    assert load(tmp_path, "pets")[0].digest != load(tmp_path, "pets", image_size=16)[0].digest


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [cut, flip, empty, pickled, Path.unlink])
@pytest.mark.parametrize("file", ["meta.json", "train_images.npy", "train_labels.npy", "test_images.npy"])
def test_damaged_entry_is_rebuilt(
    tmp_path: Path, decoded: list[int], file: str, damage: Callable[[Path], None]
) -> None:
    write_pets(tmp_path / "pets")
    digest = load(tmp_path, "pets")[0].digest
    damage(entry(tmp_path) / file)
    (again,) = load(tmp_path, "pets")
    assert decoded == [20]
    assert again.digest == digest
    assert np.array_equal(again.train.images, [pixels(i) for i in range(6)])
    assert sorted(p.name for p in entry(tmp_path).iterdir()) == [
        "meta.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


@pytest.mark.parametrize("foreign", ["folder", "file"])
def test_foreign_entry_is_replaced(tmp_path: Path, foreign: str) -> None:
    write_pets(tmp_path / "pets")
    (first,) = load(tmp_path, "pets")
    place = entry(tmp_path)
    place.rename(tmp_path / "kept")
    if foreign == "file":
        place.write_bytes(b"x")
    else:
        place.mkdir()
        (place / "meta.json").write_text("[]")
    (again,) = load(tmp_path, "pets")
    assert same(first, again)
    assert place == entry(tmp_path)


def fail_writing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the disk fail after the training images."""
    real = cache._write_split

    def write(work: Path, split: str, *rest: object) -> object:
        if split == "test":
            raise error
        return real(work, split, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_write_split", write)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_pets(tmp_path / "pets")
    fail_writing(monkeypatch, OSError(code, "full"))
    with pytest.raises(DataError, match=r"task 'pets': cannot be stored in .*no space left, .* MB needed"):
        load(tmp_path, "pets")
    assert not list((tmp_path / "cache" / "tasks").iterdir())


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pets(tmp_path / "pets")
    fail_writing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, "pets")
    assert not list((tmp_path / "cache" / "tasks").iterdir())


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"task 'pets': cannot be stored in .*set MATU_CACHE to a writable folder"):
        load(tmp_path, "pets")


def test_what_killed_processes_left_is_removed_in_time(tmp_path: Path) -> None:
    write_pets(tmp_path / "pets")
    old, fresh = (tmp_path / "cache" / "tasks" / f".unfinished-{age}" for age in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    load(tmp_path, "pets")
    assert not old.exists()
    assert fresh.exists()


def test_writers_at_the_same_moment_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "pets", pet_rows(6), pet_rows(4))
    both = threading.Barrier(3, timeout=30)
    publish = cache._publish

    def together(work: Path, folder: Path, image_size: int) -> None:
        both.wait()  # all have written, none has published
        publish(work, folder, image_size)

    monkeypatch.setattr(cache, "_publish", together)
    loaded: list[Task] = []
    threads = [threading.Thread(target=lambda: loaded.extend(load(tmp_path, "pets"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 3
    assert len({task.digest for task in loaded}) == 1
    assert entry(tmp_path)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MATU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "matu"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/c")
    assert default_cache_dir() == Path("/var/c/matu")
    monkeypatch.setenv("MATU_CACHE", "/mnt/d")
    assert default_cache_dir() == Path("/mnt/d")
