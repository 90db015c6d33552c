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
from matu.tasks.parquet import ParquetFolder
from matu.tasks.raw import RawImage, RawSplit, RawTask, Source

DEMO_TRAIN, DEMO_TEST, DEMO_SEED = 600, 300, 0
SPLITS = ("train", "test")
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

    `demo:NAME`; `hub:owner/name[/config][@revision]`; a folder's path (`./my/flowers`); or a bare name: a
    folder under `data_root`, else in the working directory. A folder holds train.parquet and test.parquet, or
    train/<class>/ and test/<class>/.

    Raises
    ------
    DataError : nothing is there, or not in either form
    """
    kind, colon, rest = reference.partition(":")
    if colon and kind == "demo":
        return DemoTask(rest)
    if colon and kind == "hub":
        return _find_hub(rest)
    is_path = "/" in reference or "\\" in reference or reference.startswith(("~", "."))
    folder = Path(reference).expanduser()
    if not is_path and data_root is not None and (data_root / reference).is_dir():
        folder = data_root / reference
    if not folder.is_dir():
        raise DataError(_missing(reference, is_path, data_root))
    # Made absolute, so that "." has a name too.
    return _folder_source(Path(os.path.abspath(folder)))


def _find_hub(reference: str) -> HubDataset:
    path, at, revision = reference.partition("@")
    pieces = path.split("/")
    if not 1 <= len(pieces) <= 3 or not all(pieces) or (at and not revision):
        raise DataError(f"task 'hub:{reference}': hub:owner/name[/config][@revision] is expected")
    return HubDataset(reference)


def _folder_source(folder: Path) -> Source:
    tables = [split for split in SPLITS if (folder / f"{split}.parquet").is_file()]
    trees = [split for split in SPLITS if (folder / split).is_dir()]
    if len(tables) == 2 and not trees:
        return ParquetFolder(folder.name, folder)
    if len(trees) == 2 and not tables:
        return ImageFolder(folder.name, folder)
    found = [f"{split}.parquet" for split in tables] + [f"{split}/" for split in trees]
    raise DataError(f"task {folder.name!r}: {' and '.join(found) or 'neither form'} in {folder}; expected {EXPECTED}")


def _missing(reference: str, is_path: bool, data_root: Path | None) -> str:
    if is_path:
        return f"task {reference!r}: no such folder; expected one with {EXPECTED}"
    if data_root is None:
        return (
            f"task {reference!r}: no folder {reference} here and MATU_DATA is not set; "
            f"set it to the folder that holds {reference}/ with {EXPECTED}"
        )
    return f"task {reference!r}: no folder {reference} under MATU_DATA ({data_root}); expected {EXPECTED}"
