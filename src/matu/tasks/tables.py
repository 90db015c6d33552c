"""Tables of images and labels as the `datasets` library gives them: columns, class names, encoded images."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matu.errors import DataError
from matu.tasks.raw import RawImage, RawSplit, RawTask

if TYPE_CHECKING:
    import datasets

# Looked for in this order where a table's types leave more than one column, or none.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def find_columns(name: str, features: "datasets.Features") -> tuple[str, str]:
    """Image and label column: by type where that decides, else by the usual names."""
    import datasets

    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    labels = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    image = _pick(images, IMAGE_COLUMNS, features)
    label = _pick(labels, LABEL_COLUMNS, features)
    other = next((column for column in LABEL_COLUMNS if column in features), label)
    if len(labels) == 1 and label not in LABEL_COLUMNS and other != label:
        raise DataError(f"task {name!r}: label column {label!r} by its type or {other!r} by its name? rename one")
    for what, found, typed, usual in (
        ("image", image, images, IMAGE_COLUMNS),
        ("label", label, labels, LABEL_COLUMNS),
    ):
        if found is None:
            why = f"{len(typed)} of that type" if typed else "none of that type"
            raise DataError(
                f"task {name!r}: no {what} column among {', '.join(features) or 'no columns'} ({why}); "
                f"name it {' or '.join(map(repr, usual))}"
            )
    assert image is not None
    assert label is not None
    return image, label


def _pick(typed: list[str], usual: tuple[str, ...], features: Iterable[str]) -> str | None:
    if len(typed) == 1:
        return typed[0]
    among = typed or list(features)
    return next((column for column in usual if column in among), None)


def class_names(name: str, features: list[Any], listed: list[str] | None) -> list[str] | None:
    """Class names as the tables or info.json give them; None where only the labels themselves tell."""
    import datasets

    given = [f.names for f in features if isinstance(f, datasets.ClassLabel)]
    given += [listed] if listed else []
    for other in given[1:]:
        if other != given[0]:
            pairs = zip(given[0], other, strict=False)
            first = next((f"{a!r} and {b!r}" for a, b in pairs if a != b), "one is longer")
            raise DataError(
                f"task {name!r}: the splits and info.json must list the same classes in the same order, "
                f"but lists of {len(given[0])} and {len(other)} differ: {first}"
            )
    return list(given[0]) if given else None


def raw_task(
    name: str,
    classes: list[str] | None,
    values: dict[str, list[Any]],
    tables: dict[str, Any],
    columns: tuple[str, str],
) -> RawTask:
    labels, names = _numbered(name, classes, values)
    train, test = (
        RawSplit(labels[split], _Rows(name, split, tables[split], columns[0])) for split in ("train", "test")
    )
    return RawTask(tuple(names), train, test)


def _numbered(
    name: str, classes: list[str] | None, values: dict[str, list[Any]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Labels int64 of each split, and class names: as given, else the distinct values, sorted."""
    for split, column in values.items():
        for row, value in enumerate(column):
            if value is None:
                raise DataError(f"task {name!r}, split {split!r}: row {row} has no label")
            if not isinstance(value, int | str):
                raise DataError(
                    f"task {name!r}, split {split!r}: row {row} has label {value!r}; a whole number or text is needed"
                )
    numbers = classes is not None and all(isinstance(v, int) for column in values.values() for v in column)
    if classes is not None and numbers:
        return {split: np.array(column, np.int64) for split, column in values.items()}, classes
    kinds = {type(v).__name__ for column in values.values() for v in column}
    if len(kinds) > 1:
        raise DataError(f"task {name!r}: labels of several kinds ({', '.join(sorted(kinds))}); one is needed")
    known = classes if classes is not None else sorted({v for column in values.values() for v in column})
    number = {value: i for i, value in enumerate(known)}
    labels = {}
    for split, column in values.items():
        unknown = [v for v in column if v not in number]
        if unknown:
            raise DataError(f"task {name!r}, split {split!r}: label {unknown[0]!r} is none of the {len(known)} classes")
        labels[split] = np.array([number[v] for v in column], np.int64)
    return labels, [str(value) for value in known]


@dataclass(frozen=True)
class _Rows:
    """Streams one split's images, still encoded."""

    task: str
    split: str
    table: Any
    column: str

    def __call__(self) -> Iterator[tuple[str, RawImage]]:
        import datasets

        table = self.table.select_columns([self.column])
        if isinstance(table.features[self.column], datasets.Image):
            table = table.cast_column(self.column, datasets.Image(decode=False))
        for row, cells in enumerate(reading(self.task, self.split, table)):
            cell = cells[self.column]
            if isinstance(cell, dict):
                data, path = cell.get("bytes"), cell.get("path")
            else:
                data, path = cell, None
            shown = f"row {row} ({Path(path).name})" if path else f"row {row}"
            if data is None and path and not isinstance(table, datasets.IterableDataset):
                # Hub datasets of plain image files keep them beside the table. A local table that points
                # elsewhere is not followed.
                data = Path(path)
            yield shown, data if isinstance(data, bytes | Path) else None


def reading(task: str, split: str, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, with whatever goes wrong while reading them named."""
    with quiet():
        try:
            yield from rows
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"task {task!r}, split {split!r}: damaged table ({first_line(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and log lines: what matters of them is in our errors."""
    import datasets

    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
