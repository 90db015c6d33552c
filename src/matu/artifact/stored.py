"""An artifact on disk: `artifact.safetensors`, `artifact.json` with what is needed to use it, and a model card."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from matu.artifact.card import model_card
from matu.artifact.packed import Packed
from matu.config import RunConfig, config_of
from matu.errors import ConfigError, DataError
from matu.files import write_atomic
from matu.methods import Method, method_name
from matu.models import AdaptedModel
from matu.tasks import Task
from matu.training import Objective, Trainer, Weights, build_trainer
from matu.vectors import Layout
from matu.wire import MAX_RESCALER, is_name

FORMAT = 3
KIND = "federated"
NOTE, TENSORS, CARD = "artifact.json", "artifact.safetensors", "README.md"
MAX_DIM, MAX_NUMBERS, MAX_RANK, MAX_IMAGE_SIZE = 1 << 28, 1 << 31, 1 << 12, 1 << 13
_LORA = ("rank", "alpha", "targets", "adapter_seed", "start_b")


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a run left to be used.

    Attributes
    ----------
    note
        The content of `artifact.json`.
    packed
        Vectors and heads of its tasks.
    """

    note: dict[str, Any]
    packed: Packed

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks."""
        return self.packed.tasks

    def classes(self, task: str) -> tuple[str, ...]:
        """A task's class names, in the order of its head's rows."""
        return tuple(self.note["tasks"][task]["classes"])

    def one_of(self, task: str) -> str:
        """The task of a name, or the only one there is for an empty name; ConfigError where that is none."""
        if task in self.tasks:
            return task
        if not task and len(self.tasks) == 1:
            return self.tasks[0]
        given = f"--task {task}" if task else "no --task"
        raise ConfigError(f"{given}: expected one of {', '.join(self.tasks)}")

    def vector(self, task: str) -> Tensor:
        """A task's vector, float32 [d]: what it adds to the adapter's start, B's part times the task's scale."""
        vector, scale = self.packed.vector(task), self.note["tasks"][task]["scale"]
        for name, part in _layout(self.note).unflatten(vector).items():
            if ".lora_B." in name:
                part *= scale
        return vector

    def weights(self, task: str) -> Weights:
        """A task's vector and head."""
        return Weights(self.vector(task), self.packed.tensors[f"head/{task}"])

    def trainer(
        self, *, models_root: Path | None = None, backbone: str = "", device: torch.device | None = None
    ) -> Trainer:
        """The backbone with the artifact's adapter, in float32, to measure and to predict with.

        Parameters
        ----------
        models_root
            Folder of backbone folders.
        backbone
            Where the backbone lies, if not under its name.
        device
            The CPU by default.

        Raises
        ------
        ConfigError
            If the backbone is not there, or is another one than that of the run.
        """
        about = self.note["backbone"]
        config = _config(self.note, backbone or about["name"])
        trainer = build_trainer(
            config, models_root, device or torch.device("cpu"), "float32", None if backbone else about["revision"]
        )
        found = trainer.model.backbone
        if trainer.model.fingerprint != self.note["adapter"]["fingerprint"]:
            raise ConfigError(
                f"backbone '{found.name}': its weights are {found.digest[:12]}…, the artifact is of "
                f"{about['sha256'][:12]}… and fits no other"
            )
        trainer.objective = Objective(linearised=self.note["adapter"]["lora"]["linearised"])
        return trainer

    def write(self, folder: Path) -> None:
        """Write its three files; the folder is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = bytes_of_tensors(self.packed.tensors)
        note = self.note | {"tensors_sha256": hashlib.sha256(tensors).hexdigest()}
        write_atomic(folder / TENSORS, tensors)
        write_atomic(folder / CARD, model_card(note).encode())
        write_atomic(folder / NOTE, json.dumps(note, indent=1, allow_nan=False).encode() + b"\n")


def save_artifact(
    folder: Path,
    weights: Mapping[str, Weights],
    model: AdaptedModel,
    tasks: Mapping[str, Task],
    config: RunConfig,
    method: Method,
    *,
    run: str,
    rounds: int,
    accuracy: Mapping[str, Mapping[str, float | None]],
) -> None:
    """Write what a run, or a site, keeps of some tasks.

    Parameters
    ----------
    folder
        Made if missing.
    weights
        By task; the method says in which form they are kept.
    model
        Names backbone, adapter layout and preprocessing.
    tasks
        By name; their class names are kept, and where they came from.
    config, method
        Of the run.
    run
        The run's identity.
    rounds
        Rounds done.
    accuracy
        By task, test accuracies by what was measured; None is left out.
    """
    packed = Packed.of(weights, separate=method.separate)
    backbone, layout, m = model.backbone, model.layout, config.model
    lora = {name: getattr(m, name) for name in _LORA} | {"linearised": method.objective.linearised}
    note = {
        "format": FORMAT, "kind": KIND, "form": "separate" if packed.separate else "unified",
        "backbone": {"name": backbone.name, "revision": backbone.revision, "sha256": backbone.digest,
                     "features": backbone.features},
        "adapter": {"fingerprint": model.fingerprint, "dim": layout.dim, "lora": lora,
                    "parameters": dict(zip(layout.names, layout.shapes, strict=True))},
        "preprocessing": {"image_size": backbone.image_size, "mean": backbone.mean, "std": backbone.std},
        "tasks": {
            name: {"classes": tasks[name].classes, "source": tasks[name].source, "sha256": tasks[name].digest,
                   "accuracy": {k: v for k, v in accuracy.get(name, {}).items() if v is not None}, "scale": 1.0}
            for name in weights
        },
        "provenance": {
            "matu": version("matu"), "method": method_name(config.federation.method),
            "options": config.federation.options, "seed": config.machine.seed, "rounds": rounds, "run": run,
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "changes": [],
        },
    }  # fmt: skip
    Artifact(json.loads(json.dumps(note)), packed).write(folder)


def load_artifact(folder: Path) -> Artifact:
    """Open an artifact: its folder, or that of the run which left it.

    Raises
    ------
    DataError
        If there is none, or it is not what this version of matu writes.
    """
    place = artifact_folder(folder)
    try:
        note = json.loads((place / NOTE).read_text())
        _check_kind(note)
        _check_note(note, _NOTE, NOTE)
        layout = _layout(note)
        if not layout.dim == note["adapter"]["dim"] <= MAX_DIM:
            raise DataError(f"dim {note['adapter']['dim']}, the parameters have {layout.dim}, at most {MAX_DIM}")
        _check_values(note)
        raw = (place / TENSORS).read_bytes()
        packed = Packed(tuple(note["tasks"]), layout.dim, tensors_of_bytes(raw))
        if note["form"] != (form := "separate" if packed.separate else "unified"):
            raise DataError(f"{NOTE}: form '{note['form']}', the tensors are {form}")
        width = note["backbone"]["features"] + 1
        packed.check({task: (len(about["classes"]), width) for task, about in note["tasks"].items()})
        if hashlib.sha256(raw).hexdigest() != note["tensors_sha256"]:
            raise DataError(f"{TENSORS} is not what {NOTE} was written with: a write of both was cut short")
    except (DataError, ConfigError) as error:
        raise DataError(f"{place}: {error}") from error
    # a type that torch lacks is a KeyError of safetensors', a shape below zero a RuntimeError of torch's
    except (
        OSError, ValueError, TypeError, KeyError, RuntimeError, RecursionError, safetensors.SafetensorError
    ) as error:  # fmt: skip
        raise DataError(f"{place}: no readable artifact ({error})") from error
    return Artifact(note, packed)


def artifact_folder(folder: Path) -> Path:
    """The folder itself, or that of the artifact in it; DataError if neither holds one."""
    for place in (folder, folder / "artifact"):
        if (place / NOTE).is_file():
            return place
    raise DataError(
        f"{folder}: no artifact (no {NOTE}); expected the folder of one, or of a finished run whose method leaves one"
    )


def _layout(note: Mapping[str, Any]) -> Layout:
    parameters = note["adapter"]["parameters"]
    return Layout(tuple(parameters), tuple(map(tuple, parameters.values())))


def _check_values(note: Mapping[str, Any]) -> None:
    """Numbers that fit each other, in bounds, and names that may be shown; DataError or ConfigError."""
    _config(note, note["backbone"]["name"])
    rank, pixels, tasks = note["adapter"]["lora"]["rank"], note["preprocessing"], note["tasks"]
    for name, shape in note["adapter"]["parameters"].items():
        if len(shape) != 2 or min(shape) < 1 or rank not in shape:
            raise DataError(f"parameter '{name[:80]}': shape {shape}, expected two sides, one of them the rank {rank}")
    if pixels["image_size"] > MAX_IMAGE_SIZE:
        raise DataError(f"image_size {pixels['image_size']}, at most {MAX_IMAGE_SIZE}")
    if len(pixels["mean"]) != 3 or len(pixels["std"]) != 3 or min(pixels["std"]) <= 0:
        raise DataError(f"mean {pixels['mean']}, std {pixels['std']}: expected three numbers each, std above 0")
    if not tasks or not all(about["classes"] for about in tasks.values()):
        raise DataError(f"{NOTE}: no tasks, or one without classes")
    numbers = len(tasks) * note["adapter"]["dim"] if note["form"] == "separate" else 0  # which few bytes may stand for
    if numbers > MAX_NUMBERS or rank > MAX_RANK:
        raise DataError(f"rank {rank}, {numbers} numbers of all tasks; at most {MAX_RANK} and {MAX_NUMBERS}")
    if (hidden := next((one for one in _texts(note) if not one.isprintable()), None)) is not None:
        raise DataError(f"{NOTE}: {hidden[:40]!r}: expected printable text of one line")
    for name in (note["backbone"]["name"], *tasks):
        if not is_name(name):
            raise DataError(f"{NOTE}: {name[:40]!r}: expected 1 to 255 bytes of printable text")
    for task, about in tasks.items():
        if abs(about["scale"]) > MAX_RESCALER:
            raise DataError(f"task '{task}': scale {about['scale']:g}, at most {MAX_RESCALER:g} either way")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a note: people read them in terminals and in Markdown."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(one)


def _config(note: Mapping[str, Any], backbone: str) -> RunConfig:
    """The adapter's and the images' settings as a configuration; ConfigError for values that cannot be."""
    lora = {name: note["adapter"]["lora"][name] for name in _LORA}
    table = {"model": {"backbone": backbone, **lora}, "tasks": {"image_size": note["preprocessing"]["image_size"]}}
    config = config_of(table, NOTE)
    config.check()
    return config


def _check_kind(note: Any) -> None:
    """What is not this format, or of another command, is told first; DataError."""
    kind, found = (note.get("kind"), note.get("format")) if isinstance(note, dict) else (None, None)
    if kind != KIND:
        hint = "; of what matu merge wrote, matu export gives the adapters back" if kind == "merged" else ""
        raise DataError(f"{NOTE}: kind {kind!r}, expected '{KIND}', which a run leaves{hint}")
    if found != FORMAT:
        raise DataError(
            f"{NOTE}: format {found!r}, this version of matu reads {FORMAT}; no other was ever released: run anew"
        )


_NOTE: dict[str, Any] = {
    "form": str,
    "tensors_sha256": str,
    "backbone": {"name": str, "revision": str | None, "sha256": str, "features": int},
    "adapter": {
        "fingerprint": str,
        "dim": int,
        "lora": {
            "rank": int, "alpha": float, "targets": [str], "adapter_seed": int, "start_b": float, "linearised": bool,
        },
        "parameters": {...: [int]},
    },
    "preprocessing": {"image_size": int, "mean": [float], "std": [float]},
    "tasks": {...: {"classes": [str], "source": str, "sha256": str, "accuracy": {...: float}, "scale": float}},
    "provenance": {
        "matu": str, "method": str, "options": [str], "seed": int, "rounds": int, "run": str, "date": str,
        "changes": [str],
    },
}  # fmt: skip
"""What must stand in `artifact.json`: types by key, in [] those of a list's entries, under ... those of any key."""


def _check_note(value: Any, expected: Any, where: str) -> None:
    """Require the structure of `_NOTE`; DataError with the place of the first thing that differs."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object")
        for key, inner in (dict.fromkeys(value, expected[...]) if ... in expected else expected).items():
            if key not in value:
                raise DataError(f"{where}: no '{key}'")
            _check_note(value[key], inner, f"{where}: {key}")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise DataError(f"{where}: expected a list")
        for entry in value:
            _check_note(entry, expected[0], where)
    elif (
        not isinstance(value, expected)
        or (isinstance(value, bool) and expected is not bool)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise DataError(f"{where}: {str(value)[:40]!r}, expected {expected}")
