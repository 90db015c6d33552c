"""Image folders: `train/<class>/*` and `test/<class>/*`."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from matu.errors import DataError
from matu.tasks.raw import RawImage, RawSplit, RawTask, listing
from matu.words import counted

logger = logging.getLogger(__name__)

# What cameras, scanners and exports write. Pillow opens more, but documents and films are not samples.
IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    }
)
CLUTTER = frozenset({"thumbs.db", "desktop.ini"})  # what file managers leave behind


@dataclass(frozen=True)
class ImageFolder:
    """A folder with train/<class>/* and test/<class>/*; classes in the order of their sorted names."""

    name: str
    root: Path

    @property
    def label(self) -> str:
        return f"folder:{self.name}"

    def content(self) -> dict[str, object]:
        """Hash over the relative names and the bytes of all images, and over classes that have none.

        Raises
        ------
        DataError : an image cannot be read
        """
        digest = hashlib.sha256()
        for split, classes in self._files.items():
            for name in (name for name, files in classes.items() if not files):  # of which no file tells
                digest.update(os.fsencode(f"{split}/{name}/") + b"\0")
            for file in (file for files in classes.values() for file in files):
                digest.update(os.fsencode(file.relative_to(self.root).as_posix()) + b"\0")
                try:
                    with file.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "sha256").digest())
                except OSError as error:
                    raise DataError(
                        f"task {self.name!r}, split {split!r}: {file} cannot be read ({error.strerror})"
                    ) from error
        return {"kind": "folder", "sha256": digest.hexdigest()}

    def open(self) -> RawTask:
        train, test = self._files["train"], self._files["test"]
        differences = [
            f"{listing('class', sorted(here.keys() - there.keys()))} in {a}/ but not in {b}/"
            for here, there, a, b in ((train, test, "train", "test"), (test, train, "test", "train"))
            if here.keys() - there.keys()
        ]
        if differences:
            raise DataError(
                f"task {self.name!r}: {'; '.join(differences)}; both need the same class folders ({self.root})"
            )
        return RawTask(tuple(train), self._split(train), self._split(test))

    def _split(self, classes: dict[str, list[Path]]) -> RawSplit:
        files = [file for paths in classes.values() for file in paths]
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in classes.values()])

        def rows() -> Iterator[tuple[str, RawImage]]:
            for file in files:
                yield file.relative_to(self.root).as_posix(), file

        return RawSplit(labels, rows)

    # Our own walk and not the `imagefolder` loader of datasets: that one takes the innermost folder for the
    # class, misses a class folder without images, unpacks archives, gives no labels beside a metadata.csv.
    @cached_property
    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """Image files of each split and class, sorted."""
        found: dict[str, dict[str, list[Path]]] = {}
        ignored: list[Path] = []
        for split in ("train", "test"):
            try:
                with os.scandir(self.root / split) as entries:
                    listed = sorted((Path(e) for e in entries if not e.name.startswith(".")), key=_by_name)
                found[split] = {p.name: images_below(p, ignored) for p in listed if p.is_dir()}
            except OSError as error:
                raise DataError(
                    f"task {self.name!r}, split {split!r}: {error.filename} cannot be read ({error.strerror})"
                ) from error
            ignored += [p for p in listed if not p.is_dir() and p.name.lower() not in CLUTTER]
        if ignored:
            logger.warning(
                "task %r: %s ignored (no image in a class folder, or a link to another folder), e.g. %s",
                self.name,
                counted(len(ignored), "file"),
                ignored[0].relative_to(self.root).as_posix(),
            )
        return found


def images_below(folder: Path, ignored: list[Path]) -> list[Path]:
    """Image files anywhere below a folder, sorted; what else lies there is added to `ignored`."""
    files = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        ignored += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]  # os.walk passes by
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    ignored += [file for file in set(files) - set(images) if file.name.lower() not in CLUTTER]
    return sorted(images)


def _by_name(path: Path) -> str:
    return path.name


def _raise(error: OSError) -> None:
    # os.walk passes over folders it may not read unless told otherwise.
    raise error
