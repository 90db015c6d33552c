"""Whole fused blocks against the library's own modules with PEFT's layers in them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from matu.models import AdaptedModel, load_backbone
from matu.models.vit_block import FusedBlock
from world import SIZE

IMAGES = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def adapted(vit: Path, *targets: str, low: bool = False) -> AdaptedModel:
    return AdaptedModel(
        load_backbone(str(vit), image_size=SIZE), rank=3, alpha=6.0, targets=targets or ("query", "key", "value"),
        adapter_seed=0, device=torch.device("cpu"), low_precision=low, start_b=0.2,
    )  # fmt: skip


def features_and_gradient(model: AdaptedModel) -> tuple[torch.Tensor, torch.Tensor]:
    assert model.parameters.grad is not None
    model.parameters.grad.zero_()
    features = model.features(IMAGES).float()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), model.parameters.grad.clone()


@pytest.mark.parametrize("targets", [("query", "key", "value"), ("query", "value"), ("key",)])
@pytest.mark.parametrize(("low", "tolerance"), [(False, 2e-6), (True, 2e-2)])
def test_features_and_gradients_are_those_of_plain_modules(
    tiny_vit: Path, targets: tuple[str, ...], low: bool, tolerance: float
) -> None:
    model = adapted(tiny_vit, *targets, low=low)
    assert all(isinstance(block, FusedBlock) for block in model._fused)
    fused = features_and_gradient(model)
    model.compute_together(False)
    plain = features_and_gradient(model)
    assert plain[1].abs().max() > 0
    for found, expected in zip(fused, plain, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
    with torch.inference_mode():
        model.compute_together(True)
        assert torch.equal(model.features(IMAGES).float(), fused[0])


def test_the_last_block_works_on_the_class_token_alone(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    assert [block.read for block in model._fused if isinstance(block, FusedBlock)] == [0, 1]
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    assert model.model(pixels).last_hidden_state.shape[1] == 1
    model.compute_together(False)
    assert model.model(pixels).last_hidden_state.shape[1] == 5


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}])
def test_blocks_of_another_kind_are_left_to_the_library(tmp_path: Path, change: dict[str, str]) -> None:
    plain = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config: dict[str, Any] = {**plain, "image_size": SIZE, "patch_size": 4, **change}
    ViTModel(ViTConfig(**config)).save_pretrained(tmp_path)
    model = adapted(tmp_path)
    assert not any(isinstance(group, FusedBlock) for group in model._fused)
    assert model.parameters.grad is not None
    features_and_gradient(model)
    assert model.parameters.grad.any()


def test_other_lora_layers_than_query_key_and_value_are_left_to_the_general_form(tiny_vit: Path) -> None:
    assert not any(isinstance(group, FusedBlock) for group in adapted(tiny_vit, "query", "fc1")._fused)
