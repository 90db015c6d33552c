"""Plain PEFT adapters of an artifact's tasks, for people who do not have matu."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from matu.artifact.card import export_card
from matu.artifact.stored import CARD, Artifact
from matu.errors import ConfigError
from matu.files import new_folder
from matu.merge import mark_start
from matu.models import BUNDLED, locate, plain_model

BACKBONE = "backbone"
"""Folder of a copy of the bundled backbone, which is nowhere else to be had."""


def export(
    artifact: Artifact,
    places: Mapping[str, str],
    folder: Path,
    *,
    models_root: Path | None = None,
    backbone: str = "",
    merged: bool = False,
) -> None:
    """Write tasks as PEFT adapters.

    Each is tried on noise before it is written: Transformers and PEFT alone must give the logits that matu gives.

    Parameters
    ----------
    artifact
        What to export.
    places
        By task, its folder below `folder`: a name, or "." for `folder` itself.
    folder
        New or empty; it is whole or not there.
    models_root, backbone
        Where the backbone lies, as in `Artifact.trainer`.
    merged
        Write whole models with the adapter merged in.

    Raises
    ------
    ConfigError
        If the folder is not empty, the backbone is another, or nothing but matu computes the logits.
    """
    lora = artifact.note["adapter"]["lora"]
    if lora["linearised"]:
        raise ConfigError("features of this artifact are linear in the adapter, which PEFT cannot compute; no export")
    for task, place in places.items():
        if place != "." and (place != Path(place).name or place in ("..", BACKBONE)):
            raise ConfigError(f"task {task!r}: no name for a folder; export it alone, with --task")
    source = backbone or artifact.note["backbone"]["name"]
    with new_folder(folder) as part:
        trainer = artifact.trainer(models_root=models_root, backbone=backbone)
        copied = source in BUNDLED and not merged
        if copied:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(locate(source, None), part / BACKBONE, ignore=ignored)
        for task, place in places.items():
            trainer.model.load(artifact.vector(task))
            head = artifact.packed.tensors[f"head/{task}"]
            plain = plain_model(trainer.model, source, head, artifact.classes(task), models_root=models_root)
            plain.save(part / place, merged=merged)
            if not merged:  # so that matu merge knows that these began as one
                mark_start(
                    part / place,
                    fingerprint=trainer.model.fingerprint,
                    seed=lora["adapter_seed"],
                    start_b=lora["start_b"],
                )
            near = f"{'.' if place == '.' else '..'}/{BACKBONE}" if copied else ""
            (part / place / CARD).write_text(export_card(artifact.note, task, plain, near, merged=merged))
