"""Where the rounds of a run may be told besides its folder: TensorBoard, MLflow, Weights & Biases.

A sink takes a round's line of `metrics.jsonl`, nothing else. Each is an extra of the installation.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from matu.errors import ConfigError
from matu.files import write_atomic
from matu.report.folder import number, table, text, texts
from matu.words import how_to_install

SinkName = Literal["tensorboard", "mlflow", "wandb"]
MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
PROJECT = "matu"
"""The experiment or project of runs whose environment names none."""


class Sink(Protocol):
    """Takes rounds."""

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """The values of a round, by name; told for good when this returns."""

    def close(self) -> None:
        """There are no more rounds."""


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line, by name: "loss", "bytes/up", "accuracy/delivered/digits"."""
    plain = {"loss": "loss", "seconds": "seconds", "similarity": "similarity", "bytes/up": "uplink_bytes",
             "bytes/down": "downlink_bytes"}  # fmt: skip
    found: dict[str, Any] = {name: line.get(key) for name, key in plain.items()}
    found |= {"clients/asked": len(texts(line.get("clients"))), "clients/left_out": len(table(line.get("failures")))}
    found |= {f"mean_accuracy/{kind}": share for kind, share in table(line.get("mean_accuracy")).items()}
    for kind, by_task in table(line.get("accuracy")).items():
        found |= {f"accuracy/{kind}/{task}": share for task, share in table(by_task).items()}
    return {name: value for name, given in found.items() if (value := number(given)) is not None}


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, key: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def round(self, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run at MLFLOW_TRACKING_URI, in MLFLOW_EXPERIMENT_NAME (matu); a resumed run goes on in its own."""

    def __init__(self, folder: Path, key: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        named = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(named)
        experiment = known.experiment_id if known else self._client.create_experiment(named)
        ours = self._client.search_runs([experiment], f"tags.matu = '{key}'", max_results=1)
        run = ours[0] if ours else self._client.create_run(experiment, tags={"matu": key}, run_name=folder.name)
        self._run = run.info.run_id

    def round(self, number: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        self._client.log_batch(self._run, [Metric(name, value, now, number) for name, value in named.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandB:
    """A run in WANDB_PROJECT (matu), its files in `wandb/` of the run folder; WANDB_MODE=offline keeps it there."""

    def __init__(self, folder: Path, key: str) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.name, id=key, resume="allow",
            dir=str(folder), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def round(self, number: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        self._run.finish()


OPENED: dict[str, Callable[[Path, str], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""By name, from the run folder and the run's own key there to the sink."""


def check_sinks(names: Sequence[str]) -> None:
    """Raise ConfigError, before any work, for a sink that is unknown or not installed."""
    for name in names:
        if name not in OPENED:
            raise ConfigError(f"--sinks {name}: unknown; expected some of {', '.join(OPENED)}")
        try:
            import_module(MODULES[name])
        except ImportError as error:
            raise ConfigError(f"--sinks {name}: not installed ({error}); {how_to_install(name)}") from None


@dataclass
class Sinks:
    """Tells every sink each round once, over stops and resumes too.

    A sink that raises is told about once and left out from then on; the run goes on. What each was told last is kept in
    `sinks.json` of the run folder. A kill between the two tells a round twice, with the numbers of the round as it was
    done again.

    Attributes
    ----------
    names
        Of `OPENED`.
    folder
        The run folder.
    tell
        Takes a line for people.
    """

    names: Sequence[str]
    folder: Path
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self._open: dict[str, Sink] = {}
        self._left_out: set[str] = set()
        self._known: dict[str, Any] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a round's line."""
        for name in dict.fromkeys(self.names):
            if name not in self._left_out:
                self._guarded(name, partial(self._pass_on, name, line))

    def close(self) -> None:
        """There are no more rounds."""
        for name, sink in self._open.items():
            if name not in self._left_out:
                self._guarded(name, sink.close)

    def _pass_on(self, name: str, line: Mapping[str, Any]) -> None:
        if not self._known:
            self._known = self._read()
        told = table(self._known["told"])
        if line["round"] <= (number(told.get(name)) or 0):
            return
        if name not in self._open:
            self._open[name] = OPENED[name](self.folder, self._known["key"])
        self._open[name].round(line["round"], values_of(line))
        self._known["told"] = {**told, name: line["round"]}
        write_atomic(self.folder / "sinks.json", json.dumps(self._known).encode())

    def _read(self) -> dict[str, Any]:
        path = self.folder / "sinks.json"
        known = json.loads(path.read_bytes()) if path.is_file() else {}
        return {"key": text(known.get("key")) or uuid.uuid4().hex, "told": dict(table(known.get("told")))}

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a library raises: a run does not end for what looks on
            self._left_out.add(name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.tell(f"--sinks {name}: left out from here on ({reason})")
