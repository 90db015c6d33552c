"""Local parquet folders."""

import glob
import hashlib
import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matu.errors import DataError
from matu.tasks.raw import RawTask
from matu.tasks.tables import class_names, find_columns, first_line, quiet, raw_task, reading

if TYPE_CHECKING:
    import datasets

BATCH_ROWS = 256  # read at once


@dataclass(frozen=True)
class ParquetFolder:
    """A folder with train.parquet and test.parquet, and maybe an info.json that lists `classes`."""

    name: str
    root: Path

    @property
    def label(self) -> str:
        return f"parquet:{self.name}"

    def content(self) -> dict[str, object]:
        """Hashes of both files, and the classes of info.json."""
        hashes = {}
        for split in ("train", "test"):
            try:
                with self._file(split).open("rb") as stream:
                    hashes[split] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                where = f"task {self.name!r}, split {split!r}: {self._file(split)}"
                raise DataError(f"{where} cannot be read ({error.strerror})") from error
        return {"kind": "parquet", "classes": self._info_classes, **hashes}

    def open(self) -> RawTask:
        tables = {split: self._stream(split) for split in ("train", "test")}
        columns = find_columns(self.name, tables["train"].features)
        test_columns = find_columns(self.name, tables["test"].features)
        if columns != test_columns:
            raise DataError(
                f"task {self.name!r}: image and label are {columns} in train.parquet but {test_columns} in test.parquet"
            )
        label = columns[1]
        values = {split: self._label_values(split, label) for split in tables}
        names = class_names(self.name, [t.features[label] for t in tables.values()], self._info_classes)
        return raw_task(self.name, names, values, tables, columns)

    def _file(self, split: str) -> Path:
        return self.root / f"{split}.parquet"

    def _label_values(self, split: str, column: str) -> list[Any]:
        rows = self._stream(split, [column])
        return [row[column] for row in reading(self.name, split, rows)]

    def _stream(self, split: str, columns: list[str] | None = None) -> "datasets.IterableDataset":
        # Not load_dataset("parquet", ...): that one calls the hub to count the use, and waits for it when offline.
        # Streamed, because otherwise a second copy of the file is written first.
        import datasets

        try:
            with quiet(), tempfile.TemporaryDirectory() as locks:
                table = datasets.IterableDataset.from_parquet(
                    glob.escape(str(self._file(split).absolute())),
                    split=datasets.NamedSplit(split),
                    columns=columns,
                    batch_size=BATCH_ROWS,
                    cache_dir=locks,
                )
        except (OSError, ValueError) as error:
            raise DataError(
                f"task {self.name!r}, split {split!r}: {self._file(split)} is not a readable parquet file "
                f"({first_line(error)})"
            ) from error
        return table

    @cached_property
    def _info_classes(self) -> list[str] | None:
        path = self.root / "info.json"
        if not path.exists():
            return None
        try:
            classes = json.loads(path.read_text(encoding="utf-8")).get("classes")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"task {self.name!r}: {path} is not a readable JSON object ({error})") from error
        if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
            raise DataError(f"task {self.name!r}: 'classes' in {path} must be a list of names")
        return classes
