"""What a comparison is: a base configuration, settings, methods and seeds, and the runs (cells) they make."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matu.bench.names import REFERENCES
from matu.bench.options import by_name, parse_spec, shown, tuning_spec, with_options
from matu.config import FederationConfig, RunConfig, WireConfig, config_table
from matu.errors import ConfigError
from matu.methods import method_name, method_names, method_source


@dataclass(frozen=True)
class Comparison:
    """A comparison, before anything has run.

    Attributes
    ----------
    base
        What all cells share.
    settings
        By name, the options in which a setting differs from the base.
    methods
        Methods to compare: a name, perhaps with options ("mat_fl rounds=300", "matu rule=off").
    seeds
        Every method runs once with each.
    learning_rates
        The common grid on which every method is tuned; one rate: no tuning.
    tune_rounds, tune_setting
        The short form in which it is tuned, on a held-out tenth of the training images.
    target
        Share of individual's mean accuracy that "rounds to target" asks for.
    axis
        An option by whose value in each setting figures are drawn; empty: none.
    only
        The settings to run; empty: all.
    baseline
        The method that differences are taken to; none where it is not among `methods`.
    """

    base: RunConfig
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    tune_rounds: int = 20
    tune_setting: str = ""
    target: float = 0.75
    axis: str = ""
    only: tuple[str, ...] = ()
    baseline: str = "matu"

    def __post_init__(self) -> None:
        if not self.settings:
            f = self.base.federation
            single: dict[str, Any] = {"zeta_t": 0.0}
            many: dict[str, Any] = {"zeta_t": f.zeta_t or 0.5}
            if f.tasks_per_client or f.task_groups:  # which leave zeta_t nothing to decide
                table = config_table(self.base)["federation"]
                many = {name: table[name] for name in ("tasks_per_client", "task_groups") if table[name]}
                single |= {"tasks_per_client": 0, "task_groups": []}
            object.__setattr__(self, "settings", {"single": single, "many": many})
        if not self.methods:
            last = ("matu", "matu_plus")
            object.__setattr__(
                self, "methods", (*REFERENCES, *(n for n in method_names() if n not in (*REFERENCES, *last)), *last)
            )
        object.__setattr__(self, "methods", tuple(" ".join(method.split()) for method in self.methods))
        if not self.tune_setting:
            object.__setattr__(self, "tune_setting", list(self.settings)[-1])
        object.__setattr__(self, "baseline", " ".join(self.baseline.split()))

    def on(self, base: RunConfig) -> Comparison:
        """The same on another base; settings that were made of the old one are made of the new one.

        Raises
        ------
        ConfigError
            If the bases differ in an option that every setting sets: it would change nothing.
        """
        if self.settings == dataclasses.replace(self, settings={}).settings:
            return dataclasses.replace(self, base=base, settings={})
        before = dict(by_name(self.base))
        for option, value in by_name(base):
            if value != before[option] and all(option in setting for setting in self.settings.values()):
                raise ConfigError(f"{option} = {value!r}: every setting of the comparison sets it by itself")
        return dataclasses.replace(self, base=base)

    def check(self) -> None:
        """Raise ConfigError for whatever cannot work, before any work."""
        if self.base.evaluation.held_out:
            raise ConfigError("held_out: a comparison holds images out for tuning by itself; leave it off")
        unknown = [name for name in self.only if name not in self.settings]
        if unknown:
            raise ConfigError(f"settings {', '.join(unknown)}: expected some of {', '.join(self.settings)}")
        for name, values in (("seeds", self.seeds), ("methods", self.methods), ("learning_rates", self.learning_rates)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} {list(values)}: expected at least one, each once")
        names = [shown(method) for method in self.methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"methods: several are called {', '.join(twice)}; a table knows a file by its name alone")
        if self.tune_setting not in self.settings:
            raise ConfigError(f"tune_setting '{self.tune_setting}': expected one of {', '.join(self.settings)}")
        parse_spec(self.baseline)
        if self.tune_rounds < 1 or not 0 < self.target <= 1:
            raise ConfigError(f"tune_rounds {self.tune_rounds}, target {self.target}: expected 1 or more, and 0 to 1")
        if self.axis and not all(_is_number(values.get(self.axis)) for values in self.settings.values()):
            raise ConfigError(f"axis '{self.axis}': expected a number of that name in every setting")
        for rate in self.learning_rates:
            for cell in self.cells(dict.fromkeys(self.tuned(), rate)):
                cell.config.check()

    def tuned(self) -> list[str]:
        """What a rate is chosen for, each once: methods, with those of their options that change how sites train."""
        return list(dict.fromkeys(map(tuning_spec, self.methods)))

    def cells(self, rates: Mapping[str, float]) -> list[Cell]:
        """Every run of the comparison, the first seed of all methods first."""
        return [
            self._cell(setting, spec, seed, rates[tuning_spec(spec)])
            for seed in self.seeds
            for spec in self.methods
            if tuning_spec(spec) in rates
            for setting in self.running()
        ]

    def running(self) -> tuple[str, ...]:
        """The settings to run."""
        return self.only or tuple(self.settings)

    def tuning_cells(self) -> list[Cell]:
        """The short runs that choose the rates; none where there is nothing to choose."""
        if len(self.learning_rates) == 1:
            return []
        short = {"rounds": self.tune_rounds, "held_out": True, "evaluate_every": 0}
        return [
            self._cell(self.tune_setting, method, self.seeds[0], rate, short)
            for method in self.tuned()
            for rate in self.learning_rates
        ]

    def _cell(
        self, setting: str, spec: str, seed: int, rate: float, more: Mapping[str, Any] | None = None
    ) -> Cell:  # fmt: skip
        name, changes, options = parse_spec(spec)
        config = with_options(self.base, self.settings[setting], f"setting '{setting}'")
        config = with_options(config, changes, f"method '{spec}'")
        own = {"method": name, "options": options, "seed": seed, "learning_rate": rate, "reference": False}
        config = with_options(config, own | (dict(more) if more else {}))
        if name == "individual" and not config.training.local_steps:  # it knows no clients: one cell for all settings
            f = config.federation
            share = f.drawn / f.clients
            alone = FederationConfig(name, clients=1, rounds=f.rounds, participation=share, min_samples=1)
            config = dataclasses.replace(config, federation=alone)
        return Cell(setting, spec, seed, rate, config)

    def table(self) -> dict[str, Any]:
        """As TOML: the base configuration, the settings and the rest."""
        rest = {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in dataclasses.fields(self)
            if f.name not in ("base", "settings")
        }
        return {**config_table(self.base), "compare": rest, "settings": {n: dict(v) for n, v in self.settings.items()}}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    setting: str
    method: str
    seed: int
    learning_rate: float
    config: RunConfig

    @cached_property
    def hash(self) -> str:
        """Of all that decides the numbers but the machine: where a cell was computed does not matter.

        An option at its default adds nothing, so that cells keep their names when options are added; of messages
        it is the exact form that adds nothing. Folders and files count by name: what is in them is checked by
        content when a cell is reused.
        """
        method, default = self.config.federation.method, dict(by_name(RunConfig(wire=WireConfig.exact())))
        found = {option: value for option, value in by_name(self.config) if value != default[option]}
        for machine in ("device", "precision", "threads", "together"):
            found.pop(machine, None)
        found |= {"method": method_name(method), "backbone": Path(self.config.model.backbone).name}
        found["tasks"] = names_of(self.config.tasks.tasks)
        text = json.dumps([found, method_source(method)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        method = "-".join(shown(self.method).split()).replace("=", "")
        setting = "" if self.config.federation.method == "individual" else f"{self.setting}-"
        return f"{setting}{method}-s{self.seed}-{self.hash}"

    def __str__(self) -> str:
        return f"{self.setting}, {shown(self.method)}, seed {self.seed}, rate {self.learning_rate:g}"


def names_of(tasks: Iterable[str]) -> list[str]:
    """Tasks without the folders that they lie in."""
    return [Path(task).name if "/" in task and ":" not in task else task for task in tasks]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
