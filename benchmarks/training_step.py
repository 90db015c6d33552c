"""Training images a second: PEFT's own forward, the fused forms, and linearised features.

python benchmarks/training_step.py [--backbone vit-mini] [--image-size 32] [--batch 64] [--threads 1] [--out FILE]

All run in turn on the same model, images and batches; what is printed is the best of the repeats, in images per second
of processor time, which other work on the machine disturbs least. The task vectors of the first two are compared first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from matu.config import MachineConfig, ModelConfig, RunConfig, TasksConfig
from matu.tasks import Split
from matu.training import Objective, Trainer, Weights, build_trainer, prepare_machine
from watch import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit-mini")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    config = RunConfig(
        tasks=TasksConfig(image_size=asked.image_size), model=ModelConfig(backbone=asked.backbone),
        machine=MachineConfig(threads=asked.threads, precision=asked.precision),
    )  # fmt: skip
    models = os.environ.get("MATU_MODELS")
    trainer = build_trainer(config, Path(models) if models else None, prepare_machine(config.machine), asked.precision)
    pixels = np.random.default_rng(0).integers(0, 256, (asked.batch, asked.image_size, asked.image_size, 3), np.uint8)
    split = Split(pixels, np.arange(asked.batch, dtype=np.int64) % 10)
    vectors = {form: train(trainer, split, form, 2)[0] for form in ("peft", "together", "linearised")}
    cosine = float(torch.cosine_similarity(vectors["peft"], vectors["together"], dim=0))
    best = dict.fromkeys(vectors, 0.0)
    for _ in range(asked.repeats):
        for form in best:
            seconds = train(trainer, split, form, asked.steps)[1]
            best[form] = max(best[form], asked.steps * asked.batch / seconds)
    found = {
        **{name: value for name, value in vars(asked).items() if name != "out"},
        "images_per_processor_second": {form: round(rate, 1) for form, rate in best.items()},
        "ratio": round(best["together"] / best["peft"], 3),
        "ratio_linearised": round(best["linearised"] / best["together"], 3), "cosine_of_task_vectors": round(cosine, 5),
        "torch": torch.__version__, "processor": processor(), "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def train(trainer: Trainer, split: Split, form: str, steps: int) -> tuple[torch.Tensor, float]:
    """Task vector and processor seconds of some steps in one of the forms."""
    trainer.model.compute_together(form != "peft")
    trainer = replace(trainer, objective=Objective(linearised=form == "linearised"))
    weights = Weights(torch.zeros(trainer.model.dim), torch.zeros(10, trainer.model.backbone.features + 1))
    began = time.process_time()
    trained, _ = trainer.train(weights, split, np.arange(len(split.labels)), np.random.default_rng(0), steps=steps)
    return trained.vector, time.process_time() - began


if __name__ == "__main__":
    main()
