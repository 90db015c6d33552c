"""A merged folder: read again, and given back as standard PEFT adapters, one a task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from matu.errors import ConfigError, DataError
from matu.files import new_folder
from matu.merge.adapters import CONFIG, WEIGHTS
from matu.merge.start import start_of
from matu.wire import unpack

FORMAT, NOTE, UNIFIED, HEADS = 2, "artifact.json", "unified.safetensors", "heads"
TASK_NAME = re.compile(r"[^\W_][\w.+-]{0,99}")
WHOLE = torch.contiguous_format
VECTOR, MASK, START = "vector.", "mask.", "start."
"""What stands before a matrix's name in `unified.safetensors`."""


def is_merged(folder: Path) -> bool:
    """Whether `matu merge` wrote the folder."""
    try:
        note = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(note, dict) and note.get("kind") == "merged"


def merged_tasks(folder: Path) -> list[str]:
    """Names of a merged folder's tasks; DataError if it is broken."""
    with ExitStack() as files:
        return Merged(folder, files).tasks


def restore(folder: Path, task: str, to: Path) -> None:
    """Write one task's adapter as plain PEFT reads it.

    Parameters
    ----------
    folder
        What `merge` wrote.
    task
        One of its tasks.
    to
        A new folder, or an empty one.

    Raises
    ------
    ConfigError
        No such task, or `to` is in use.
    DataError
        The merged folder is broken.
    """
    with ExitStack() as files, new_folder(to) as out:
        merged = Merged(folder, files)
        if task not in merged.tasks:
            raise ConfigError(f"{folder}: no task {task!r}; it has {', '.join(merged.tasks)}")
        heads = merged.heads(task)
        tensors = {name: tensor for name, (tensor,) in merged.matrices([task])}
        write_tensors(out / WEIGHTS, tensors | {name: read() for name, read in heads.items()})
        (out / CONFIG).write_text(json.dumps(merged.config(task), indent=1))
        if merged.start:
            merged.start.mark(out)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file as the libraries write it; DataError for a type that it has no name for."""
    whole = {  # what is a piece of something larger would be written with it
        name: t.contiguous() if t.untyped_storage().nbytes() == t.nbytes else t.clone(memory_format=WHOLE)
        for name, t in tensors.items()
    }
    try:
        save_file(whole, path, {"format": "pt"})
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path.name}: a tensor that safetensors cannot hold ({error})") from error


class Merged:
    """A merged folder, open.

    Parameters
    ----------
    folder
        What `merge` wrote.
    files
        Closes its files.

    Attributes
    ----------
    tasks : list of str
    names : list of str
        Of the LoRA matrices, sorted.
    start : Start or None
        How the shared start is drawn, if it is not in the file.

    Raises
    ------
    DataError
        Anything is missing, or not as `merge` writes it.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        try:
            self.note: dict[str, Any] = json.loads((folder / NOTE).read_text())
            if self.note["format"] != FORMAT or self.note["kind"] != "merged":
                raise ValueError(f"format {self.note['format']}, kind {self.note['kind']}, expected {FORMAT}, merged")
            self._to_save = {name: task["modules_to_save"] for name, task in self.note["tasks"].items()}
            self.tasks = list(self._to_save)
            for name in self.tasks:
                if not TASK_NAME.fullmatch(name):
                    raise ValueError(f"task name {name!r}")
            self._config: dict[str, Any] = dict(self.note["adapter_config"])
            self.start = start_of(self.note["start"]) if self.note["start"] else None
            self._unified = self.note["method"] == "unify"
            self._sha256: dict[str, str] = dict(self.note.get("sha256", {}))  # not before all is written
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / NOTE}: no readable merged folder ({type(error).__name__}: {error})") from error
        self._path = folder / (UNIFIED if self._unified else WEIGHTS)
        self._file = self._open(self._path)
        keys = self._file.keys()
        self._keys = set(keys)
        if not self._unified:
            self.names = sorted(keys)
            return
        self.names = sorted({key.removeprefix(p) for key in keys for p in (VECTOR, START) if key.startswith(p)})
        self._rescalers = self._tensor("rescalers", (len(self.tasks),))
        if self.start:
            self.start.check({name: self._shape(VECTOR + name) for name in self.names}, self._path)

    def config(self, task: str) -> dict[str, Any]:
        """`adapter_config.json` of a task's adapter."""
        return self._config | {"modules_to_save": self._to_save[task]}

    def matrices(self, tasks: Sequence[str]) -> Iterator[tuple[str, list[Tensor]]]:
        """The LoRA matrices of some tasks, start + λ · m ⊙ τ, float32: a name, sorted, and one for each task."""
        if not self._unified:
            yield from ((name, [self._tensor(name)] * len(tasks)) for name in self.names)
            return
        for name, start in self._starts():
            vector = self._tensor(VECTOR + name, tuple(start.shape)) if VECTOR + name in self._keys else None
            rows = [self.tasks.index(task) for task in tasks]
            yield name, [start if vector is None else start + self._modulated(name, vector, row) for row in rows]

    def heads(self, task: str) -> dict[str, Callable[[], Tensor]]:
        """A task's whole weights, by name; each is read when it is called for."""
        path = self._folder / HEADS / f"{task}.safetensors"
        if not path.exists():
            return {}
        file = self._open(path)
        return {name: partial(file.get_tensor, name) for name in sorted(file.keys())}

    def _starts(self) -> Iterator[tuple[str, Tensor]]:
        if self.start:
            yield from self.start.draw({name: self._shape(VECTOR + name) for name in self.names})
            return
        for name in self.names:
            held = START + name in self._keys
            yield name, self._tensor(START + name) if held else torch.zeros(self._shape(VECTOR + name))

    def _modulated(self, name: str, vector: Tensor, row: int) -> Tensor:
        count = vector.numel()
        packed = self._file.get_slice(MASK + name) if MASK + name in self._keys else None
        if packed is None or packed.get_shape() != [len(self.tasks), -(-count // 8)] or packed.get_dtype() != "U8":
            raise DataError(f"{self._path}: {MASK + name}: expected uint8 [{len(self.tasks)}, {-(-count // 8)}]")
        mask = torch.from_numpy(unpack(packed[row].numpy().tobytes(), count).copy()).view(vector.shape)
        return self._rescalers[row] * torch.where(mask, vector, 0)

    def _open(self, path: Path) -> Any:
        try:
            stated = self._sha256.get(str(path.relative_to(self._folder)))
            if stated is not None and sha256(path) != stated:
                raise DataError(f"{path}: not what {NOTE} was written with; the file is damaged")
            return self._files.enter_context(safe_open(path, "pt"))
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: no readable safetensors file ({error})") from error

    def _shape(self, key: str) -> tuple[int, ...]:
        if key not in self._keys:
            raise DataError(f"{self._path}: no {key}")
        return tuple(self._file.get_slice(key).get_shape())

    def _tensor(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        self._shape(key)  # DataError where it is missing
        found: Tensor = self._file.get_tensor(key)
        if found.dtype != torch.float32 or not torch.isfinite(found).all() or shape not in (None, tuple(found.shape)):
            raise DataError(f"{self._path}: {key}: expected finite float32 {list(shape or found.shape)}")
        return found
