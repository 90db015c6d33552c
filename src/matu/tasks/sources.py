"""From a task reference to its source: looked up, named, nothing read yet."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matu.errors import DataError
from matu.tasks.demo import RENDERER_VERSION, render_task
from matu.tasks.folders import ImageFolder
from matu.tasks.hub import HubDataset
from matu.tasks.paper import PaperDataset, dataset_of, missing
from matu.tasks.parquet import ParquetFolder
from matu.tasks.raw import RawImage, RawSplit, RawTask, Source
from matu.tasks.task import SPLITS

DEMO_TRAIN, DEMO_TEST, DEMO_SEED = 600, 300, 0
NAMED = 8  # folders named in a hint
EXPECTED = "train.parquet + test.parquet, or train/<class>/ and test/<class>/"


@dataclass(frozen=True)
class DemoTask:
    """One of the tasks that the package renders itself."""

    name: str

    @property
    def label(self) -> str:
        return f"demo:{self.name}"

    def content(self) -> dict[str, object]:
        counts = [DEMO_TRAIN, DEMO_TEST]
        return {
            "kind": "demo",
            "name": self.name,
            "seed": DEMO_SEED,
            "counts": counts,
            "renderer": RENDERER_VERSION,
        }

    def open(self) -> RawTask:
        drawn = render_task(self.name, train=DEMO_TRAIN, test=DEMO_TEST, seed=DEMO_SEED)
        train = _pixel_split(drawn.train_images, drawn.train_labels)
        return RawTask(tuple(drawn.classes), train, _pixel_split(drawn.test_images, drawn.test_labels))


def _pixel_split(images: np.ndarray, labels: np.ndarray) -> RawSplit:
    def rows() -> Iterator[tuple[str, RawImage]]:
        for row, image in enumerate(images):
            yield f"row {row}", image

    return RawSplit(np.asarray(labels, np.int64), rows)


def find_source(reference: str, data_root: Path | None) -> Source:
    """The source that a reference names.

    `demo:NAME`; `paper:NAME`; `hub:owner/name[/config][@revision]`; a folder's path (`./my/flowers`); or a bare name: a
    folder under `data_root`, else in the working directory. A folder holds train.parquet and test.parquet, or
    train/<class>/ and test/<class>/. A dataset of the paper is such a folder under `data_root`, else on the hub.

    Raises
    ------
    DataError : nothing is there, or not in either form
    """
    kind, colon, rest = reference.partition(":")
    if colon and kind == "demo":
        return DemoTask(rest)
    if colon and kind == "hub":
        return _find_hub(rest)
    dataset = dataset_of(reference)
    if dataset is not None:
        return _find_paper(dataset, data_root)
    path_given, folder = is_path(reference), Path(reference).expanduser()
    if not path_given and data_root is not None and (data_root / reference).is_dir():
        folder = data_root / reference
    if not folder.is_dir():
        raise DataError(_missing(reference, path_given, data_root))
    # Made absolute, so that "." has a name too.
    return _folder_source(Path(os.path.abspath(folder)))


def is_path(reference: str) -> bool:
    """Whether a reference names a folder by its path."""
    if reference.partition(":")[0] in ("demo", "hub", "paper"):
        return False
    return "/" in reference or "\\" in reference or reference.startswith(("~", "."))


def _find_hub(reference: str) -> HubDataset:
    path, at, revision = reference.partition("@")
    pieces = path.split("/")
    if not 1 <= len(pieces) <= 3 or not all(pieces) or (at and not revision):
        raise DataError(f"task 'hub:{reference}': hub:owner/name[/config][@revision] is expected")
    return HubDataset(reference)


def _find_paper(dataset: PaperDataset, data_root: Path | None) -> Source:
    if data_root is not None and (data_root / dataset.name).is_dir():
        return _folder_source(Path(os.path.abspath(data_root / dataset.name)))
    where = "MATU_DATA is not set" if data_root is None else f"no folder {dataset.name} under MATU_DATA ({data_root})"
    if dataset.hub is None:
        raise DataError(missing(dataset, where))
    source = HubDataset(dataset.hub, dataset.name, dataset.hub_splits, dataset.columns)
    if not source.in_reach():
        raise DataError(missing(dataset, f"{where}, and the Hugging Face hub cannot be reached"))
    return source


def _folder_source(folder: Path) -> Source:
    tables = [split for split in SPLITS if (folder / f"{split}.parquet").is_file()]
    trees = [split for split in SPLITS if (folder / split).is_dir()]
    if len(tables) == 2 and not trees:
        return ParquetFolder(folder.name, folder)
    if len(trees) == 2 and not tables:
        return ImageFolder(folder.name, folder)
    found = [f"{split}.parquet" for split in tables] + [f"{split}/" for split in trees]
    if found:
        raise DataError(f"task {folder.name!r}: {' and '.join(found)} in {folder}; expected {EXPECTED}")
    hint = _tasks_below(folder) or f"expected {EXPECTED}"
    raise DataError(
        f"task {folder.name!r}: {folder} holds neither train/ and test/ nor train.parquet and test.parquet; {hint}"
    )


def _tasks_below(folder: Path) -> str:
    """Which folders in a folder look like tasks, told as a hint; empty if none does."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return ""
    found = [
        name
        for name in names
        if all(os.path.isdir(folder / name / split) for split in SPLITS)
        or all(os.path.isfile(folder / name / f"{split}.parquet") for split in SPLITS)
    ]
    if len(found) < 2:
        return f"its folder {found[0]} looks like a task; name that" if found else ""
    shown = ", ".join(found[:NAMED]) + (", ..." if len(found) > NAMED else "")
    return f"its folders {shown} look like tasks; name those"


def _missing(reference: str, is_path: bool, data_root: Path | None) -> str:
    if is_path:
        return f"task {reference!r}: no such folder; expected one with {EXPECTED}"
    if data_root is None:
        return (
            f"task {reference!r}: no folder {reference} here and MATU_DATA is not set; "
            f"set it to the folder that holds {reference}/ with {EXPECTED}"
        )
    return f"task {reference!r}: no folder {reference} under MATU_DATA ({data_root}); expected {EXPECTED}"
