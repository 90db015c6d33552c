"""Datasets of the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from matu.errors import DataError
from matu.tasks.raw import RawTask, listing
from matu.tasks.tables import class_names, find_columns, first_line, quiet, raw_task

if TYPE_CHECKING:
    import datasets

ANSWER_S = 5  # how long the hub may take to answer at all


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face hub dataset, `owner/name[/config][@revision]`, kept in the library's own cache."""

    reference: str
    task: str = ""
    """The task's name; empty: the dataset's own."""
    splits: tuple[str, str] | None = None
    """Its training and test split; None: train, and test or else validation."""
    columns: tuple[str, str] | None = None
    """Its image and label column; None: chosen by type, then by name."""

    @property
    def label(self) -> str:
        return f"hub:{self.reference}"

    @property
    def name(self) -> str:
        return self.task or self._parts[0].rpartition("/")[2]

    def content(self) -> dict[str, object]:
        """Fingerprints of both splits, which stand for dataset, configuration, revision and split; named columns."""
        prints = {split: table._fingerprint for split, table in self._tables.items()}
        named = {"columns": list(self.columns)} if self.columns else {}
        return {"kind": "hub", "dataset": self._parts[0], **prints, **named}

    def open(self) -> RawTask:
        features = self._tables["train"].features
        columns = self.columns or find_columns(self.name, features)
        absent = [column for column in columns if column not in features]
        if absent:
            raise DataError(
                f"task {self.name!r}: hub dataset {self.reference!r} has no column {absent[0]!r}; "
                f"its columns are {', '.join(features)}"
            )
        values = {split: list(table[columns[1]]) for split, table in self._tables.items()}
        names = class_names(self.name, [t.features[columns[1]] for t in self._tables.values()], None)
        return raw_task(self.name, names, values, self._tables, columns)

    def in_reach(self) -> bool:
        """Whether it can be loaded: the hub answers, or the library's cache holds it already."""
        self._require_no_folder()
        if hub_answers():
            return True
        try:
            return bool(self._tables)
        except DataError:
            return False

    def _require_no_folder(self) -> None:
        """DataError where a folder lies in the dataset's way: the library would take it."""
        path = self._parts[0]
        if _lies_here(path):
            raise DataError(
                f"task {self.name!r}: a folder {path} lies here too, and would be taken for the hub's; "
                f"expected ./{path} if it is meant, else a working folder without it"
            )

    @property
    def _parts(self) -> tuple[str, str | None, str | None]:
        """Dataset id, configuration, revision."""
        path, _, revision = self.reference.partition("@")
        pieces = path.split("/")
        return "/".join(pieces[:2]), "/".join(pieces[2:]) or None, revision or None

    @cached_property
    def _tables(self) -> dict[str, "datasets.Dataset"]:
        import datasets

        path, config, revision = self._parts
        self._require_no_folder()
        try:
            with quiet(), _no_retries():
                found = datasets.load_dataset(path, config, revision=revision)
        # The library passes on whatever its network, file and parsing layers raise.
        except Exception as error:
            raise DataError(
                f"task {self.name!r}: hub dataset {self.reference!r} cannot be loaded: {first_line(error)}"
            ) from error
        train, test = self.splits or ("train", "test" if "test" in found else "validation")
        if train not in found or test not in found:
            needed = f"{train!r} and {test!r}" if self.splits else "'train' and 'test' (or 'validation')"
            raise DataError(
                f"task {self.name!r}: hub dataset {self.reference!r} has {listing('split', list(found))}; "
                f"{needed} are needed"
            )
        return {"train": found[train], "test": found[test]}


def _lies_here(path: str) -> bool:
    return Path(path).is_dir()


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached, asked once and without retries; False in the library's offline mode."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    # Whatever the network layers raise, the hub cannot be asked.
    except Exception:
        return False
    return True


@contextmanager
def _no_retries() -> Iterator[None]:
    """Offline mode where the hub does not answer: the library would retry for 20 seconds a dataset."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not hub_answers():
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
