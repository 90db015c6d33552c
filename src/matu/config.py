"""The configuration: frozen dataclasses, read from TOML, overridable on the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from matu.errors import ConfigError
from matu.tables import from_table, read_table


@dataclass(frozen=True)
class TasksConfig:
    """Which tasks, and how their images are read."""

    tasks: tuple[str, ...] = ("demo-8",)
    """Suites (demo-8, real-8, real-22, paper-8, paper-30), folders under MATU_DATA, folders (./flowers),
    hub:owner/name, demo:name, paper:name."""
    image_size: int = 32
    """Side of the square images, in pixels."""
    max_train: int = 0
    """Most training images of a task (a stratified draw); 0: all."""
    max_test: int = 0
    """Most test images of a task (a stratified draw); 0: all."""
    skip_bad_images: bool = False
    """Leave out images that cannot be decoded, and count them, instead of stopping."""


@dataclass(frozen=True)
class ModelConfig:
    """The frozen backbone and the LoRA adapter on it."""

    backbone: str = "vit-mini"
    """vit-mini (bundled), a folder (also under MATU_MODELS), or a Hugging Face hub id."""
    rank: int = 16
    """Rank of LoRA."""
    alpha: float = 16.0
    """Scale of LoRA: the update is alpha / rank times B A."""
    targets: tuple[str, ...] = ("query", "key", "value")
    """Layers with an adapter: query, key, value, or the backbone's own layer names."""
    adapter_seed: int = 0
    """Seed of A's draw, which all sites share."""
    start_b: float = 0.0
    """B starts uniform in ± this; 0: B = 0, the usual start. More lets A learn where features are linearised."""


def drawn(participation: float, clients: int) -> int:
    """How many clients a round has: the share, rounded, and at least one."""
    return max(1, round(participation * clients))


@dataclass(frozen=True)
class FederationConfig:
    """Who takes part, with which data, for how long."""

    method: str = "matu"
    """The federated method: matu, fedavg, … (matu methods lists them), or a Python file that holds one."""
    options: tuple[str, ...] = ()
    """The method's own options, name=value: mu=0.1 for fedprox."""
    clients: int = 30
    """Number of clients, N."""
    participation: float = 0.2
    """Share of the clients that are drawn each round, ξ."""
    rounds: int = 100
    """Number of rounds, R."""
    zeta_c: float = 0.1
    """Dirichlet concentration of the classes over a task's holders, ζ_c; lower is more skewed."""
    zeta_t: float = 0.5
    """Dirichlet concentration of the tasks over the clients, ζ_t; 0: one task a client."""
    tasks_per_client: int = 0
    """Give every client this many tasks, drawn evenly, in place of zeta_t; 0: off."""
    task_groups: tuple[str, ...] = ()
    """Groups given to clients in turn, in place of zeta_t: mnist+dtd10; a task in none goes where tasks are fewest."""
    min_samples: int = 10
    """Fewest training samples of a task at one of its holders."""

    @property
    def drawn(self) -> int:
        """Clients of a round."""
        return drawn(self.participation, self.clients)


@dataclass(frozen=True)
class TrainingConfig:
    """Local training of one task at one site."""

    local_epochs: int = 1
    """Epochs over a site's data of a task in each round, E."""
    local_steps: int = 0
    """Optimiser steps in place of epochs; 0: off."""
    batch_size: int = 64
    """Images a step; a batch larger than the data is the whole data."""
    learning_rate: float = 1e-3
    """AdamW's learning rate, adapter and head."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of adapter and head together; 0: off."""
    balanced: bool = False
    """Cross-entropy of logits plus the log share of each class at the site, classes that it lacks left out."""


@dataclass(frozen=True)
class MatuConfig:
    """The method's own constants (the readings of its equations)."""

    agreement_threshold: float = 0.4
    """ρ of Eq. 3: where agreement reaches it the task mask is 1."""
    top_k: int = 3
    """κ: how many similar tasks a task learns from."""
    similarity_threshold: float = 0.5
    """ε: similarity (Eq. 5) above which a task counts as similar; 0.5 is chance."""
    rule: Literal["average", "half_sum", "literal", "off"] = "average"
    """How Eq. 6 and 7 are read."""
    unification: bool = True
    """Off, a control: every task's own vector travels, none is unified."""


