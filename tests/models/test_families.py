"""Backbones other than ViT: loaded, adapted, trained a step, at the checkpoint's size and at others."""

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    SwinConfig,
    SwinModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from matu.errors import ConfigError, DataError
from matu.models import AdaptedModel, load_backbone

PLAIN = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
FAMILIES = {
    "deit": lambda: DeiTModel(DeiTConfig(**PLAIN)),
    "beit": lambda: BeitModel(BeitConfig(**PLAIN)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**{k: v for k, v in PLAIN.items() if k != "intermediate_size"})),
    "swin": lambda: SwinModel(
        SwinConfig(embed_dim=16, depths=[1], num_heads=[2], window_size=2, image_size=16, patch_size=4)
    ),
    "ijepa": lambda: IJepaModel(IJepaConfig(**PLAIN)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_and_trains_at_any_size_its_patches_divide(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(tmp_path)
    for size in (16, 8, 32):
        model = AdaptedModel(
            load_backbone(str(tmp_path), image_size=size), rank=2, alpha=2.0, targets=("query", "key", "value"),
            adapter_seed=0, device=torch.device("cpu"), low_precision=False,
        )  # fmt: skip
        images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
        features = model.features(images)
        assert features.shape == (2, model.backbone.features)
        (features * torch.randn(features.shape)).sum().backward()
        assert model.parameters.grad.any()


def test_an_encoder_without_a_class_token_is_read_at_all_places(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    swin = FAMILIES["swin"]().eval()
    swin.save_pretrained(tmp_path / "swin")
    FAMILIES["ijepa"]().save_pretrained(tmp_path / "ijepa")
    with torch.no_grad():
        found = load_backbone(str(tmp_path / "swin"), image_size=16).encode(pixels)
        torch.testing.assert_close(found, swin(pixel_values=pixels).pooler_output)
        ijepa = load_backbone(str(tmp_path / "ijepa"), image_size=16)
        hidden = ijepa.module(pixel_values=pixels).last_hidden_state
    assert hidden.shape[1] == 16
    torch.testing.assert_close(ijepa.encode(pixels), hidden.mean(1))


def test_an_encoder_whose_features_are_drawn_is_refused(tmp_path: Path) -> None:
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    ViTMAEModel(ViTMAEConfig(**PLAIN, **decoder)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the same image has other features every time"):
        load_backbone(str(tmp_path), image_size=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_has_the_features_of_its_images_one_by_one(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(tmp_path)
    model = AdaptedModel(
        load_backbone(str(tmp_path), image_size=16), rank=2, alpha=3.0, targets=("query", "key", "value"),
        adapter_seed=0, device=torch.device("cpu"), low_precision=False,
    )  # fmt: skip
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    vectors = torch.randn(5, model.dim)
    mixed = model.mixed_features(images, lambda at: (model.start + vectors)[:, at])
    for image, vector, found in zip(images, vectors, mixed, strict=True):
        model.load(vector)
        torch.testing.assert_close(found, model.features(image[None])[0].detach(), rtol=1e-4, atol=1e-5)


def test_code_that_a_backbones_folder_brings_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would ask whether to run it; nobody is asked, and a "y" on stdin answers nothing."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "conf.Mine", "AutoModel": "conf.Model"}})
    )
    (tmp_path / "conf.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_backbone(str(tmp_path), image_size=32)
    assert not (tmp_path / "ran").exists()
