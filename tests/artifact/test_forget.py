"""Artifacts without a task, or with a task turned around."""

from pathlib import Path

import pytest
import torch
from artifact_cases import leave_artifact

from matu.artifact import load_artifact
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


@pytest.mark.parametrize("method", METHODS)
def test_a_negated_task_is_its_vector_times_minus_the_scale(tiny_vit: Path, tmp_path: Path, method: str) -> None:
    leave_artifact(tmp_path / "before", str(tiny_vit), method=method)
    before = load_artifact(tmp_path / "before")
    negate(before, "left", 0.5).write(tmp_path / "after")
    after = load_artifact(tmp_path / "after")
    assert after.tasks == before.tasks
    torch.testing.assert_close(after.packed.vector("left"), -0.5 * before.packed.vector("left"), rtol=1e-6, atol=0)
    assert torch.equal(after.packed.vector("right"), before.packed.vector("right"))
    assert after.note["tasks"]["left"]["accuracy"] == {}, "what was measured is true no more"
    assert "left negated, scale 0.5" in (tmp_path / "after/README.md").read_text()
    assert torch.equal(before.packed.vector("left"), load_artifact(tmp_path / "before").packed.vector("left"))


def test_what_cannot_be_forgotten(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), classes={"left": 3})
    artifact = load_artifact(tmp_path)
    with pytest.raises(ConfigError, match="only task"):
        drop(artifact, "left")
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="--negate"):
            negate(artifact, "left", scale)
