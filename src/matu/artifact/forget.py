"""An artifact without one of its tasks, or with one turned around."""

from __future__ import annotations

import copy
from typing import Any

import torch

from matu.artifact.packed import Packed
from matu.artifact.stored import Artifact
from matu.errors import ConfigError
from matu.wire import MAX_RESCALER


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
    """The artifact with a task's weight change B·A times −scale: task negation (Ilharco et al. 2023).

    B alone takes the factor; were A's part of the vector to take it too, B·A would keep its sign to second order. The
    task's head and the other tasks stay.

    Raises
    ------
    ConfigError
        For a scale that is not positive or too large, or an adapter whose B does not start at 0: its change is no
        product B·A.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"--negate {scale}: expected more than 0")
    if artifact.note["adapter"]["lora"]["start_b"]:
        raise ConfigError(
            "--negate: B does not start at 0 here (start_b), so no adapter has the negative weight change"
        )
    note = _changed(artifact, f"{task} negated, scale {scale:g}")
    note["tasks"][task]["scale"] *= -scale
    if abs(note["tasks"][task]["scale"]) > MAX_RESCALER:
        raise ConfigError(f"--negate {scale:g}: the task's scale would be beyond {MAX_RESCALER:g}")
    note["tasks"][task]["accuracy"] = {}
    return Artifact(note, artifact.packed)


def _changed(artifact: Artifact, what: str) -> dict[str, Any]:
    note = copy.deepcopy(artifact.note)
    note["provenance"]["changes"].append(what)
    return note
