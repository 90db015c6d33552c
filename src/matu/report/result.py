"""`result.json`: what a run found, in one flat, stable form."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from matu.config import RunConfig
from matu.federation.checkpoint import Progress, Totals
from matu.federation.evaluation import Evaluation
from matu.methods import method_name
from matu.methods.individual import Alone
from matu.models import Backbone
from matu.tasks import Task

_KINDS = ("delivered", "server", "artifact", "individual")


def build_result(
    config: RunConfig,
    tasks: Mapping[str, Task],
    clients: Mapping[str, tuple[str, ...]],
    paper_mbits: float,
    progress: Progress,
    evaluation: Evaluation,
    reference: Mapping[str, Alone | None],
    backbone: Backbone,
) -> dict[str, Any]:
    """Everything a reader of a finished run may ask; what was not computed is None; no path of this machine."""
    alone = {task: reference.get(task) for task in tasks}
    accuracy = {
        task: {
            "delivered": evaluation.delivered[task],
            "server": evaluation.server.get(task),
            "artifact": evaluation.artifact.get(task),
            "individual": one.accuracy if (one := alone[task]) else None,
        }
        for task in tasks
    }
    worst = min(evaluation.clients, key=lambda name: (evaluation.clients[name], name))
    totals, f = progress.totals, config.federation
    return {
        "method": method_name(f.method),
        "options": list(f.options),
        "seed": config.machine.seed,
        "tasks": {name: about_task(task) for name, task in tasks.items()},
        "backbone": {"name": backbone.name, "sha256": backbone.digest},
        "rounds": progress.round,
        "accuracy": accuracy,
        "mean_accuracy": {kind: _mean([a[kind] for a in accuracy.values()]) for kind in _KINDS},
        "normalised": _normalised(accuracy),
        "worst_client": {
            "client": worst, "tasks": list(clients[worst]), "accuracy": evaluation.clients[worst],
        },
        "individual": {t: dataclasses.asdict(one) if one else None for t, one in alone.items()},
        "clients": {name: list(held) for name, held in clients.items()},
        "failures": totals.failures,
        "bytes": bytes_of(totals),
        "paper_mbits": paper_mbits,
        "seconds": {
            "total": totals.total_s,
            "training": totals.training_s,
            "aggregation": totals.aggregation_s,
            "evaluation": totals.evaluation_s,
            "reference": sum(one.seconds for one in reference.values() if one) if reference else None,
        },
        "images_per_second": totals.images / totals.training_s if totals.training_s else None,
        "config": shown_config(config, tasks, backbone.name),
        "versions": versions(),
    }  # fmt: skip


def bytes_of(totals: Totals) -> dict[str, Any]:
    """Bytes of all messages, and of a message, by direction and by what they were for."""
    return {
        "uplink_total": sum(totals.uplink.values()),
        "downlink_total": sum(totals.downlink.values()),
        "uplink_per_client_round": sum(totals.uplink.values()) / max(totals.messages_up, 1),
        "downlink_per_client_round": sum(totals.downlink.values()) / max(totals.messages_down, 1),
        "uplink": dict(totals.uplink),
        "downlink": dict(totals.downlink),
    }


def versions() -> dict[str, str]:
    """Of what decides numbers."""
    names = ("matu", "torch", "transformers", "peft", "datasets", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def about_task(task: Task) -> dict[str, Any]:
    """Sizes of a task, and where it came from."""
    return {
        "classes": len(task.classes), "train": len(task.train.labels), "test": len(task.test.labels),
        "chance": 1 / len(task.classes), "source": task.source, "sha256": task.digest, "skipped": task.skipped,
    }  # fmt: skip


def shown_config(config: RunConfig, tasks: Mapping[str, Task], backbone: str) -> dict[str, Any]:
    """The configuration, with sources and names where the run's own may be paths."""
    table = dataclasses.asdict(config)
    table["tasks"]["tasks"] = [task.source for task in tasks.values()]
    table["model"]["backbone"] = backbone
    table["federation"]["method"] = method_name(config.federation.method)
    return table


def _normalised(accuracy: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    delivered = [a["delivered"] for a in accuracy.values()]
    alone = [a["individual"] for a in accuracy.values()]
    if any(not one for one in alone):
        return {"mean_of_ratios": None, "ratio_of_means": None}
    return {
        "mean_of_ratios": _mean([d / i for d, i in zip(delivered, alone, strict=True)]),
        "ratio_of_means": sum(delivered) / sum(alone),
    }


def _mean(values: Sequence[float | None]) -> Any:
    return None if any(v is None for v in values) else sum(values) / len(values)  # type: ignore[arg-type]
