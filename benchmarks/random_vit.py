"""Vision transformers of known sizes with random weights: what has to be timed needs no checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ViTConfig, ViTModel

from matu.models import Backbone

SIZES: dict[str, dict[str, Any]] = {
    "vit-toy": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                "patch_size": 8},
    "vit-tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
                 "patch_size": 16},
    "vit-b32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                "patch_size": 32},
}  # fmt: skip


def random_vit(name: str, image_size: int, attention: str = "eager") -> ViTModel:
    """A frozen ViT of one of `SIZES`, the same weights every time, in evaluation mode."""
    config = ViTConfig(image_size=image_size, **SIZES[name])
    torch.manual_seed(0)
    module = ViTModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    module.set_attn_implementation(attention)
    return module


def as_backbone(module: ViTModel, name: str) -> Backbone:
    """It as the backbone of a run: half and half are the ImageNet-21k checkpoints' mean and spread."""
    config: Any = module.config
    half = (0.5, 0.5, 0.5)
    return Backbone(
        module, f"{name}, random", "0" * 64, config.image_size, config.hidden_size, half, half, class_token=True
    )
