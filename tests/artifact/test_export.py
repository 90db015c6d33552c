"""Exported adapters, used by plain Transformers and PEFT in a process that has no matu."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    SwinConfig,
    SwinModel,
)

from artifact_cases import CLASSES, leave_artifact
from matu.artifact import Artifact, load_artifact
from matu.artifact.export import export
from matu.artifact.forget import negate
from matu.artifact.predict import predict
from matu.cli import run_command
from matu.errors import ConfigError
from matu.merge import merge
from matu.tasks.images import decode
from matu.vectors import unify

STRANGER = """
import json, sys
from pathlib import Path
class NoMatu:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matu":
            raise ImportError("this process has no matu")
sys.meta_path.insert(0, NoMatu())
import os
found = {}
for folder, code in json.load(sys.stdin).items():
    os.chdir(folder)
    names = {}
    exec(code, names)
    found[folder] = names["logits"].tolist()
assert "matu" not in sys.modules
print(json.dumps(found), file=sys.stderr)
"""


@dataclass
class Case:
    """An export: of which artifact, of which tasks, how."""

    backbone: str
    tasks: tuple[str, ...] = ("right",)
    size: int = 8
    method: str = "matu"
    merged: bool = False
    scale: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)


CASES = {
    "all": Case("tiny-vit", tuple(CLASSES)),
    "separate": Case("tiny-vit", method="matu_plus"),
    "negated": Case("tiny-vit", scale=0.5),
    "start": Case("tiny-vit", model={"start_b": 0.1, "adapter_seed": 3}),
    "larger": Case("tiny-vit", size=16),
    "merged": Case("tiny-vit", size=16, merged=True),
    "bundled": Case("vit-mini", size=32),
    "bundled-all": Case("vit-mini", tuple(CLASSES), size=32),
    "dinov2": Case("dinov2", size=16),
    "beit": Case("beit", size=16),
    "beit-merged": Case("beit", size=16, merged=True),
    "swin": Case("swin", size=16),
    "ijepa": Case("ijepa", size=16),
}


@pytest.fixture(scope="module")
def models(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbones of three families: an image classifier reads ViT as matu does, DINOv2 and more, BEiT otherwise."""
    root = tmp_path_factory.mktemp("models")
    (root / "tiny-vit").symlink_to(tiny_vit)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(root / "dinov2")
    BeitModel(BeitConfig(**sizes, intermediate_size=32)).save_pretrained(root / "beit")
    IJepaModel(IJepaConfig(**sizes, intermediate_size=32)).save_pretrained(root / "ijepa")
    swin = {"embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 2, "image_size": 16, "patch_size": 4}
    SwinModel(SwinConfig(**swin)).save_pretrained(root / "swin")
    return root


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not square, without loss, whatever its name says."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)).save(path, format="PNG")
    return path


def logits(artifact: Artifact, task: str, models: Path, photo: Path) -> list[list[float]]:
    """By matu."""
    trainer, weights = artifact.trainer(models_root=models), artifact.weights(task)
    trainer.model.load(weights.vector)
    found = trainer.predict_as_is(weights.head, decode(photo, trainer.model.backbone.image_size)[None])
    return found.tolist()


def test_plain_libraries_give_equal_logits_as_the_readme_says(
    models: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, expected = {}, {}
    for name, case in CASES.items():
        monkeypatch.chdir(models)
        leave_artifact(tmp_path / name / "a", case.backbone, method=case.method, size=case.size, **case.model)
        artifact = load_artifact(tmp_path / name / "a")
        if case.scale:
            artifact = negate(artifact, case.tasks[0], case.scale)
        places = {task: task if len(case.tasks) > 1 else "." for task in case.tasks}
        export(artifact, places, tmp_path / name / "to", models_root=models, merged=case.merged)
        for task, place in places.items():
            folder = tmp_path / name / "to" / place
            (folder / "photo.jpg").write_bytes(photo.read_bytes())
            (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
            codes[str(folder)] = code.replace(f'backbone = "{case.backbone}"', f'backbone = "{models / case.backbone}"')
            expected[str(folder)] = logits(artifact, task, models, photo)
    ended = subprocess.run(
        [sys.executable, "-c", STRANGER], input=json.dumps(codes), capture_output=True, text=True, timeout=280,
        env={"PATH": "/usr/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    beside = {name for name in CASES if (tmp_path / name / "to/head.safetensors").is_file()}
    assert beside == {"beit", "beit-merged"}, "elsewhere the library's own classifier holds the head"
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stderr.splitlines()[-1])
    assert set(found) == set(expected)
    for folder, values in expected.items():
        assert np.allclose(found[folder], values, rtol=1e-4, atol=1e-4), folder
    assert ended.stdout.splitlines() == [f"bar-{int(np.argmax(values))}" for values in expected.values()]


def odd_images() -> dict[str, tuple[Image.Image, str]]:
    """Images whose pixels plain `.convert("RGB")` would read otherwise, and the file format of each."""
    draw = np.random.default_rng(1)
    grey = draw.integers(0, 65536, (40, 52), np.uint16)
    rgba = draw.integers(0, 256, (40, 52, 4), np.uint8)
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    palette.info["transparency"] = 3
    smooth = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((400, 300))
    return {
        "16 bits": (Image.fromarray(grey), "PNG"), "16 bits in 32": (Image.fromarray(grey), "PPM"),
        "rgba": (Image.fromarray(rgba), "PNG"), "grey and alpha": (Image.fromarray(rgba[..., :2], "LA"), "PNG"),
        "palette": (palette, "PNG"), "cmyk": (Image.fromarray(rgba, "CMYK"), "JPEG"),
        "bits": (Image.fromarray(rgba[..., 0]).convert("1"), "PNG"), "large": (smooth, "JPEG"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own
def test_the_readme_reads_images_of_any_kind_as_matu_does(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    leave_artifact(tmp_path / "a", "tiny-vit")
    artifact = load_artifact(tmp_path / "a")
    export(artifact, {"left": "."}, tmp_path / "to", models_root=models)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "to/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "to")
    places = {kind: tmp_path / f"{kind}.file" for kind in odd_images()}
    for kind, (image, form) in odd_images().items():
        image.save(places[kind], form)
    said = predict(artifact, artifact.trainer(models_root=models), "left", list(places.values()), top=3)
    for place, found in zip(places.values(), said, strict=True):
        shutil.copy(place, "photo.jpg")
        names: dict[str, Any] = {}
        exec(code.replace('backbone = "tiny-vit"', f'backbone = "{models / "tiny-vit"}"'), names)
        shares = names["logits"].softmax(dim=1)[0].tolist()
        expected = dict(found.top)
        assert np.allclose(shares, [expected[f"bar-{i}"] for i in range(3)], atol=1e-6), place.stem


def test_an_adapter_is_of_the_standard_form_and_names_no_path(models: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "a", str(models / "tiny-vit"))
    export(load_artifact(tmp_path / "a"), {"left": "."}, tmp_path / "to", models_root=models)
    names = {path.name for path in (tmp_path / "to").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "matu.json"}
    stated = json.loads((tmp_path / "to/adapter_config.json").read_text())
    assert stated["peft_type"] == "LORA"
    assert (stated["r"], stated["lora_alpha"], stated["base_model_name_or_path"]) == (4, 4.0, "tiny-vit")
    assert stated["modules_to_save"] == ["classifier"]
    assert json.loads((tmp_path / "to/config.json").read_text())["id2label"] == {str(i): f"bar-{i}" for i in range(3)}
    for path in (tmp_path / "to").glob("*.json"):
        assert str(models) not in path.read_text()


def test_exported_adapters_merge_from_their_shared_start_and_come_back(models: Path, tmp_path: Path) -> None:
    weights = leave_artifact(tmp_path / "a", str(models / "tiny-vit"), start_b=0.1)
    artifact = load_artifact(tmp_path / "a")
    export(artifact, {task: task for task in artifact.tasks}, tmp_path / "to", models_root=models)
    note = merge({task: tmp_path / "to" / task for task in weights}, tmp_path / "merged")
    assert note["form"] == "shared_start"
    assert run_command(["export", str(tmp_path / "merged"), "--all", "--to", str(tmp_path / "back")]) == 0
    trained = torch.stack([artifact.vector(task) for task in weights])
    unified = unify(trained)
    start = artifact.trainer(models_root=models).model.start
    for row, task in enumerate(weights):
        tensors = load_file(tmp_path / "back" / task / "adapter_model.safetensors")
        back = torch.cat([tensors[name].flatten() for name in sorted(tensors) if "lora_" in name])
        torch.testing.assert_close(back, start + unified.modulate(row))
    assert run_command(["inspect", str(tmp_path / "merged")]) == 2
    assert run_command(["export", str(tmp_path / "merged"), "--task", "none", "--to", str(tmp_path / "no")]) == 2


def test_what_peft_cannot_compute_is_refused_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "linear", str(models / "tiny-vit"), method="ntk_fedavg")
    with pytest.raises(ConfigError, match="linear in the adapter"):
        export(load_artifact(tmp_path / "linear"), {"left": "."}, tmp_path / "to", models_root=models)
    leave_artifact(tmp_path / "a", str(models / "tiny-vit"), classes={"..": 3, "b": 3})
    with pytest.raises(ConfigError, match="no name for a folder"):
        export(load_artifact(tmp_path / "a"), {"..": ".."}, tmp_path / "to", models_root=models)
    with pytest.raises(ConfigError, match="fits no other"):
        export(load_artifact(tmp_path / "a"), {"b": "."}, tmp_path / "to", backbone="beit", models_root=models)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "linear"}
    (tmp_path / "to").mkdir()
    (tmp_path / "to/mine").write_text("kept")
    with pytest.raises(ConfigError, match="not empty"):
        export(load_artifact(tmp_path / "a"), {"b": "."}, tmp_path / "to", models_root=models)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["mine"]
