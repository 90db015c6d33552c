"""LoRA on a frozen ViT as PEFT's and Transformers' own examples write it: what both rivals train with.

A world is a folder that benchmarks/simulation.py leaves: world.json, and every task's decoded images as NumPy files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import ViTForImageClassification
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def read_world(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "world.json").read_text())


class Images(Dataset):
    """A split of a task, or a client's share of it, normalised."""

    def __init__(self, folder: Path, world: dict[str, Any], task: str, split: str, indices: list[int] | None = None):
        self.images = np.load(folder / f"{task}-{split}-images.npy", mmap_mode="r")
        self.labels = np.load(folder / f"{task}-{split}-labels.npy")
        self.indices = range(len(self.labels)) if indices is None else indices
        self.mean, self.std = (torch.tensor(world[name]).view(3, 1, 1) for name in ("mean", "std"))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[self.indices[at]].copy()).permute(2, 0, 1) / 255
        return (image - self.mean) / self.std, int(self.labels[self.indices[at]])


def get_model(world: dict[str, Any], task: str) -> torch.nn.Module:
    torch.manual_seed(0)
    vit = ViTForImageClassification.from_pretrained(
        world["backbone"], num_labels=world["classes"][task], ignore_mismatched_sizes=True
    )
    # A head starts as ours does; a random one takes many rounds of few steps to forget.
    torch.nn.init.zeros_(vit.get_parameter("classifier.weight"))
    lora = LoraConfig(
        r=world["rank"], lora_alpha=world["alpha"], target_modules=["q_proj", "k_proj", "v_proj"],
        modules_to_save=["classifier"],
    )  # fmt: skip
    return get_peft_model(vit, lora)


def logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels, interpolate_pos_encoding=True).logits


def train(model: torch.nn.Module, data: Images, world: dict[str, Any], *, bf16: bool) -> None:
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=world["learning_rate"], weight_decay=0.0)
    for _ in range(world["epochs"]):
        for pixels, labels in DataLoader(data, batch_size=world["batch_size"], shuffle=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = cross_entropy(logits(model, pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, world["gradient_clip"])
            optimizer.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Images, *, bf16: bool) -> float:
    model.eval()
    right = 0
    for pixels, labels in DataLoader(data, batch_size=250):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            right += int((logits(model, pixels).argmax(1) == labels).sum())
    return right / len(data)
