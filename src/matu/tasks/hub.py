"""Datasets of the Hugging Face hub."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from matu.errors import DataError
from matu.tasks.raw import RawTask, listing
from matu.tasks.tables import class_names, find_columns, first_line, quiet, raw_task

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face hub dataset, `owner/name[/config][@revision]`, kept in the library's own cache."""

    reference: str

    @property
    def label(self) -> str:
        return f"hub:{self.reference}"

    @property
    def name(self) -> str:
        return self._parts[0].rpartition("/")[2]

    def content(self) -> dict[str, object]:
        """Fingerprints of both splits: they stand for dataset, configuration, revision and split."""
        prints = {split: table._fingerprint for split, table in self._tables.items()}
        return {"kind": "hub", "dataset": self._parts[0], **prints}

    def open(self) -> RawTask:
        columns = find_columns(self.name, self._tables["train"].features)
        values = {split: list(table[columns[1]]) for split, table in self._tables.items()}
        names = class_names(self.name, [t.features[columns[1]] for t in self._tables.values()], None)
        return raw_task(self.name, names, values, self._tables, columns)

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
        try:
            with quiet():
                found = datasets.load_dataset(path, config, revision=revision)
        # The library passes on whatever its network, file and parsing layers raise.
        except Exception as error:
            raise DataError(
                f"task {self.name!r}: hub dataset {self.reference!r} cannot be loaded: {first_line(error)}"
            ) from error
        test = "test" if "test" in found else "validation"
        if "train" not in found or test not in found:
            raise DataError(
                f"task {self.name!r}: hub dataset {self.reference!r} has {listing('split', list(found))}; "
                "'train' and 'test' (or 'validation') are needed"
            )
        return {"train": found["train"], "test": found[test]}
