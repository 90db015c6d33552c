"""The bundled backbone's files, and the script that trained them."""

import importlib.util
import json
import os
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, ViTForImageClassification

FOLDER = Path(str(resources.files("matu.models") / "vit_mini"))
SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"


@pytest.fixture(scope="module")
def pretrain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain"] = module
    spec.loader.exec_module(module)
    return module


def test_files_are_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000


def test_every_weight_is_finite_and_trained() -> None:
    weights = load_file(FOLDER / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert all(value.float().abs().sum() > 0 for value in weights.values())


def test_normalisation_is_recorded() -> None:
    recorded = json.loads((FOLDER / "preprocessor_config.json").read_text())
    assert (recorded["image_mean"], recorded["image_std"]) == ([0.5] * 3, [0.5] * 3)
    assert recorded["size"] == {"height": 32, "width": 32}


def test_encoder_loads_in_float32() -> None:
    model = AutoModel.from_pretrained(FOLDER, add_pooling_layer=False)
    assert model.dtype == torch.float32
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        hidden = model(pixel_values=pixels).last_hidden_state
    assert hidden.shape == (2, 65, 192)
    assert torch.isfinite(hidden).all()
    assert not torch.allclose(hidden[0], hidden[1])


def test_head_tells_200_classes() -> None:
    model = ViTForImageClassification.from_pretrained(FOLDER)
    with torch.inference_mode():
        logits = model(pixel_values=torch.zeros(1, 3, 32, 32)).logits
    assert logits.shape == (1, 200)


@pytest.mark.real
def test_accuracy_on_its_test_split(pretrain: ModuleType) -> None:
    folder = os.environ.get("MATU_PRETRAIN")
    if not folder:
        pytest.skip("MATU_PRETRAIN names no folder with test.parquet")
    images, labels = pretrain.decode_parquet(Path(folder) / "test.parquet")
    scores = pretrain.evaluate(ViTForImageClassification.from_pretrained(FOLDER), images, labels)
    assert scores["top1"] >= 0.30
    assert scores["top5"] > scores["top1"]


def test_shift_and_mirror_by_hand(pretrain: ModuleType) -> None:
    row = np.arange(4, dtype=np.uint8)
    images = np.broadcast_to(row, (200, 3, 4, 4))
    moved = pretrain.augment(images, 1, np.random.default_rng(0))
    seen = {tuple(image[0, 0].tolist()) for image in moved}
    straight = {(0, 1, 2, 3), (1, 2, 3, 2), (1, 0, 1, 2)}
    assert seen == straight | {shifted[::-1] for shifted in straight}
    assert (moved == moved[:, :1, :1]).all()


def test_rate_rises_stays_and_falls(pretrain: ModuleType) -> None:
    options = pretrain.Options(data=Path(), work=Path(), out=Path(), warmup=0.1, cooldown=0.5)
    rates = [pretrain.rate_at(progress, options) for progress in (0.05, 0.3, 0.75, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_resuming_gives_the_same_weights(pretrain: ModuleType, tmp_path: Path) -> None:
    options = pretrain.Options(
        data=tmp_path, work=tmp_path, out=tmp_path / "out", epochs=2, batch=8, dim=16, layers=1, heads=2, mlp=16
    )
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), rng.integers(0, 4, 24)

    def start() -> tuple[torch.nn.Module, dict[str, torch.optim.Optimizer]]:
        model = pretrain.build_model(options, 4)
        return model, pretrain.build_optimizers(model, options)

    def train(model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer], epoch: int) -> None:
        pretrain.train_epoch(pretrain.logits_of, model, optimizers, data, options, epoch, print)

    first = start()
    train(*first, epoch=0)
    state = {"epochs_done": 1, "seconds": 1.5, "history": [{"top1": 0.25, "top5": 1.0}]}
    pretrain.save_checkpoint(tmp_path / "checkpoint.safetensors", *first, state)
    train(*first, epoch=1)
    second = start()
    assert pretrain.load_checkpoint(tmp_path / "checkpoint.safetensors", *second) == state
    train(*second, epoch=1)
    for (name, wanted), got in zip(first[0].named_parameters(), second[0].parameters(), strict=True):
        assert torch.equal(wanted, got), name


def test_decoding_refuses_other_sizes(pretrain: ModuleType, tmp_path: Path) -> None:
    from io import BytesIO

    import pyarrow as pa
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (31, 32)).save(buffer, "png")
    table = pa.table({"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet, row 0: image of 31 x 32"):
        pretrain.decode_parquet(tmp_path / "train.parquet")
