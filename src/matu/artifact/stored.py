"""An artifact on disk: `artifact.safetensors`, `artifact.json` with what is needed to use it, and a model card."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
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
from matu.artifact.note import FORMAT, KIND, LORA, NOTE, check_note, config_in, layout_of
from matu.artifact.packed import Packed
from matu.config import RunConfig
from matu.errors import ConfigError, DataError
from matu.files import write_atomic
from matu.methods import Method, method_name
from matu.models import AdaptedModel
from matu.tasks import Task
from matu.training import Objective, Trainer, Weights, build_trainer
from matu.vectors.start import is_b

TENSORS, CARD = "artifact.safetensors", "README.md"


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
        return torch.where(layout_of(self.note).where(is_b), scale * vector, vector)

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
        config = config_in(self.note, backbone or about["name"])
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
    lora = {name: getattr(m, name) for name in LORA} | {"linearised": method.objective.linearised}
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
        check_note(note)
        raw = (place / TENSORS).read_bytes()
        packed = Packed(tuple(note["tasks"]), note["adapter"]["dim"], tensors_of_bytes(raw))
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
