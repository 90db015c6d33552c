"""Tasks from references: found, checked, decoded once, memory-mapped."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from matu.errors import ConfigError, DataError
from matu.tasks.cache import Entry, entry_folder, read_entry, write_entry
from matu.tasks.paper import PREFIX, check_class_count
from matu.tasks.raw import RawTask, Source, check_classes, check_labels
from matu.tasks.sources import find_source
from matu.tasks.suites import resolve
from matu.tasks.task import SPLITS, BadImage, Task
from matu.wire import is_name
from matu.words import counted

T = TypeVar("T")
R = TypeVar("R")

BAD_SHOWN = 5  # bad images named a task


def load_tasks(
    references: Sequence[str],
    *,
    image_size: int,
    data_root: Path | None,
    cache_dir: Path,
    skip_bad_images: bool = False,
    max_train: int = 0,
    max_test: int = 0,
    needed: Collection[str] = SPLITS,
) -> list[Task]:
    """Load tasks in the order of their references; suites are expanded.

    A reference is a suite (`demo-8`), `demo:NAME`, `paper:NAME`, `hub:owner/name[/config][@revision]`, a folder's
    path, or the name of a folder under `data_root`. Images become upright RGB, their central square resized
    (bicubic) to `image_size`. What is decoded is kept in `cache_dir`/tasks and found again by its content.

    Parameters
    ----------
    skip_bad_images : leave out images that cannot be decoded; `Task.bad` names them
    max_train, max_test : keep at most so many images, the classes' shares preserved and at least one image a
        class where that fits, always the same ones; 0 keeps all
    needed : splits in which a bad image stops it; those of the other one are left out

    Raises
    ------
    ConfigError : no reference, or a number out of range
    DataError : everything that is wrong with any of the tasks, a line each
    """
    _check(image_size, max_train, max_test)
    names = resolve(references)
    if not names:
        raise ConfigError("no tasks given: name at least one task or suite")
    limits = (max_train, max_test)
    # Which datasets of the paper are missing is told before the first one is read or fetched.
    paper = [name for name in names if name.startswith(PREFIX)]
    sources = dict(zip(paper, _each(paper, lambda name: find_source(name, data_root)), strict=True))

    def find(reference: str) -> _Found:
        source = sources.get(reference) or find_source(reference, data_root)
        return _find(reference, source, cache_dir, image_size, limits)

    found = _each(names, find)
    _check_names(names, found)
    return _each(found, lambda one: _finish(one, image_size, limits, needed, skip_bad_images))


def find_tasks(references: Sequence[str], data_root: Path | None) -> list[str]:
    """Names of the tasks that references mean, without reading any; DataError for all that are not there."""
    names = resolve(references)
    _each(names, lambda name: find_source(name, data_root))
    return names


@dataclass(frozen=True)
class _Found:
    """A source, its folder in the cache, and what lies there already or else is still to be decoded."""

    source: Source
    folder: Path
    content: Entry | RawTask


def _find(reference: str, source: Source, cache_dir: Path, image_size: int, limits: tuple[int, int]) -> _Found:
    folder = entry_folder(cache_dir, source.content(), image_size, limits)
    entry = read_entry(folder, image_size)
    if entry is not None:
        check_class_count(reference, entry.classes)
        return _Found(source, folder, entry)
    raw = source.open()
    check_class_count(reference, raw.classes)
    check_classes(source.name, raw.classes)
    for split, raw_split in raw.splits.items():
        check_labels(source.name, split, raw_split.labels, raw.classes)
    return _Found(source, folder, raw)


def _finish(
    found: _Found, image_size: int, limits: tuple[int, int], needed: Collection[str], skip_bad_images: bool
) -> Task:
    source, entry = found.source, found.content
    if isinstance(entry, RawTask):
        chosen = {
            split: stratified(raw.labels, limit)
            for (split, raw), limit in zip(entry.splits.items(), limits, strict=True)
        }
        write_entry(found.folder, source.name, entry, image_size, chosen)
        written = read_entry(found.folder, image_size)
        if written is None:
            raise DataError(f"task {source.name!r}: what was just stored in {found.folder} cannot be read back")
        entry = written
    bad = [image for image in entry.bad if image.split in needed]
    if bad and not skip_bad_images:
        raise DataError(_bad_images(source.name, bad))
    if bad:
        _check_left(source.name, entry, needed)
    return Task(source.name, entry.classes, entry.train, entry.test, source.label, entry.digest, entry.bad)


def stratified(labels: np.ndarray, limit: int) -> np.ndarray:
    """Sorted indices of at most `limit` samples (0: all), drawn within each class in proportion to its size.

    Every class keeps one sample at least where `limit` allows it. The draw depends on labels and limit alone.
    """
    if limit == 0 or limit >= len(labels):
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    share = counts / len(labels) * limit
    least = 1 if limit >= len(classes) else 0
    quota = np.maximum(np.floor(share).astype(np.int64), least)
    while quota.sum() > limit:
        quota[np.argmin(np.where(quota > least, share - quota, np.inf))] -= 1
    while quota.sum() < limit:
        quota[np.argmax(share - quota)] += 1
    rng = np.random.default_rng(limit)
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def _each(items: Iterable[T], step: Callable[[T], R]) -> list[R]:
    """Every item's result; if any fail, one DataError with every item's message."""
    results, problems = [], []
    for item in items:
        try:
            results.append(step(item))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return results


def _check(image_size: int, max_train: int, max_test: int) -> None:
    if image_size < 1:
        raise ConfigError(f"image_size = {image_size}: at least 1 pixel is needed")
    for option, value in (("max_train", max_train), ("max_test", max_test)):
        if value < 0:
            raise ConfigError(f"{option} = {value}: a number of images is needed, or 0 for all")


def _check_names(references: Sequence[str], found: Sequence[_Found]) -> None:
    first: dict[str, str] = {}
    for reference, one in zip(references, found, strict=True):
        name = one.source.name
        for what, text in (("name", name), *(("class", text) for text in one.content.classes)):
            if not is_name(text):  # no message could carry it
                raise DataError(f"task {name!r}: {what} {text!r}, expected 1 to 255 bytes of printable text")
        if name in first:
            raise DataError(
                f"two tasks are named {name!r}: {first[name]!r} and {reference!r}; "
                "every task needs a name of its own: leave one out or rename its folder"
            )
        first[name] = reference


def _check_left(name: str, entry: Entry, needed: Collection[str]) -> None:
    """DataError where leaving out the bad images leaves a class without any."""
    for split, kept in zip(SPLITS, (entry.train, entry.test), strict=True):
        if split not in needed:
            continue
        try:
            check_labels(name, split, kept.labels, entry.classes)
        except DataError as error:
            raise DataError(f"{error} without its {counted(len(entry.bad), 'bad image')}") from error


def _bad_images(name: str, bad: Sequence[BadImage]) -> str:
    shown = [f"task {name!r}, split {b.split!r}: {b.name}: {b.reason}" for b in bad[:BAD_SHOWN]]
    if len(bad) > BAD_SHOWN:
        shown.append(f"task {name!r}: {counted(len(bad) - BAD_SHOWN, 'more bad image')}")
    return "\n".join([*shown, f"task {name!r}: repair or remove them, or leave them out with --skip-bad-images"])
