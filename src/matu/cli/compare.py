"""matu compare."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu.cli.common import (
    DONE,
    INTERRUPTED,
    Folders,
    named_after,
    parse,
    prepare_libraries,
    roots,
    value_of,
    with_whole_path,
    with_whole_paths,
)
from matu.config import RunConfig
from matu.errors import ConfigError


@dataclass(frozen=True)
class CompareArguments:
    """Run methods side by side on one footing: tune, run, write tables and figures.

    What is done is used again: the same command goes on after a stop.

    Examples:
        matu compare --config configs/demo.toml --methods matu,fedavg --seeds 0,1
        matu compare --config configs/real8.toml --settings many --out real8
    """

    base: RunConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    config: Path | None = None
    """TOML file with a run's settings, and perhaps [compare] and [settings.NAME]."""
    out: Path | None = None
    """Folder of the comparison; comparisons/<name of the configuration> by default. The same command goes on."""
    methods: str = ""
    """Methods by comma, options after a space: "matu,fedavg,mat_fl rounds=300,matu rule=off"; empty: all."""
    settings: str = ""
    """Settings by comma: single,many, or those of the configuration; empty: all."""
    seeds: str = ""
    """Seeds by comma: 0,1,2."""
    learning_rates: str = ""
    """Grid on which every method is tuned, by comma; a single one is used as it is."""
    tune_rounds: int = 0
    """Rounds of a tuning run; 0: as configured (20)."""
    target: float = 0.0
    """Share of individual's mean accuracy for "rounds to target"; 0: as configured (0.75)."""
    jobs: int = 0
    """Runs at a time; 0: one a core on a CPU, one on a GPU."""
    json: bool = False
    """Print results.json alone on stdout."""


def compare(arguments: list[str]) -> int:
    """matu compare."""
    file = value_of("--config", arguments)
    several = {"--method": "--methods", "--options": "--methods, options after a space",
               "--learning-rate": "--learning-rates", "--seed": "--seeds"}  # fmt: skip
    for option, right in several.items():
        if value_of(option, arguments) is not None:
            raise ConfigError(f"{option} is of a single run; expected {right}")
    if {"-h", "--help"} & set(arguments):  # without the libraries that a comparison's file is read with
        parse(CompareArguments, arguments, CompareArguments(RunConfig()), "compare")
    prepare_libraries()
    from matu import bench
    from matu.report import Display

    described = bench.read_comparison(Path(file)) if file else bench.Comparison(RunConfig())
    parsed: CompareArguments = parse(CompareArguments, arguments, CompareArguments(described.base), "compare")
    out = parsed.out or Path("comparisons") / (Path(file).stem if file else named_after(parsed.base))
    comparison = _chosen(described.on(with_whole_paths(parsed.base)), parsed)
    display = Display(quiet=parsed.json)
    try:
        results = bench.compare(comparison, bench.Bench(out, roots(parsed.folders), parsed.jobs, display.say))
    except KeyboardInterrupt:
        print(f"\nmatu: stopped; finished runs stay in {out}; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(results, indent=1) if parsed.json else (out / "table.md").read_text())
    display.say(f"{out}: results.json  table.md  table.tex  figures/  cells/")
    return DONE


def _chosen(comparison: Any, parsed: CompareArguments) -> Any:
    """The comparison with what the command line asks for."""

    def numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise ConfigError(f"{option} {text!r}: expected numbers by comma") from None

    changes: dict[str, Any] = {}
    if parsed.methods:
        changes["methods"] = tuple(with_whole_path(word.strip()) for word in parsed.methods.split(","))
    if parsed.settings:
        changes["only"] = tuple(word.strip() for word in parsed.settings.split(","))
    if parsed.seeds:
        changes["seeds"] = numbers("--seeds", parsed.seeds, int)
    if parsed.learning_rates:
        changes["learning_rates"] = numbers("--learning-rates", parsed.learning_rates, float)
    changes |= {k: v for k, v in (("tune_rounds", parsed.tune_rounds), ("target", parsed.target)) if v}
    return dataclasses.replace(comparison, **changes)
