"""A server's whole run in its folder: who is there, rounds, scores, result; stopped anywhere, it goes on."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matu.artifact import save_artifact
from matu.config import changed_options, config_table
from matu.errors import ConfigError, DataError
from matu.federation.agent import Plan
from matu.federation.checkpoint import Progress
from matu.federation.roster import Roster
from matu.federation.rounds import codecs_of
from matu.federation.server import Remote, Server, by_tasks
from matu.federation.server_file import ServerFile
from matu.files import finish_before_interrupt, only_one, write_atomic
from matu.methods import Method, Problem, find_method, method_names
from matu.report.result import bytes_of, versions
from matu.tasks import Split, Task, class_list
from matu.training import build_trainer, prepare_machine

Tell = Callable[[str], None]


def serve(
    server: ServerFile,
    folder: Path,
    models: Path | None,
    remote_of: Callable[[bytes], Remote],
    tell: Tell,
    on_round: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Run, or go on with, the federation of a folder to its end.

    Parameters
    ----------
    server
        What to run, and who may take part.
    folder
        The run folder: sites.json, metrics.jsonl, checkpoint/, at the end result.json and artifact/.
    models
        Folder of backbones.
    remote_of
        From the plan for all sites to what asks them.
    tell
        Takes a line for people.
    on_round
        Takes each round's line of `metrics.jsonl` once it is on the disk.

    Returns
    -------
    dict
        The content of `result.json`.

    Raises
    ------
    ConfigError
        For a method that sites cannot follow, another process at work in the folder, or one of another configuration.
    """
    method_name = server.config.federation.method
    kind = find_method(method_name)
    if not issubclass(kind, Method):
        raise ConfigError(f"method '{method_name}': has no server")
    if method_name not in method_names():
        raise ConfigError(
            f"method '{method_name}': sites follow built-in methods alone, a server sends them no code; expected one "
            f"of {', '.join(method_names())}"
        )
    finished = folder / "result.json"
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        if finished.is_file():
            tell(f"{folder} is complete; nothing to do")
            return dict(json.loads(finished.read_text()))
        run = number_of(server, folder)
        config = server.config
        trainer = build_trainer(config, models, prepare_machine(config.machine, trains=False), "float32")
        trainer.model.free_weights()
        admitted = {name: frozenset(tasks) for name, tasks in server.sites.items()}
        roster = Roster(folder / "sites.json", trainer.model.fingerprint, admitted)
        classes = {task: len(names) for task, names in roster.classes.items()}
        method = kind(Problem(classes, trainer.model.layout, trainer.model.backbone.features), config)
        host = Server(
            config, method, roster, remote_of(Plan(config).encode()), folder, run, codecs_of(config.wire)[1],
            server.listening.min_sites, tell, on_round=on_round,
        )  # fmt: skip
        progress = host.rounds()
        host.gather(progress.round + 1)  # also where the rounds were done before a restart
        tell("the last round is done; every site keeps what it gets")
        scores = host.measure(progress, "finish")
        weights = method.server_weights(progress.state)
        if weights:
            seen = {task: _as_known(task, roster.classes[task]) for task in weights}
            with finish_before_interrupt():
                save_artifact(
                    folder / "artifact", weights, trainer.model, seen, config, method, run=run, rounds=progress.round,
                    accuracy={task: {"delivered": share} for task, share in by_tasks(scores).items()},
                )  # fmt: skip
        result = _result(server, run, roster, progress, scores)
        with finish_before_interrupt():
            write_atomic(finished, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
        return result


def number_of(server: ServerFile, folder: Path) -> str:
    """The run's number, drawn once; ConfigError for a folder of another configuration, DataError for a damaged one."""
    path, digest = folder / "run.json", server.config.digest()
    if path.is_file():
        try:
            note = json.loads(path.read_text())
            run, known, kept = str(note["run"]), str(note["config"]), dict(note["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not what a server keeps ({error})") from error
        if known != digest:
            changed = changed_options(kept, _settings(server)) or ["an option of [tasks] or [federation]"]
            raise ConfigError(
                f"{folder}: was begun with another configuration ({'; '.join(changed)}); restore it, or take another "
                "folder"
            )
        return run
    run = secrets.token_hex(16)
    note = {"run": run, "config": digest, "settings": _settings(server)}
    write_atomic(path, json.dumps(note).encode())
    return run


def _settings(server: ServerFile) -> dict[str, Any]:
    """Of its configuration, what says something here."""
    table = config_table(server.config)
    table.pop("tasks")
    table["federation"] = {name: table["federation"][name] for name in ("method", "options", "rounds", "participation")}
    return table


def _as_known(name: str, classes: tuple[str, ...]) -> Task:
    """A task as the server knows it: its classes and no image."""
    none = Split(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64))
    return Task(name, classes, none, none, "sites", class_list(classes))


def _result(
    server: ServerFile, run: str, roster: Roster, progress: Progress, scores: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    config, totals = server.config, progress.totals
    delivered = by_tasks(scores)
    return {
        "run": run,
        "method": config.federation.method,
        "options": list(config.federation.options),
        "seed": config.machine.seed,
        "rounds": progress.round,
        "tasks": {task: {"classes": len(names)} for task, names in roster.classes.items()},
        "sites": {
            name: {"tasks": {task: {"train": held.train, "test": held.test} for task, held in hello.tasks.items()},
                   "accuracy": dict(scores.get(name, {})), "versions": dict(hello.versions)}
            for name, hello in sorted(roster.hellos.items())
        },
        "accuracy": {task: {"delivered": share} for task, share in delivered.items()},
        "mean_accuracy": {"delivered": sum(delivered.values()) / len(delivered) if delivered else None},
        "failures": totals.failures,
        "bytes": bytes_of(totals),
        "seconds": {"total": totals.total_s, "waiting": totals.training_s, "aggregation": totals.aggregation_s},
        "config": _settings(server),
        "versions": versions(),
    }  # fmt: skip
