"""What the forms of an artifact cost: accuracy and bytes of one unified vector, and of a vector a task at so many bits.

python benchmarks/artifact_forms.py --run FOLDER --out FILE [--max-test N]

FOLDER is a run of a method that keeps an adapter a task at its server, with config.toml and checkpoint. All forms are
measured on the same test images, in float32. What FILE holds of other runs is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from matu.artifact import Packed, packed
from matu.config import read_config
from matu.training import Weights, build_trainer
from matu.wire import Numbers
from stopped import open_run
from watch import processor

BITS = ("3bit", "4bit", "5bit", "6bit", "8bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-test", type=int, default=0, help="most test images of a task; 0: those of the run")
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    config = read_config(asked.run / "config.toml")
    key = f"{config.federation.method}, {', '.join(config.tasks.tasks)}"
    found[key] = {"machine": processor(), **measure(asked.run, asked.max_test)}
    print(json.dumps(found[key], indent=1))
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(run: Path, max_test: int) -> dict[str, Any]:
    """By form: mean accuracy, the largest difference of a task to the server's own vectors, bytes."""
    opened, _, _, progress = open_run(run, max_test=max_test)
    tasks, state = list(opened.tasks.values()), progress.state
    server = {task.name: Weights(state[f"adapter/{task.name}"], state[f"head/{task.name}"]) for task in tasks}
    trainer = build_trainer(opened.config, opened.roots.models, torch.device("cpu"), "float32")

    def accuracies(weights: dict[str, Weights]) -> list[float]:
        return [trainer.accuracy(weights[task.name], task.test) for task in tasks]

    own = accuracies(server)
    forms: dict[str, Any] = {}
    for name in ("unified", *BITS):
        with patch.object(packed, "CODEC", Numbers(name if name != "unified" else "float32")):
            form = Packed.of(server, separate=name != "unified")
        there = accuracies(form.weights())
        forms[name] = {
            "accuracy": sum(there) / len(there),
            "largest_difference": max(abs(a - b) for a, b in zip(there, own, strict=True)),
            "bytes": sum(tensor.nbytes for tensor in form.tensors.values()),
        }
        print(name, forms[name])
    return {
        "rounds": progress.round, "dim": trainer.model.dim, "images": sum(len(task.test.labels) for task in tasks),
        "float32_bytes": sum(4 * (one.vector.numel() + one.head.numel()) for one in server.values()),
        "server": sum(own) / len(own), "forms": forms,
    }  # fmt: skip


if __name__ == "__main__":
    main()
