"""A run folder as it lies there, finished or not: read with care, for reports and the live view.

Nothing in it is trusted: what is not of the expected kind counts as not there.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matu.errors import ConfigError, DataError

KINDS = ("individual", "server", "delivered", "artifact")
"""Accuracies of a task, in the order in which tables show them."""
SIGNS = ("result.json", "metrics.jsonl", "config.toml", "run.json", ".lock", "flower/.lock")
"""Files of which a run folder has one at least; of a server that starts, the last alone."""
Curve = list[tuple[int, float]]
"""Pairs of round and share, rounds ascending."""


@dataclass(frozen=True)
class RunFolder:
    """What a run has left so far.

    Attributes
    ----------
    path
        Of `matu run`, `matu simulate` or `matu server`.
    result
        The content of `result.json`; empty while there is none.
    lines
        Those of `metrics.jsonl`, one a round.
    totals
        Sums over the rounds, as the checkpoint keeps them; empty where there is none.
    settings
        By section; those of `result.json`, or of the file that the run was begun with.
    """

    path: Path
    result: Mapping[str, Any]
    lines: list[Mapping[str, Any]]
    totals: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """It has a result."""
        return bool(self.result)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def method(self) -> str:
        """The federated method; empty if nothing tells."""
        named = text(self.result.get("method")) or text(self.setting("federation", "method"))
        return Path(named).stem if named.endswith(".py") else named

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.lines) or whole(self.result.get("rounds")) or 0

    @property
    def planned(self) -> int | None:
        """Rounds in all; None if nothing tells."""
        return whole(self.setting("federation", "rounds"))

    @property
    def seed(self) -> int | None:
        """Of everything drawn."""
        found = whole(self.result.get("seed"))
        return whole(self.setting("machine", "seed")) if found is None else found

    @cached_property
    def clients(self) -> dict[str, list[str]]:
        """Tasks by client, as far as it is known; clients (or sites) in the order of their names."""
        known = {name: texts(held) for name, held in table(self.result.get("clients")).items()}
        for name, about in table(self.result.get("sites")).items():
            known[name] = list(table(table(about).get("tasks")))
        asked = {name for line in self.lines for name in texts(line.get("clients"))}
        return {name: known.get(name, []) for name in sorted(asked | set(known))}

    @cached_property
    def tasks(self) -> dict[str, Mapping[str, Any]]:
        """What is known of each task: classes, chance, images, source, hash."""
        found = {name: table(about) for name, about in table(self.result.get("tasks")).items()}
        return found or {
            name: {} for name in sorted({task for line in self.lines for task in texts(line.get("tasks"))})
        }

    @cached_property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The lines that hold accuracies."""
        return [line for line in self.lines if table(line.get("accuracy"))]

    def accuracy(self, task: str, kind: str) -> float | None:
        """Of the result; before there is one, the latest on the way."""
        if self.finished:
            return number(table(table(self.result.get("accuracy")).get(task)).get(kind))
        curve = self.curve(task, kind)
        return curve[-1][1] if curve else None

    def mean_accuracy(self, kind: str) -> float | None:
        """Over the tasks; of the result, or the latest on the way."""
        if self.finished:
            return number(table(self.result.get("mean_accuracy")).get(kind))
        curve = self.mean_curve(kind)
        return curve[-1][1] if curve else None

    def curve(self, task: str, kind: str) -> Curve:
        """A task's accuracy on the way, and at the end."""
        found = [(line["round"], table(table(line["accuracy"]).get(kind)).get(task)) for line in self.evaluations]
        return self._with_end(found, table(table(self.result.get("accuracy")).get(task)).get(kind))

    def mean_curve(self, kind: str) -> Curve:
        """The mean over tasks on the way, and at the end."""
        found = [(line["round"], table(line.get("mean_accuracy")).get(kind)) for line in self.evaluations]
        return self._with_end(found, table(self.result.get("mean_accuracy")).get(kind))

    def _with_end(self, found: list[tuple[int, Any]], end: Any) -> Curve:
        pairs = [*found, (self.rounds, end)] if self.rounds else found
        return [(at, share) for at, value in pairs if (share := number(value)) is not None]

    def failures(self) -> list[tuple[int, str, str]]:
        """Round, client, and why its answer was left out."""
        return [
            (line["round"], client, text(reason))
            for line in self.lines
            for client, reason in table(line.get("failures")).items()
        ]

    def setting(self, section: str, name: str) -> Any:
        """One setting; None where it is not known."""
        return table(self.settings.get(section)).get(name)


def read_run(path: Path) -> RunFolder:
    """Read the folder of a run.

    Raises
    ------
    ConfigError
        If there is no such folder, or nothing of a run in it.
    DataError
        If `result.json` or `metrics.jsonl` cannot be read.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; expected the folder of a run")
    result, note = read_json(path / "result.json"), read_json(path / "run.json")
    if not any((path / name).is_file() for name in SIGNS):
        raise ConfigError(f"{path}: holds no run (no result.json, no metrics.jsonl, no config.toml)")
    settings = table(result.get("config")) or table(note.get("settings")) or _config(path / "config.toml")
    totals = table(read_json(path / "checkpoint" / "checkpoint.json").get("totals"))
    return RunFolder(path, result, read_lines(path / "metrics.jsonl"), totals, settings)


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The rounds of a `metrics.jsonl`, without the last line if it is still being written.

    Raises
    ------
    DataError
        For a line that is no round, or out of order.
    """
    lines: list[Mapping[str, Any]] = []
    content = path.read_bytes() if path.is_file() else b""
    for at, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {at} is not JSON ({error})") from None
        if whole(table(found).get("round")) != at:
            raise DataError(f"{path}: line {at} is not round {at}")
        lines.append(found)
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; empty if there is no such file.

    Raises
    ------
    DataError
        If the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: {type(found).__name__}, expected an object")
    return found


def _config(path: Path) -> dict[str, Any]:
    """The sections of a `config.toml`, own folders by name; empty if there is none that can be read."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = {name: dict(options) for name, options in sections.items() if isinstance(options, dict)}
    tasks, model = found.get("tasks", {}), found.get("model", {})
    if "tasks" in tasks:
        tasks["tasks"] = [Path(task).name if "/" in task else task for task in texts(tasks["tasks"])]
    if "backbone" in model and Path(text(model["backbone"])).is_absolute():
        model["backbone"] = Path(text(model["backbone"])).name
    return found


def table(value: Any) -> Mapping[str, Any]:
    """The value if it is a table, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """The value if it is a whole number of up to 15 digits, 0 or more."""
    return value if type(value) is int and 0 <= value < 10**15 else None


def text(value: Any) -> str:
    """The value if it is text, or an empty one."""
    return value if isinstance(value, str) else ""


def texts(value: Any) -> list[str]:
    """The texts in the value if it is a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []
