"""An artifact on disk: what is kept, how it is opened, what is refused."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from artifact_cases import CLASSES, leave_artifact
from matu.artifact import load_artifact
from matu.errors import ConfigError, DataError
from matu.vectors import unify


@pytest.fixture(scope="module")
def unified(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unified") / "artifact"
    leave_artifact(folder, str(tiny_vit))
    return folder


def test_the_unified_form_gives_what_unification_gives(tiny_vit: Path, tmp_path: Path) -> None:
    weights = leave_artifact(tmp_path / "run/artifact", str(tiny_vit))
    artifact = load_artifact(tmp_path / "run")
    expected = unify(torch.stack([one.vector for one in weights.values()]))
    assert artifact.tasks == tuple(CLASSES)
    for i, task in enumerate(CLASSES):
        assert torch.equal(artifact.weights(task).vector, expected.modulate(i))
        assert torch.equal(artifact.weights(task).head, weights[task].head)
        assert artifact.classes(task) == tuple(f"bar-{n}" for n in range(CLASSES[task]))
    stored = load_file(tmp_path / "run/artifact/artifact.safetensors")
    assert stored["masks"].dtype == torch.uint8
    assert stored["masks"].shape == (3, -(-expected.dim // 8))
    assert [bool(stored["masks"][1, j // 8] >> (j % 8) & 1) for j in range(20)] == expected.masks[1, :20].tolist()


def test_one_task_alone_comes_back_as_it_was(tiny_vit: Path, tmp_path: Path) -> None:
    weights = leave_artifact(tmp_path, str(tiny_vit), classes={"left": 3})
    assert torch.equal(load_artifact(tmp_path).weights("left").vector, weights["left"].vector)


@pytest.mark.parametrize("method", ["matu_plus", "per_task_fedavg"])
def test_where_the_server_has_a_vector_a_task_each_is_kept_in_few_bits(
    tiny_vit: Path, tmp_path: Path, method: str
) -> None:
    weights = leave_artifact(tmp_path, str(tiny_vit), method=method)
    artifact = load_artifact(tmp_path)
    assert artifact.note["form"] == "separate"
    for task, one in weights.items():
        found = artifact.weights(task)
        assert torch.cosine_similarity(found.vector, one.vector, dim=0) > 0.999
        assert torch.equal(found.head, one.head)
        assert artifact.packed.tensors[f"vector/{task}"].nbytes < 0.75 * len(one.vector)


def test_fedavg_is_one_vector_for_all(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), method="fedavg")
    assert load_artifact(tmp_path).note["form"] == "unified"


def test_the_note_says_all_that_is_needed(unified: Path, tiny_vit: Path) -> None:
    note = json.loads((unified / "artifact.json").read_text())
    assert (note["format"], note["kind"]) == (3, "federated")
    assert note["backbone"]["name"] == "tiny-vit"
    assert note["backbone"]["revision"] is None
    assert note["adapter"]["lora"] == {
        "rank": 4, "alpha": 4.0, "targets": ["query", "key", "value"], "adapter_seed": 0, "start_b": 0.0,
        "linearised": False,
    }  # fmt: skip
    sizes = [torch.zeros(shape).numel() for shape in note["adapter"]["parameters"].values()]
    assert sum(sizes) == note["adapter"]["dim"]
    assert note["preprocessing"]["image_size"] == 8
    assert note["tasks"]["left"] == {
        "classes": ["bar-0", "bar-1", "bar-2"], "source": "test:left", "sha256": "left-0",
        "accuracy": {"delivered": 0.5, "server": 0.75, "artifact": 0.7}, "scale": 1.0,
    }  # fmt: skip
    made = note["provenance"]
    assert (made["method"], made["seed"], made["rounds"], made["run"]) == ("matu", 0, 3, "5" * 64)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    trainer = load_artifact(unified).trainer(models_root=tiny_vit.parent)
    assert trainer.model.fingerprint == note["adapter"]["fingerprint"]
    assert trainer.model.backbone.digest == note["backbone"]["sha256"]


def test_the_card_has_what_the_hub_reads(unified: Path, tiny_vit: Path) -> None:
    text = (unified / "README.md").read_text()
    data = ModelCard(text).data
    assert data.license == "unknown"
    assert data.library_name == "matu"
    assert {"lora", "federated-learning"} <= set(data.tags)
    assert data.metrics == ["accuracy"]
    assert data.base_model is None, "a folder's name is no id of the hub"
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_value) == ("left", 0.7)
    assert "| left | 3 | 70.0 | 50.0 | 75.0 |" in text
    assert str(tiny_vit.parent) not in text


def test_a_hub_backbone_and_hub_datasets_are_in_the_card(unified: Path, tmp_path: Path) -> None:
    artifact = load_artifact(unified)
    artifact.note["backbone"] |= {"name": "someone/tiny-vit", "revision": "c" * 40}
    artifact.note["tasks"]["left"]["source"] = "hub:someone/bars/small@main"
    artifact.write(tmp_path)
    data = ModelCard((tmp_path / "README.md").read_text()).data
    assert (data.base_model, data.datasets) == ("someone/tiny-vit", ["someone/bars"])
    assert data.eval_results[0].dataset_type == "someone/bars"


def test_another_backbone_is_refused(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, "vit-mini", size=32)
    artifact = load_artifact(tmp_path)
    assert artifact.trainer().model.dim == artifact.packed.dim
    with pytest.raises(ConfigError, match=r"fits no other"):
        artifact.trainer(backbone=str(tiny_vit))


def edit(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A change of artifact.json."""

    def apply(folder: Path) -> None:
        note = json.loads((folder / "artifact.json").read_text())
        change(note)
        (folder / "artifact.json").write_text(json.dumps(note))

    return apply


def retensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change of the tensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "artifact.safetensors")
        change(tensors)
        save_file(tensors, folder / "artifact.safetensors")
        digest = hashlib.sha256((folder / "artifact.safetensors").read_bytes()).hexdigest()
        edit(lambda note: note.update(tensors_sha256=digest))(folder)

    return apply


def strange_type(folder: Path) -> None:
    """Tensors of a type that safetensors knows and torch does not."""
    header = json.dumps({"vector": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (folder / "artifact.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "artifact.json").unlink(), "no artifact"),
        (lambda folder: (folder / "artifact.json").write_text("{"), "no readable artifact"),
        (lambda folder: (folder / "artifact.json").write_text("[" * 99_999), "no readable artifact"),
        (lambda folder: (folder / "artifact.safetensors").unlink(), "no readable artifact"),
        (lambda folder: (folder / "artifact.safetensors").write_bytes(b"\x80" * 64), "no readable artifact"),
        (
            edit(lambda note: note.update(format=1)),
            "format 1, this version of matu reads 3; no other was ever released",
        ),
        (edit(lambda note: note.update(kind="merged", format=2)), "kind 'merged', .*matu export gives the adapters"),
        (
            edit(lambda note: note["tasks"]["left"].update(classes=["a", "\x1b[31mb"])),
            "left|printable text of one line",
        ),
        (edit(lambda note: note["provenance"].update(method="matu\n```python")), "printable text of one line"),
        (edit(lambda note: note["backbone"].pop("features")), "artifact.json: backbone: no 'features'"),
        (edit(lambda note: note["adapter"].update(dim="7")), "artifact.json: adapter: dim: '7', expected"),
        (edit(lambda note: note["adapter"].update(dim=7)), "dim 7, the parameters have 768"),
        (edit(lambda note: note["adapter"]["parameters"].update(z=[1 << 40])), "dim 768, the parameters have"),
        (edit(lambda note: note["adapter"]["lora"].update(rank=0)), "rank 0: expected 1 or more"),
        (edit(lambda note: note["tasks"]["left"].update(classes=[])), "no tasks, or one without classes"),
        (edit(lambda note: note["tasks"]["left"]["classes"].append("more")), "tensor 'head/left': .*expected .*4, 17"),
        (edit(lambda note: note["tasks"].pop("left")), "tensors 'head/left': missing, or of no task"),
        (edit(lambda note: note["tasks"]["left"]["accuracy"].update(server="good")), "left: accuracy: server: 'good'"),
        (edit(lambda note: note["tasks"]["left"].update(scale=float("nan"))), "left: scale: 'nan'"),
        (retensor(lambda tensors: tensors["vector"].fill_(float("nan"))), "tensor 'vector': not finite"),
        (retensor(lambda tensors: tensors.update(vector=torch.zeros(9))), r"tensor 'vector': torch.float32 \[9\]"),
        (retensor(lambda tensors: tensors.update(masks=torch.zeros(3, 96))), "tensor 'masks': torch.float32"),
        (retensor(lambda tensors: tensors.update(more=torch.zeros(1))), "tensors 'more': missing, or of no task"),
        (retensor(lambda tensors: tensors["rescalers"].neg_()), "rescalers .*: expected 0 to"),
        (edit(lambda note: note.update(form="separate")), "form 'separate', the tensors are unified"),
        (edit(lambda note: note.update(tensors_sha256="0" * 64)), "a write of both was cut short"),
        (edit(lambda note: note["adapter"]["lora"].update(rank=3000)), "expected two sides, one of them the rank 3000"),
        (edit(lambda note: note["adapter"]["parameters"].update(z=[-4, -4])), "dim 768, the parameters have|shape"),
        (edit(lambda note: note["preprocessing"].update(image_size=1 << 20)), "image_size 1048576, at most 8192"),
        (edit(lambda note: note["preprocessing"].update(mean=[])), "expected three numbers each"),
        (edit(lambda note: note["tasks"]["left"].update(scale=1e300)), r"scale 1e\+300, at most"),
        (edit(lambda note: note["backbone"].update(name="vit\nx: y")), "expected printable text of one line"),
        (strange_type, "no readable artifact"),
    ],
)
def test_what_is_no_artifact_is_refused_with_the_reason(
    unified: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    for name in ("artifact.json", "artifact.safetensors"):
        (tmp_path / name).write_bytes((unified / name).read_bytes())
    spoil(tmp_path)
    with pytest.raises(DataError, match=said) as raised:
        load_artifact(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_coded_vectors_are_not_believed(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path, str(tiny_vit), method="matu_plus")
    retensor(lambda tensors: tensors.update({"vector/left": tensors["vector/left"][:-3]}))(tmp_path)
    artifact = load_artifact(tmp_path)
    assert artifact.vector("right").any()
    with pytest.raises(DataError, match="bytes expected"):
        artifact.vector("left")
