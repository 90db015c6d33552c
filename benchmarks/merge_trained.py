"""What merging does to trained adapters: real tasks on a ViT-Tiny, by plain PEFT, merged in every way.

MATU_DATA=... MATU_MODELS=... python benchmarks/merge_trained.py --adapters DIR [--steps 120] [--out FILE]

Each task gets two adapters (rank 16, AdamW, rate 1e-3, batch 48, 64 px): one from a start that all tasks share, and one
from a start of its own. They stay in DIR, and what is there is not trained again. Accuracy is on 200 test images of a
task; heads are each task's own throughout.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import ViTForImageClassification

from matu.merge import merge, restore

TASKS = ("intel_scenes", "stanford_cars", "aid", "eurosat", "mnist_m")
BACKBONE, SIZE = "vit-tiny-patch16-224", 64
WAYS: dict[str, dict[str, Any]] = {
    "unify": {}, "unify, rank 48": {"rank": 48}, "ties": {"method": "ties"}, "mean": {"method": "mean"},
    "no adapter": {"method": "task_arithmetic", "scale": 0.0},
}  # fmt: skip


def images(task: str, split: str, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pixels, normalised [n, 3, 64, 64], and labels of randomly chosen images."""
    table = pq.read_table(Path(os.environ["MATU_DATA"]) / task / f"{split}.parquet")
    table = table.take(draw.permutation(len(table))[:count])
    decoded = (Image.open(io.BytesIO(row["bytes"])) for row in table["image"].to_pylist())
    pixels = np.stack([np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in decoded])
    labels = torch.tensor(table["label"].to_pylist())
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5, labels


def backbone(classes: int) -> ViTForImageClassification:
    """The pretrained model with a new head, always the same one."""
    torch.manual_seed(0)
    folder = Path(os.environ["MATU_MODELS"]) / BACKBONE
    return ViTForImageClassification.from_pretrained(folder, num_labels=classes, ignore_mismatched_sizes=True)


def train(task: str, seed: int, steps: int, to: Path) -> None:
    """One adapter; what it started from goes to `start/` beside it."""
    draw = np.random.default_rng(0)
    pixels, labels = images(task, "train", 4096, draw)
    model = backbone(int(labels.max()) + 1)
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "query", "key", "value"]
    config = LoraConfig(r=16, lora_alpha=16, target_modules=targets, modules_to_save=["classifier"])
    lora = get_peft_model(model, config)
    if not (to.parent / "start").exists():
        lora.save_pretrained(str(to.parent / "start"))
    optimiser = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    for _ in range(steps):
        batch = torch.from_numpy(draw.integers(0, len(labels), 48))
        logits = lora(pixel_values=pixels[batch], interpolate_pos_encoding=True).logits
        loss = torch.nn.functional.cross_entropy(logits, labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    lora.save_pretrained(str(to))


@torch.no_grad()
def accuracy(task: str, adapter: Path) -> float:
    """Share of 200 test images that an adapter gets right."""
    pixels, labels = images(task, "test", 200, np.random.default_rng(0))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        classes = file.get_slice("base_model.model.classifier.weight").get_shape()[0]
    lora = PeftModel.from_pretrained(backbone(classes), str(adapter)).eval()
    found = [lora(pixel_values=part, interpolate_pos_encoding=True).logits.argmax(1) for part in pixels.split(100)]
    return float((torch.cat(found) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for i, task in enumerate(TASKS):
        for start, seed in {"same": 0, "different": 100 + i}.items():
            if not (a.adapters / start / task).exists():
                train(task, seed, a.steps, a.adapters / start / task)
    record: dict[str, Any] = {"steps": a.steps, "torch": torch.__version__}
    for start in ("same", "different"):
        folders = {task: a.adapters / start / task for task in TASKS}
        alone = {task: accuracy(task, folder) for task, folder in folders.items()}
        print(f"{start}: alone {100 * sum(alone.values()) / len(alone):.1f} %", flush=True)
        record[start] = {"alone": {"accuracy": alone}}
        ways = dict(WAYS)
        if start == "same":
            ways |= {f"{way}, start given": options | {"shared_start": a.adapters / "same" / "start"}
                     for way, options in WAYS.items() if "rank" not in options and "scale" not in options}  # fmt: skip
        for way, options in ways.items():
            record[start][way] = row = merged(folders, options)
            tasks = row["note"]["tasks"].values()
            cosine, error = (
                sum(t[key] or 0.0 for t in tasks) / len(TASKS) for key in ("weight_cosine", "factorisation_error")
            )
            mean = 100 * sum(row["accuracy"].values()) / len(TASKS)
            size = row["note"]["sizes"]
            lora = {what: size[f"{what}_bytes"] - size["heads_bytes"] for what in ("adapters", "merged")}
            print(f"{start}: {way:30s} {mean:5.1f} %  weight cosine {cosine:.3f}  factorisation error {error:.3f}  "
                  f"1/{lora['adapters'] / lora['merged']:.1f} of the bytes, heads aside", flush=True)  # fmt: skip
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


def merged(folders: dict[str, Path], options: dict[str, Any]) -> dict[str, Any]:
    """Merge, give every task's adapter back, and try it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "merged"
        note = merge(folders, out, **options)
        note.pop("adapter_config")
        note["base_model"]["name"] = BACKBONE
        found = {}
        for task in folders:
            restore(out, task, Path(scratch) / task)
            found[task] = accuracy(task, Path(scratch) / task)
    return {"accuracy": found, "note": note}


if __name__ == "__main__":
    main()