Number = Literal["float32", "bfloat16", "8bit", "7bit", "6bit", "5bit", "4bit", "3bit", "2bit", "ternary"]


@dataclass(frozen=True)
class WireConfig:
    """How messages are coded (docs/wire.md): float32 and packed masks are exact, and the paper's form."""

    uplink: Number = "3bit"
    """Adapters, site to server: exact, rounded, or so many bits a number; ternary is -1, 0 or 1 times one scale."""
    downlink: Number = "5bit"
    """Adapters, server to site."""
    uplink_heads: Number = "4bit"
    """Heads, site to server."""
    downlink_heads: Number = "8bit"
    """Heads, server to site."""
    uplink_change: bool = True
    """Quantised uplinks say what changed since the round's downlink, which both ends hold."""
    coded_masks: bool = True
    """Masks say what the other end cannot know; off: one bit an entry."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Of quantised uplinks; stochastic is right on average."""

    @classmethod
    def exact(cls) -> WireConfig:
        """The paper's form."""
        return cls("float32", "float32", "float32", "float32", coded_masks=False)


@dataclass(frozen=True)
class DefenceConfig:
    """Bounds on what one client can do to a round (docs/threats.md); all off by default."""

    norm_limit: float = 0.0
    """Task vectors and heads longer than this many times the round's median are scaled down to it; 0: off."""
    rescaler_limit: float = 0.0
    """An update with a rescaler above this is left out; 0: above 2^20 alone."""
    sample_limit: int = 0
    """Samples of a task that one client may count for; 0: as many as it says."""
    trim: float = 0.0
    """Share of a task's holders left out at either end, coordinate by coordinate; 0: off."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and when."""

    evaluate_every: int = 10
    """Rounds between evaluations on the way; 0: only at the end."""
    evaluate_images: int = 500
    """Test images a task on the way (the same ones every time); 0: all. The end always uses all."""
    reference: bool = False
    """Also fine-tune every task alone on its pooled data (individual), to normalise by."""
    held_out: bool = False
    """For tuning: train on nine tenths of the training images, measure on the tenth, never on test images."""


