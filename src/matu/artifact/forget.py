"""An artifact without one of its tasks, or with one turned around."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from matu.artifact.packed import Packed
from matu.artifact.stored import Artifact
from matu.errors import ConfigError


def drop(artifact: Artifact, task: str) -> Artifact:
    """The artifact without a task; the others stay as they are to the last bit.

    In a unified vector, entries that no other task's mask has become zero. At entries that it shared the
    dropped task had a say in sign and magnitude, and that stays.

    Raises
    ------
    ConfigError
        If it is the only task.
    """
    if len(artifact.tasks) == 1:
        raise ConfigError(f"--task {task}: the artifact's only task; delete the artifact instead")
    packed = artifact.packed
    kept = [i for i, name in enumerate(packed.tasks) if name != task]
    names = tuple(packed.tasks[i] for i in kept)
    tensors = {name: t for name, t in packed.tensors.items() if name not in (f"vector/{task}", f"head/{task}")}
    tensors |= {name: tensors[name][kept] for name in ("rescalers", "masks") if name in tensors}
    rest = Packed(names, packed.dim, tensors)
    if not rest.separate:
        used = torch.zeros(packed.dim, dtype=torch.bool)
        for name in names:
            used |= rest.mask(name)
        tensors["vector"] = torch.where(used, tensors["vector"], 0)
    note = _changed(artifact, f"without {task}")
    del note["tasks"][task]
    return Artifact(note, rest)


def negate(artifact: Artifact, task: str, scale: float) -> Artifact:
    """The artifact with −scale times a task's vector in its place: task negation (Ilharco et al. 2023).

    It is for making a model worse at a task, by exporting the task and adding it. Its head and the other tasks stay.

    Raises
    ------
    ConfigError
        For a scale that is not positive.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"--negate {scale}: expected more than 0")
    packed = artifact.packed
    rescalers: Tensor = packed.tensors["rescalers"].clone()
    rescalers[packed.tasks.index(task)] *= -scale
    note = _changed(artifact, f"{task} negated, scale {scale:g}")
    note["tasks"][task]["accuracy"] = {}
    return Artifact(note, Packed(packed.tasks, packed.dim, {**packed.tensors, "rescalers": rescalers}))


def _changed(artifact: Artifact, what: str) -> dict[str, Any]:
    note = copy.deepcopy(artifact.note)
    note["provenance"]["changes"].append(what)
    return note
