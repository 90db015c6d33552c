"""FedAvg with PEFT in pfl-research's in-process loop (pip install pfl), written as its own benchmarks are.

PYTHONPATH=benchmarks python benchmarks/rivals/pfl_in_process.py WORLD --rounds N [--bf16]

A user of pfl is a (client, task), so a round's cohort are those of its clients, and heads are averaged over those who
have the task. Users are not evaluated, as in the other programs. Leaves rounds.jsonl and result.json in the working
directory.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.hyperparam.base import HyperParam, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import ImageClassifierOutput

from rivals.plain_peft import Images, accuracy, get_model, logits, read_world


class ManyHeads(nn.Module):
    """One adapted ViT, and a head a task."""

    def __init__(self, world: dict[str, Any]) -> None:
        super().__init__()
        models: dict[str, Any] = {task: get_model(world, task) for task in world["classes"]}
        heads = {task: model.base_model.model.classifier.modules_to_save["default"] for task, model in models.items()}
        self.heads, self.vit, self.task = nn.ModuleDict(heads), next(iter(models.values())), ""
        self.vit.base_model.model.classifier = nn.Identity()

    def forward(self, **inputs: Any) -> ImageClassifierOutput:
        output = self.vit(**inputs)
        return ImageClassifierOutput(logits=self.heads[self.task](output.logits))

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor, task: str) -> torch.Tensor:
        self.task = task
        return cross_entropy(logits(self.train(), pixels), labels)

    def metrics(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
        return {"none": Weighted(0.0, 1.0)}


class PerTaskHeads(FederatedAveraging):
    """Every update says whose head it holds, so that a head's mean is over those."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__()
        self.tasks = tasks

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        update, metrics = super().train_one_user(initial_model_state, model, user_dataset, central_context)
        for task in self.tasks:
            update[f"has/{task}"] = torch.tensor([float(task == user_dataset.train_kwargs["task"])])
        return update, metrics

    def process_aggregated_statistics(self, central_context, aggregate_metrics, model, statistics):
        statistics.average()
        for task in self.tasks:
            share = float(statistics.pop(f"has/{task}")[0])
            for name in [name for name in statistics if name.startswith(f"heads.{task}.") and share]:
                statistics[name] /= share
        return model.apply_model_update(statistics)


class Schedule(HyperParam, TrainingProcessCallback):
    """Who takes part in which round; a hyperparameter of pfl because the number differs."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.shares = world["clients"]
        self.rounds = [[(c, t) for c in clients for t in self.shares[c]] for clients in world["schedule"]]
        self.users, self.number = iter([user for users in self.rounds for user in users]), 0

    def value(self) -> int:
        return len(self.rounds[self.number])

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        images = sum(len(self.shares[client][task]) for client, task in self.rounds[self.number])
        self.number += 1
        with open("rounds.jsonl", "a") as lines:
            lines.write(json.dumps({"round": self.number, "images": images}) + "\n")
        return False, Metrics()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = read_world(args.world)
    schedule, network = Schedule(world), ManyHeads(world)
    trained = [p for p in network.parameters() if p.requires_grad]
    model = PyTorchModel(
        network, partial(torch.optim.AdamW, weight_decay=0.0), torch.optim.SGD(trained, lr=1.0),
        amp_dtype=torch.bfloat16 if args.bf16 else None,
    )  # fmt: skip

    def of_user(user: tuple[str, str]) -> PyTorchDataDataset:
        client, task = user
        images = Images(args.world, world, task, "train", schedule.shares[client][task])
        return PyTorchDataDataset(images, train_kwargs={"task": task}, shuffle=True)

    users = FederatedDataset(of_user, lambda: next(schedule.users))
    training = NNTrainHyperParams(
        local_batch_size=world["batch_size"], local_num_epochs=world["epochs"],
        local_learning_rate=world["learning_rate"], local_max_grad_norm=world["gradient_clip"],
    )  # fmt: skip
    PerTaskHeads(list(world["classes"])).run(
        NNAlgorithmParams(central_num_iterations=args.rounds, evaluation_frequency=args.rounds + 1,
                          train_cohort_size=schedule, val_cohort_size=None),
        SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]),
        model, training, callbacks=[schedule],
    )  # fmt: skip
    found = {}
    for task in world["classes"]:
        network.task = task
        found[task] = accuracy(network, Images(args.world, world, task, "test"), bf16=args.bf16)
    Path("result.json").write_text(json.dumps({"accuracy": found}))


if __name__ == "__main__":
    main()
