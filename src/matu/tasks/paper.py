"""The datasets of the paper (arXiv 2502.06376): what each must look like, and how to get it."""

from matu.errors import DataError
from matu.tasks.paper_datasets import DATASETS, EIGHT, OWN, PaperDataset

__all__ = [
    "EIGHT",
    "PAPER",
    "PAPER_8",
    "PAPER_30",
    "PREFIX",
    "PaperDataset",
    "check_class_count",
    "dataset_of",
    "missing",
]

PREFIX = "paper:"

PAPER: dict[str, PaperDataset] = {dataset.name: dataset for dataset in DATASETS}
"""Every dataset by its name: the task's, and its folder's under MATU_DATA."""

PAPER_8 = tuple(PREFIX + name for name in EIGHT)
PAPER_30 = tuple(PREFIX + dataset.name for dataset in DATASETS)


def dataset_of(reference: str) -> PaperDataset | None:
    """The dataset that `paper:NAME` means; None for any other reference.

    Raises
    ------
    DataError : no dataset of the paper has that name
    """
    if not reference.startswith(PREFIX):
        return None
    name = reference.removeprefix(PREFIX)
    if name not in PAPER:
        raise DataError(f"task {reference!r}: no dataset of the paper has that name; known are {', '.join(PAPER)}")
    return PAPER[name]


def check_class_count(reference: str, classes: tuple[str, ...]) -> None:
    """Raise DataError where a dataset of the paper was found with another number of classes."""
    dataset = dataset_of(reference)
    if dataset is not None and dataset.classes not in (None, len(classes)):
        raise DataError(f"task {dataset.name!r}: {len(classes)} classes found, the paper's has {dataset.classes}")


def missing(dataset: PaperDataset, looked: str) -> str:
    """What to say where a dataset was not found: where it was looked for, how to get it, where to put it."""
    name = dataset.name
    count = "number of classes not stated" if dataset.classes is None else f"{dataset.classes} classes"
    lines = [
        f"task {name!r} ({count}): {looked}",
        f"get it: {dataset.obtain}",
        *([] if dataset.split == OWN else [f"split: {dataset.split}"]),
        f"put it: MATU_DATA/{name}/train/<class>/*.jpg and MATU_DATA/{name}/test/<class>/*.jpg, "
        f"or MATU_DATA/{name}/train.parquet and MATU_DATA/{name}/test.parquet",
    ]
    return "\n  ".join(lines)