@dataclass(frozen=True)
class MachineConfig:
    """How to compute. "auto" and 0 are decided once by measuring, then written down."""

    seed: int = 0
    """Seed of everything drawn: partition, sampling, batches."""
    device: str = "cpu"
    """cpu or cuda (cuda:1 …)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto times a training step in each and takes the faster."""
    threads: int = 0
    """Threads of a matrix product; 0: one, or, where that trains faster, all that sites at work at a time leave each
    of them of the cores (at most OMP_NUM_THREADS). Results are equal to the last bit for equal threads."""
    together: int = 1
    """Fine-tunings of a client's tasks that are computed at once, as if alone to rounding; 0: as many as is faster."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers."""

    tasks: TasksConfig = field(default_factory=TasksConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    matu: MatuConfig = field(default_factory=MatuConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def check(self) -> None:
        """Raise ConfigError, naming every value that cannot work and what would be right."""
        wrong = [rule for holds, rule in self._rules() if not holds]
        if wrong:
            raise ConfigError("; ".join(wrong))

    def _rules(self) -> list[tuple[bool, str]]:
        f, t, m, e, d = self.federation, self.training, self.matu, self.evaluation, self.defence
        model, tasks, machine = self.model, self.tasks, self.machine
        return [
            (len(tasks.tasks) > 0, "tasks: none named; expected a suite such as demo-8, or task names"),
            (tasks.max_train >= 0, f"max_train {tasks.max_train}: expected 0 (all) or more"),
            (tasks.max_test >= 0, f"max_test {tasks.max_test}: expected 0 (all) or more"),
            (model.rank >= 1, f"rank {model.rank}: expected 1 or more"),
            (0 < model.alpha < float("inf"), f"alpha {model.alpha}: expected more than 0"),
            (0 <= model.start_b < float("inf"), f"start_b {model.start_b}: expected 0 or more"),
            (len(model.targets) > 0, "targets: none named; expected for example query, key, value"),
            (f.clients >= 1, f"clients {f.clients}: expected 1 or more"),
            (0 < f.participation <= 1, f"participation {f.participation}: expected more than 0, at most 1"),
            (f.rounds >= 1, f"rounds {f.rounds}: expected 1 or more"),
            (0 < f.zeta_c < float("inf"), f"zeta_c {f.zeta_c}: expected more than 0"),
            (0 <= f.zeta_t < float("inf"), f"zeta_t {f.zeta_t}: expected 0 (one task a client) or more"),
            (f.tasks_per_client >= 0, f"tasks_per_client {f.tasks_per_client}: expected 0 (off) or more"),
            (not (f.tasks_per_client and f.task_groups), "tasks_per_client and task_groups: only one of them can hold"),
            (f.min_samples >= 1, f"min_samples {f.min_samples}: expected 1 or more"),
            (t.local_epochs >= 1, f"local_epochs {t.local_epochs}: expected 1 or more"),
            (t.local_steps >= 0, f"local_steps {t.local_steps}: expected 0 (off) or more"),
            (t.batch_size >= 1, f"batch_size {t.batch_size}: expected 1 or more"),
            (0 < t.learning_rate < float("inf"), f"learning_rate {t.learning_rate}: expected more than 0"),
            (0 <= t.weight_decay < float("inf"), f"weight_decay {t.weight_decay}: expected 0 or more"),
            (0 <= t.gradient_clip < float("inf"), f"gradient_clip {t.gradient_clip}: expected 0 (off) or more"),
            (0 <= m.agreement_threshold <= 1, f"agreement_threshold {m.agreement_threshold}: expected 0 to 1"),
            (m.top_k >= 0, f"top_k {m.top_k}: expected 0 or more"),
            (0 <= m.similarity_threshold <= 1, f"similarity_threshold {m.similarity_threshold}: expected 0 to 1"),
            (
                d.norm_limit == 0 or 1 <= d.norm_limit < float("inf"),
                f"norm_limit {d.norm_limit}: expected 0 (off), or 1 or more",
            ),
            (0 <= d.rescaler_limit < float("inf"), f"rescaler_limit {d.rescaler_limit}: expected 0 (off) or more"),
            (d.sample_limit >= 0, f"sample_limit {d.sample_limit}: expected 0 (off) or more"),
            (0 <= d.trim < 0.5, f"trim {d.trim}: expected 0 (off) to less than 0.5"),
            (e.evaluate_every >= 0, f"evaluate_every {e.evaluate_every}: expected 0 (only at the end) or more"),
            (e.evaluate_images >= 0, f"evaluate_images {e.evaluate_images}: expected 0 (all) or more"),
            (machine.seed >= 0, f"seed {machine.seed}: expected 0 or more"),
            (machine.threads >= 0, f"threads {machine.threads}: expected 0 (what is faster) or more"),
            (machine.together >= 0, f"together {machine.together}: expected 0 (what is faster) or more"),
        ]

    def digest(self) -> str:
        """SHA-256 (hex) of all values: two runs with the same digest do the same."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> RunConfig:
    """A configuration from a TOML file; what it leaves out keeps its default.

    Raises
    ------
    ConfigError
        For a missing or broken file, an unknown section or option, or a value of another type.
    """
    table = read_table(path)
    if "compare" in table or "settings" in table:
        raise ConfigError(f"{path}: describes a comparison of several runs; matu compare --config {path} runs it")
    return config_of(table, str(path))


def config_of(table: dict[str, Any], where: str) -> RunConfig:
    """A configuration from a table of sections; ConfigError, naming `where`, for what does not fit."""
    config: RunConfig = from_table(RunConfig, table, where)
    return config


def config_table(config: RunConfig) -> dict[str, Any]:
    """The complete configuration as sections of options, tuples as lists."""
    return {
        section: {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        for section, options in dataclasses.asdict(config).items()
    }


def changed_options(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two tables of sections of options: "rounds 3 -> 4"."""
    return [
        f"{name} {before.get(section, {}).get(name)!r} -> {value!r}"
        for section, options in after.items()
        for name, value in options.items()
        if before.get(section, {}).get(name) != value
    ]


def write_config(config: RunConfig) -> bytes:
    """The complete configuration as TOML, every option included."""
    return tomli_w.dumps(dataclasses.asdict(config)).encode()
