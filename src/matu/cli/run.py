"""matu run and matu simulate."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu.cli.common import (
    DONE,
    INTERRUPTED,
    Folders,
    flags,
    named_after,
    parse,
    prepare_libraries,
    roots,
    value_of,
    with_whole_paths,
)
from matu.cli.report import leave_report
from matu.config import RunConfig, changed_options, read_config
from matu.errors import ConfigError
from matu.report.sinks import SinkName, Sinks, check_sinks


@dataclass(frozen=True)
class RunArguments:
    """Run a many-task federation in this process, from start to table.

    It trains, aggregates, evaluates and leaves a run folder.

    Examples:
        matu run --config configs/demo.toml
        matu run --tasks ./flowers ./birds --clients 6 --rounds 20 --reference
        matu run --resume runs/garden
    """

    settings: RunConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    config: Path | None = None
    """TOML file with settings; options on the command line override it."""
    out: Path | None = None
    """Run folder to make; runs/<time>-<tasks> by default."""
    resume: Path | None = None
    """Run folder to go on with after the last finished round; takes no other settings."""
    json: bool = False
    """Print result.json alone on stdout, nothing on stderr but errors."""
    jobs: int = 0
    """Trainings (of matu simulate: sites) at work at a time, each with --threads threads; 0: one a core on a CPU,
    one on a GPU. The result does not depend on it; fewer need less memory."""
    report: bool = True
    """Leave report.html in the run folder."""
    sinks: tuple[SinkName, ...] = ()
    """Who is told the rounds besides, each an extra: tensorboard, mlflow, wandb."""


@dataclass(frozen=True)
class SimulateArguments(RunArguments):
    """Run a federation of virtual sites, several at a time, over Flower on Ray.

    The result is that of matu run. Needs the extra `ray` of the installation.

    Example:
        matu simulate --config configs/demo.toml --sites 20 --jobs 2
    """

    sites: int = 0
    """How many sites; 0: as configured (--clients)."""


def run(arguments: list[str]) -> int:
    """matu run."""
    parsed, config, out = _asked(RunArguments, arguments, "run")
    return _simulate(config, out, parsed, "run", {})


def simulate(arguments: list[str]) -> int:
    """matu simulate."""
    parsed, config, out = _asked(SimulateArguments, arguments, "simulate")
    prepare_libraries()
    from matu.federation.flower.virtual import on_ray
    from matu.methods import Method, find_method

    if not issubclass(find_method(config.federation.method), Method):
        raise ConfigError(f"method '{config.federation.method}' sends no messages; matu run runs it")
    return _simulate(config, out, parsed, "simulate", {"carrier": on_ray(parsed.jobs)})


def _asked(kind: type[RunArguments], arguments: list[str], command: str) -> tuple[Any, RunConfig, Path]:
    """What was typed, the configuration it means, and the run folder."""
    config_file, resume = value_of("--config", arguments), value_of("--resume", arguments)
    if config_file and resume:
        raise ConfigError("--config and --resume: a resumed run keeps its own settings; give only --resume")
    base = RunConfig()
    if config_file:
        base = read_config(Path(config_file))
    if resume:
        if not (Path(resume) / "config.toml").is_file():
            raise ConfigError(f"--resume {resume}: holds no run (no config.toml); expected the folder of one")
        base = read_config(Path(resume) / "config.toml")
    parsed = parse(kind, arguments, kind(base), command)
    config = parsed.settings
    if isinstance(parsed, SimulateArguments):
        config = _for_ray(config, parsed.sites)
    if resume:
        _check_unchanged(base, config, resume)
        if parsed.out is not None and parsed.out != parsed.resume:
            raise ConfigError(f"--out {parsed.out}: a resumed run stays in its folder {resume}")
    out = parsed.resume or parsed.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{named_after(config)}"
    config.check()
    if not resume:
        config = with_whole_paths(config)
    return parsed, config, out


def _for_ray(config: RunConfig, sites: int) -> RunConfig:
    """As many clients as were asked for; one thread a site unless told otherwise, so that sites do not crowd."""
    federation = dataclasses.replace(config.federation, clients=sites or config.federation.clients)
    machine = dataclasses.replace(config.machine, threads=config.machine.threads or 1)
    return dataclasses.replace(config, federation=federation, machine=machine)


def _simulate(config: RunConfig, out: Path, parsed: RunArguments, command: str, how: dict[str, Any]) -> int:
    prepare_libraries()
    from matu.methods import find_method
    from matu.report import Display, print_result
    from matu.simulate import simulate

    check_sinks(parsed.sinks)
    if parsed.resume is None:
        find_method(config.federation.method).options_of(config)
    display = Display(quiet=parsed.json)
    sinks = Sinks(parsed.sinks, out, display.say)
    try:
        result = simulate(
            config, out, roots(parsed.folders), display, resume=parsed.resume is not None, jobs=parsed.jobs,
            on_round=sinks, **how,
        )  # fmt: skip
    except KeyboardInterrupt:
        said = "nothing was begun, no folder is left; start again"
        if (out / "config.toml").is_file():
            named = ["--sinks", *parsed.sinks] if parsed.sinks else []
            said = " ".join([f"go on with: matu {command} --resume", str(out), *flags(parsed.folders), *named])
        print(f"\nmatu: stopped; {said}", file=sys.stderr)
        return INTERRUPTED
    finally:
        sinks.close()
    if parsed.report:
        leave_report(out)
    if parsed.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result, out)
    return DONE


def _check_unchanged(saved: RunConfig, asked: RunConfig, folder: str) -> None:
    if changed := changed_options(dataclasses.asdict(saved), dataclasses.asdict(asked)):
        raise ConfigError(
            f"--resume {folder}: the checkpoint is of another configuration ({'; '.join(changed)}); "
            "resume without these options, or start a new run"
        )
