"""Decoded tasks on disk: one folder a task, named by what it was made from, checked whenever it is read."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from PIL import Image

from matu.errors import DataError
from matu.tasks.images import DECODE_RECIPE, BadImageError, decode, fit
from matu.tasks.raw import RawImage, RawSplit, RawTask
from matu.tasks.task import SPLITS, BadImage, Split, split_digest, task_digest

FORMAT = 1
STALE_AFTER_S = 24 * 3600  # unfinished folders of killed processes are removed after this time


@dataclass(frozen=True)
class Entry:
    """A decoded task as the cache holds it; `bad` images are in neither split."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    digest: str
    bad: tuple[BadImage, ...]


def default_cache_dir() -> Path:
    """$MATU_CACHE, else $XDG_CACHE_HOME/matu, else ~/.cache/matu."""
    if own := os.environ.get("MATU_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "matu"


def entry_folder(cache_dir: Path, content: Mapping[str, object], image_size: int, limits: tuple[int, int]) -> Path:
    """Folder of the task made from this content with these settings."""
    made_from = {
        "format": FORMAT,
        "content": dict(content),
        "decode": DECODE_RECIPE,
        "pillow": PIL.__version__,
        "image_size": image_size,
        "limits": list(limits),
    }
    return cache_dir / "tasks" / hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def read_entry(folder: Path, image_size: int) -> Entry | None:
    """The entry in this folder, or None where there is none or it is not whole (every byte is checked)."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        classes = tuple(str(name) for name in meta["classes"])
        splits, digests = {}, {}
        for split in SPLITS:
            images = np.asarray(np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False))
            labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
            if images.dtype != np.uint8 or images.shape != (len(labels), image_size, image_size, 3):
                return None
            labels.setflags(write=False)
            splits[split] = Split(images, labels)
            digests[split] = split_digest(hashlib.sha256(images.reshape(-1).data).hexdigest(), labels)
        if task_digest(classes, image_size, digests["train"], digests["test"]) != meta["digest"]:
            return None
        bad = tuple(BadImage(**image) for image in meta["bad"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Entry(classes, splits["train"], splits["test"], meta["digest"], bad)


def write_entry(folder: Path, name: str, raw: RawTask, image_size: int, chosen: Mapping[str, np.ndarray]) -> None:
    """Decode the chosen rows of a task into this folder, in one step for everyone who looks.

    Bad images are left out and listed in the entry. Of two processes that write the same entry one wins.

    Raises
    ------
    DataError : no space, or the cache cannot be written; nothing is left behind
    """
    size_bytes = sum(len(rows) for rows in chosen.values()) * image_size * image_size * 3
    with _storing(name, folder, size_bytes):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        work.chmod(0o755)  # others may share the cache
        try:
            _fill(work, raw, image_size, chosen)
            _publish(work, folder, image_size)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fill(work: Path, raw: RawTask, image_size: int, chosen: Mapping[str, np.ndarray]) -> None:
    bad: list[BadImage] = []
    digests = {}
    for split, source in raw.splits.items():
        images_sha256, labels = _write_split(work, split, source, image_size, chosen[split], bad)
        digests[split] = split_digest(images_sha256, labels)
    meta = {
        "classes": list(raw.classes),
        "digest": task_digest(raw.classes, image_size, digests["train"], digests["test"]),
        "bad": [asdict(image) for image in bad],
    }
    with (work / "meta.json").open("w", encoding="utf-8") as stream:
        json.dump(meta, stream, indent=1)
        _flush(stream)


def _write_split(
    work: Path, split: str, source: RawSplit, size: int, chosen: np.ndarray, bad: list[BadImage]
) -> tuple[str, np.ndarray]:
    """Write one split's images and labels; their pixels' hash and the labels come back."""
    wanted = np.zeros(len(source.labels), bool)
    wanted[chosen] = True
    kept: list[int] = []
    pixels_sha256 = hashlib.sha256()
    # Written through a plain file: on a full disk a memory map would kill the process instead of raising.
    with (work / f"{split}_images.npy").open("wb") as stream:
        _write_header(stream, len(chosen), size)
        for row, (name, image) in enumerate(source.rows()):
            if not wanted[row]:
                continue
            try:
                pixels = _pixels(image, size).tobytes()
            except BadImageError as error:
                bad.append(BadImage(split, name, str(error)))
                continue
            stream.write(pixels)
            pixels_sha256.update(pixels)
            kept.append(row)
        stream.seek(0)
        _write_header(stream, len(kept), size)
        _flush(stream)
    labels = source.labels[np.array(kept, np.int64)]
    with (work / f"{split}_labels.npy").open("wb") as stream:
        np.save(stream, labels, allow_pickle=False)
        _flush(stream)
    return pixels_sha256.hexdigest(), labels


def _write_header(stream: IO[bytes], rows: int, size: int) -> None:
    # numpy pads headers so that a longer first axis still fits: both headers have the same length.
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
    )


def _pixels(image: RawImage, size: int) -> np.ndarray:
    if image is None:
        raise BadImageError("no image")
    if isinstance(image, np.ndarray):
        return fit(Image.fromarray(image), size)
    if isinstance(image, Path):  # read here: a disk that fails makes no bad image, which would be remembered
        try:
            data = image.read_bytes()
        except OSError as error:
            raise DataError(f"{image} cannot be read ({error.strerror or error})") from error
        return decode(data, size)
    return decode(image, size)


def _publish(work: Path, folder: Path, image_size: int) -> None:
    """Move the finished folder into place, unless another process was first."""
    for _ in range(10):
        try:
            work.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if read_entry(folder, image_size) is not None:
            return
        # What lies there is torn or foreign.
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as aside:
            try:
                folder.rename(Path(aside) / "replaced")
            except FileNotFoundError:
                continue
    raise DataError(f"{folder} is taken and cannot be replaced: remove it")


def _flush(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _remove_stale(parent: Path) -> None:
    for unfinished in parent.glob(".unfinished-*"):
        try:
            stale = time.time() - unfinished.stat().st_mtime > STALE_AFTER_S
        except FileNotFoundError:
            continue
        if stale:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _storing(name: str, folder: Path, size_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"task {name!r}: cannot be stored in {folder.parent}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{where}: no space left, {size_bytes / 1e6:.0f} MB needed; set MATU_CACHE to another disk"
            ) from error
        raise DataError(f"{where} ({error.strerror or error}); set MATU_CACHE to a writable folder") from error
