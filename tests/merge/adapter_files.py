"""PEFT adapter folders written by hand, and their weight changes as full matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BASE = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
SIZES = {"layer.0.q": (5, 6), "layer.1.q": (7, 6)}


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """An adapter folder; names are without PEFT's prefix."""
    folder.mkdir(parents=True)
    save_file({f"base_model.model.{name}": t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(BASE | config))
    return folder


def draw_adapter(
    seed: int, *, rank: int = 2, sizes: Mapping[str, tuple[int, int]] = SIZES, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random matrices A and B."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for module, (rows, columns) in sizes.items():
        found[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=draw).to(dtype)
        found[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=draw).to(dtype)
    return found


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder, by name without PEFT's prefix."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def change(tensors: Mapping[str, Tensor], module: str, scale: float) -> Tensor:
    """scale · B · A, float64, as a full matrix."""
    a, b = (tensors[f"{module}.lora_{x}.weight"].double().flatten(1) for x in "AB")
    return scale * b @ a
