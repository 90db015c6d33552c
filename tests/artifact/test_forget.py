"""Artifacts without a task, or with a task turned around."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from artifact_cases import leave_artifact
from matu.artifact import Artifact, load_artifact
from matu.artifact.forget import drop, negate
from matu.errors import ConfigError

METHODS = ("matu", "matu_plus")


@pytest.mark.parametrize("method", METHODS)
def test_a_dropped_task_is_gone_and_the_others_are_as_they_were(tiny_vit: Path, tmp_path: Path, method: str) -> None:
    leave_artifact(tmp_path / "before", str(tiny_vit), method=method)
    before = load_artifact(tmp_path / "before")
    drop(before, "middle").write(tmp_path / "after")
    after = load_artifact(tmp_path / "after")
    assert after.tasks == ("left", "right")
    for task in after.tasks:
        assert torch.equal(after.weights(task).vector, before.weights(task).vector)
        assert torch.equal(after.weights(task).head, before.weights(task).head)
        assert after.classes(task) == before.classes(task)
    assert after.note["provenance"]["changes"] == ["without middle"]
    assert "middle" not in after.note["tasks"]
    assert not [name for name in after.packed.tensors if "middle" in name]


def test_what_only_the_dropped_task_used_of_a_unified_vector_is_zero(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit))
    before = load_artifact(tmp_path)
    after = drop(before, "middle").packed.tensors["vector"]
    used = before.packed.mask("left") | before.packed.mask("right")
    alone = before.packed.mask("middle") & ~used
    assert alone.any()
    assert not after[~used].any()
    assert torch.equal(after[used], before.packed.tensors["vector"][used])


def weight_changes(artifact: Artifact, task: str, models: Path) -> list[Tensor]:
    """B·A of every layer."""
    model = artifact.trainer(models_root=models).model
    model.load(artifact.vector(task))
    parts = model.layout.unflatten(model.parameters.detach())
    return [b @ parts[name.replace(".lora_B.", ".lora_A.")] for name, b in parts.items() if ".lora_B." in name]


@pytest.mark.parametrize("method", METHODS)
def test_a_negated_task_changes_weights_the_other_way(tiny_vit: Path, tmp_path: Path, method: str) -> None:
    leave_artifact(tmp_path / "before", str(tiny_vit), method=method)
    before = load_artifact(tmp_path / "before")
    negate(before, "left", 0.5).write(tmp_path / "after")
    after = load_artifact(tmp_path / "after")
    assert after.tasks == before.tasks
    changes = [weight_changes(one, "left", tiny_vit.parent) for one in (before, after)]
    assert len(changes[0]) == 6
    for there, here in zip(*changes, strict=True):
        assert there.any()
        torch.testing.assert_close(here, -0.5 * there)
    assert torch.equal(after.vector("right"), before.vector("right"))
    assert after.note["tasks"]["left"]["accuracy"] == {}, "what was measured is true no more"
    assert "left negated, scale 0.5" in (tmp_path / "after/README.md").read_text()
    twice = negate(after, "left", 2.0)
    assert torch.equal(twice.vector("left"), before.vector("left"))


def test_what_cannot_be_forgotten(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), classes={"left": 3})
    artifact = load_artifact(tmp_path)
    with pytest.raises(ConfigError, match="only task"):
        drop(artifact, "left")
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="--negate"):
            negate(artifact, "left", scale)
    leave_artifact(tmp_path / "start", str(tiny_vit), start_b=0.1)
    with pytest.raises(ConfigError, match="B does not start at 0"):
        negate(load_artifact(tmp_path / "start"), "left", 0.5)
