"""FedAvg with PEFT over Flower's simulation on Ray, written as Flower's own examples are.

PYTHONPATH=benchmarks python benchmarks/rivals/flower_ray.py WORLD --rounds N [--bf16]

Two things are not an example's: which client a node plays comes with its message, so that all programs train the same
clients in the same rounds; and a client has several tasks, each with a head of its own, which is averaged over those
who have it. Leaves rounds.jsonl and result.json in the working directory.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from rivals.plain_peft import Images, accuracy, get_model, read_world, train


def key_of(task: str, name: str) -> str:
    """Adapters are one for all tasks, heads one a task."""
    return name if "lora_" in name else f"{task}|{name}"


def of_task(task: str, arrays: ArrayRecord) -> dict:
    """The global arrays as the state of a task's model."""
    named = {key.removeprefix(f"{task}|"): value for key, value in arrays.to_torch_state_dict().items()}
    return {name: value for name, value in named.items() if "|" not in name}


def client_app(folder: Path, bf16: bool) -> ClientApp:
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        world = read_world(folder)
        shares = world["clients"][message.content["config"]["client"]]
        content = RecordDict({"examples": MetricRecord({task: len(indices) for task, indices in shares.items()})})
        for task, indices in shares.items():
            model = get_model(world, task)
            set_peft_model_state_dict(model, of_task(task, message.content.array_records["arrays"]))
            train(model, Images(folder, world, task, "train", indices), world, bf16=bf16)
            content[task] = ArrayRecord(get_peft_model_state_dict(model))
        return Message(content, reply_to=message)

    return app


class PerTaskHeads(FedAvg):
    """FedAvg over (client, task); a head is averaged over those who have its task."""

    def __init__(self, schedule: list[list[str]], **settings) -> None:
        super().__init__(**settings)
        self.schedule, self.arrays = schedule, ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        self.arrays, messages = arrays, []
        planned = super().configure_train(server_round, arrays, config, grid)
        for message, client in zip(planned, self.schedule[server_round - 1], strict=True):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})})
            to = message.metadata.dst_node_id
            messages.append(Message(content, dst_node_id=to, message_type=message.metadata.message_type))
        return messages

    def aggregate_train(self, server_round: int, replies) -> tuple[ArrayRecord, MetricRecord]:
        sums: dict[str, Any] = {}
        weights: Counter[str] = Counter()
        images = 0
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            for task, examples in reply.content["examples"].items():
                images += examples
                for name, array in reply.content[task].items():
                    key = key_of(task, name)
                    sums[key] = sums.get(key, 0) + array.numpy() * examples
                    weights[key] += examples
        with open("rounds.jsonl", "a") as lines:
            lines.write(json.dumps({"round": server_round, "images": images}) + "\n")
        means = {key: Array(total / weights[key]) for key, total in sums.items()}
        return ArrayRecord({**self.arrays, **means}), MetricRecord({"images": images})


def server_app(folder: Path, rounds: int, bf16: bool) -> ServerApp:
    app, world = ServerApp(), read_world(folder)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        start: dict[str, Any] = {}
        for task in world["classes"]:
            state = get_peft_model_state_dict(get_model(world, task))
            start |= {key_of(task, name): value for name, value in state.items()}

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round < rounds:
                return None
            found: dict[str, Any] = {}
            for task in world["classes"]:
                model = get_model(world, task)
                set_peft_model_state_dict(model, of_task(task, arrays))
                found[task] = accuracy(model, Images(folder, world, task, "test"), bf16=bf16)
            Path("result.json").write_text(json.dumps({"accuracy": found}))
            return MetricRecord(found)

        schedule, nodes = world["schedule"], len(world["clients"])
        strategy = PerTaskHeads(
            schedule, fraction_train=0.0001, fraction_evaluate=0.0, min_train_nodes=len(schedule[0]),
            min_available_nodes=nodes,
        )  # fmt: skip
        strategy.start(grid=grid, initial_arrays=ArrayRecord(start), num_rounds=rounds, evaluate_fn=evaluate)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    run_simulation(
        server_app(args.world, args.rounds, args.bf16), client_app(args.world, args.bf16),
        num_supernodes=len(read_world(args.world)["clients"]),
        backend_config={"init_args": {"num_cpus": args.threads, "include_dashboard": False},
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
