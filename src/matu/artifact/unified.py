"""The unified adapter on disk: one vector, and a modulator and a head per task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from matu.config import ModelConfig
from matu.errors import DataError
from matu.files import write_atomic
from matu.models import AdaptedModel
from matu.tasks import Task
from matu.wire import pack, unpack

FORMAT = 1


def save_artifact(
    folder: Path,
    tensors: Mapping[str, Tensor],
    model: AdaptedModel,
    tasks: Mapping[str, Task],
    config: ModelConfig,
    *,
    linearised: bool,
) -> None:
    """Write `unified.safetensors` and `artifact.json` (what is needed to use it).

    Parameters
    ----------
    folder
        Made if missing.
    tensors
        `vector` float [d], `masks` bool [T, d] (packed on disk), `rescalers` float [T], `head/<task>`.
    model
        Names backbone, adapter layout and preprocessing.
    tasks
        By name, in the order of the rows; their class names are kept.
    config
        Rank, scale, targets and start of the adapter.
    linearised
        Features are the first-order expansion at that start.
    """
    lora = {
        "rank": config.rank, "alpha": config.alpha, "targets": list(config.targets),
        "adapter_seed": config.adapter_seed, "start_b": config.start_b, "linearised": linearised,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: t.contiguous() for name, t in tensors.items() if t.dtype != torch.bool}
    masks = tensors.get("masks")
    bits = tensors["vector"].ne(0)[None] if masks is None else masks
    content["masks"] = torch.from_numpy(np.frombuffer(pack(bits.numpy()), np.uint8).copy())
    backbone, layout = model.backbone, model.layout
    note = {
        "format": FORMAT,
        "backbone": {"name": backbone.name, "sha256": backbone.digest, "features": backbone.features},
        "adapter": {"fingerprint": model.fingerprint, "dim": layout.dim, "lora": lora,
                    "parameters": {n: list(s) for n, s in zip(layout.names, layout.shapes, strict=True)}},
        "preprocessing": {"image_size": backbone.image_size, "mean": backbone.mean, "std": backbone.std},
        "tasks": {name: {"classes": task.classes, "sha256": task.digest} for name, task in tasks.items()},
    }  # fmt: skip
    write_atomic(folder / "unified.safetensors", bytes_of_tensors(content))
    write_atomic(folder / "artifact.json", json.dumps(note, indent=1).encode())


def load_artifact(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (masks unpacked, bool [T, d]) and the content of `artifact.json`.

    Raises
    ------
    DataError
        If a file is missing or is not what `save_artifact` writes.
    """
    try:
        note = json.loads((folder / "artifact.json").read_text())
        if note["format"] != FORMAT:
            raise DataError(f"{folder}: format {note['format']}, this version of matu reads {FORMAT}")
        tensors = tensors_of_bytes((folder / "unified.safetensors").read_bytes())
        shape = (len(note["tasks"]), note["adapter"]["dim"])
        bits = unpack(tensors["masks"].numpy().tobytes(), shape[0] * shape[1])
        tensors["masks"] = torch.from_numpy(bits.reshape(shape).copy())
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder}: no readable artifact ({error})") from error
    return tensors, note
