"""What an artifact weighs and holds, as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from matu.artifact.note import NOTE
from matu.artifact.stored import CARD, TENSORS, Artifact, artifact_folder
from matu.vectors import similarity


def inspect(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Sizes in bytes, tasks, and how alike their vectors are.

    Parameters
    ----------
    artifact, folder
        As opened, and from where.

    Returns
    -------
    dict
        As printed by `matu inspect --json`. `float32` is what as many adapters and heads weigh as float32;
        `mask_density` the share of entries that are a task's (None: its vector is its own); `sign` is Eq. 5.
    """
    packed, note, place = artifact.packed, artifact.note, artifact_folder(folder)
    files = {name: (place / name).stat().st_size for name in (TENSORS, NOTE, CARD) if (place / name).is_file()}
    vectors = torch.stack([artifact.vector(task) for task in packed.tasks])
    unit = normalize(vectors)
    heads = sum(packed.tensors[f"head/{task}"].numel() for task in packed.tasks)
    return {
        "kind": note["kind"], "form": note["form"], "backbone": note["backbone"], "dim": packed.dim,
        "lora": note["adapter"]["lora"], "image_size": note["preprocessing"]["image_size"],
        "provenance": note["provenance"],
        "bytes": {
            "files": files, "total": sum(files.values()), "float32": 4 * (vectors.numel() + heads),
            "shared": packed.tensors["vector"].nbytes if not packed.separate else 0,
        },
        "tasks": {
            task: {
                "classes": list(artifact.classes(task)), "accuracy": note["tasks"][task]["accuracy"],
                "bytes": packed.bytes_of(task), "rescaler": float(packed.tensors["rescalers"][i]),
                "scale": note["tasks"][task]["scale"],
                "mask_density": None if packed.separate else float(packed.mask(task).double().mean()),
                "norm": float(vectors[i].norm()),
            }
            for i, task in enumerate(packed.tasks)
        },
        "similarity": {"sign": similarity(vectors).tolist(), "cosine": (unit @ unit.T).tolist()},
    }  # fmt: skip
