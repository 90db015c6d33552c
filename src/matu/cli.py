"""The command line: parses, calls, prints."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from matu.config import RunConfig, TasksConfig, read_config
from matu.errors import ConfigError, DataError, MatuError

USAGE = """\
matu: many-task federated fine-tuning with one unified task vector

  matu run      run a federation in this process, from start to table
  matu compare  run several methods side by side: tuned alike, tables and figures
  matu tasks    list and check tasks: classes, counts, a contact sheet
  matu methods  list the methods and their options
  matu bits     what a run's messages will weigh; alone: the paper's bit counts beside the printed ones
  matu certs    keys and certificates for a federation of real sites
  matu server   run a federation whose sites are elsewhere, over TLS
  matu site     take part in one with this site's tasks

matu COMMAND --help tells the options of a command; matu --version the version.
"""

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Folders:
    """Where this machine keeps things."""

    data_root: Path | None = None
    """Folder of task folders; the environment's MATU_DATA by default."""
    models_root: Path | None = None
    """Folder of backbone folders; the environment's MATU_MODELS by default."""
    cache: Path | None = None
    """Decoded images and reference results; MATU_CACHE, or the user's cache folder by default."""


@dataclass(frozen=True)
class RunArguments:
    """Run a many-task federation in this process: train, aggregate, evaluate, leave a run folder."""

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


@dataclass(frozen=True)
class TasksArguments:
    """List and check tasks: every image is decoded once, and all that is wrong is told."""

    settings: TasksConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    sheet: Path | None = None
    """Also draw a contact sheet into this PNG file."""
    json: bool = False
    """Print the list as JSON."""


@dataclass(frozen=True)
class CompareArguments:
    """Run methods side by side on one footing, or reuse what is done: tune, run, write tables and figures."""

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


@dataclass(frozen=True)
class BitsArguments:
    """Say what a run's messages will weigh, by what the bytes are for, beside the paper's form; nothing is trained."""

    settings: RunConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    config: Path | None = None
    """TOML file with settings; options on the command line override it."""
    json: bool = False
    """Print the numbers as JSON."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `matu` and `python -m matu`; exits with 0, 1 (failed), 2 (wrong input) or 130 (Ctrl-C)."""
    sys.exit(run_command(list(sys.argv[1:] if arguments is None else arguments)))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run, "compare": _compare, "tasks": _tasks, "methods": _methods, "bits": _bits,
        **{command: _of_sites(command) for command in ("certs", "server", "site")},
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"matu {version('matu')}")
        return DONE
    if arguments[0] not in commands:
        print(f"matu: unknown command '{arguments[0]}'; expected one of {', '.join(commands)}", file=sys.stderr)
        return WRONG_INPUT
    try:
        return commands[arguments[0]](arguments[1:])
    except (MatuError, OSError) as error:
        print(f"matu: {error}", file=sys.stderr)
        return WRONG_INPUT if isinstance(error, (ConfigError, DataError)) else FAILED
    except KeyboardInterrupt:
        print("\nmatu: stopped", file=sys.stderr)
        return INTERRUPTED


def _parse(kind: Any, arguments: list[str], default: Any, command: str) -> Any:
    stray = _leading_words(arguments)
    if stray:
        raise ConfigError(
            f"matu {command}: {' '.join(stray)}: expected options; tasks are named by --tasks {' '.join(stray)}"
        )
    return tyro.cli(kind, args=arguments, default=default, prog=f"matu {command}", config=(tyro.conf.OmitArgPrefixes,))


def _run(arguments: list[str]) -> int:
    config_file, resume = _value_of("--config", arguments), _value_of("--resume", arguments)
    if config_file and resume:
        raise ConfigError("--config and --resume: a resumed run keeps its own settings; give only --resume")
    base = RunConfig()
    if config_file:
        base = read_config(Path(config_file))
    if resume:
        if not (Path(resume) / "config.toml").is_file():
            raise ConfigError(f"--resume {resume}: holds no run (no config.toml); expected the folder of one")
        base = read_config(Path(resume) / "config.toml")
    parsed: RunArguments = _parse(RunArguments, arguments, RunArguments(base), "run")
    config = parsed.settings
    if resume:
        _check_unchanged(base, config, resume)
        if parsed.out is not None and parsed.out != parsed.resume:
            raise ConfigError(f"--out {parsed.out}: a resumed run stays in its folder {resume}")
    out = parsed.resume or parsed.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{_named_after(config)}"
    config.check()
    if not resume:
        config = _with_whole_paths(config)
    return _simulate(config, out, parsed, resume=bool(resume))


def _named_after(config: RunConfig) -> str:
    """A folder's name from the first tasks."""
    return "-".join(Path(task).name.replace(":", "-").replace("/", "-") for task in config.tasks.tasks[:3])


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Folders given by path as whole paths, so that the run's config.toml means the same from anywhere."""

    def whole(name: str) -> str:
        return str(Path(name).expanduser().resolve()) if name.startswith((".", "/", "~")) else name

    tasks = dataclasses.replace(config.tasks, tasks=tuple(whole(task) for task in config.tasks.tasks))
    model = dataclasses.replace(config.model, backbone=whole(config.model.backbone))
    method = config.federation.method
    if method.endswith(".py"):
        method = str(Path(method).expanduser().resolve())
    federation = dataclasses.replace(config.federation, method=method)
    return dataclasses.replace(config, tasks=tasks, model=model, federation=federation)


def _simulate(config: RunConfig, out: Path, parsed: RunArguments, *, resume: bool) -> int:
    _prepare_libraries()
    from matu.report import Display, print_result
    from matu.simulate import simulate

    try:
        result = simulate(config, out, _roots(parsed.folders), Display(quiet=parsed.json), resume=resume)
    except KeyboardInterrupt:
        said = "nothing was begun, no folder is left; start again"
        if (out / "config.toml").is_file():
            said = " ".join(["go on with: matu run --resume", str(out), *_flags(parsed.folders)])
        print(f"\nmatu: stopped; {said}", file=sys.stderr)
        return INTERRUPTED
    if parsed.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result, out)
    return DONE


def _tasks(arguments: list[str]) -> int:
    named = _leading_words(arguments)
    settings = dataclasses.replace(TasksConfig(), tasks=tuple(named)) if named else TasksConfig()
    parsed: TasksArguments = _parse(TasksArguments, arguments[len(named) :], TasksArguments(settings), "tasks")
    _prepare_libraries()
    from matu.report.tasks import print_tasks, tasks_as_json
    from matu.roots import read_tasks
    from matu.tasks.contact_sheet import contact_sheet

    tasks = read_tasks(parsed.settings, _roots(parsed.folders))
    if parsed.sheet:
        contact_sheet(tasks, parsed.sheet)
    if parsed.json:
        print(json.dumps(tasks_as_json(tasks), indent=1))
    else:
        print_tasks(tasks, parsed.sheet)
    return DONE


def _compare(arguments: list[str]) -> int:
    _prepare_libraries()
    from matu.bench import Bench, Comparison, compare, read_comparison
    from matu.report import Display

    file = _value_of("--config", arguments)
    several = {"--method": "--methods", "--options": "--methods, options after a space",
               "--learning-rate": "--learning-rates", "--seed": "--seeds"}  # fmt: skip
    for option, right in several.items():
        if _value_of(option, arguments) is not None:
            raise ConfigError(f"{option} is of a single run; expected {right}")
    described = read_comparison(Path(file)) if file else Comparison(RunConfig())
    parsed: CompareArguments = _parse(CompareArguments, arguments, CompareArguments(described.base), "compare")
    out = parsed.out or Path("comparisons") / (Path(file).stem if file else _named_after(parsed.base))
    comparison = _chosen(dataclasses.replace(described, base=_with_whole_paths(parsed.base)), parsed)
    display = Display(quiet=parsed.json)
    try:
        results = compare(comparison, Bench(out, _roots(parsed.folders), parsed.jobs, display.say))
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
        changes["methods"] = tuple(_with_whole_path(word.strip()) for word in parsed.methods.split(","))
    if parsed.settings:
        changes["only"] = tuple(word.strip() for word in parsed.settings.split(","))
    if parsed.seeds:
        changes["seeds"] = numbers("--seeds", parsed.seeds, int)
    if parsed.learning_rates:
        changes["learning_rates"] = numbers("--learning-rates", parsed.learning_rates, float)
    changes |= {k: v for k, v in (("tune_rounds", parsed.tune_rounds), ("target", parsed.target)) if v}
    return dataclasses.replace(comparison, **changes)


def _with_whole_path(spec: str) -> str:
    """A method's file by its whole path, so that a comparison goes on from anywhere."""
    name, _, options = spec.partition(" ")
    return f"{Path(name).expanduser().resolve() if name.endswith('.py') else name} {options}".strip()


def _methods(arguments: list[str]) -> int:
    _no_more("methods", arguments)
    _prepare_libraries()
    from matu.methods import find_method, method_names

    for name in method_names():
        kind = find_method(name)
        about = (sys.modules[kind.__module__].__doc__ or "").split("\n", 1)[0]
        options = [f"{field.name}={field.default}" for field in dataclasses.fields(kind.Options)]
        print(f"{name:16} {about.partition(': ')[2]}" + (f"\n{'':16} options: {', '.join(options)}" if options else ""))
    return DONE


def _bits(arguments: list[str]) -> int:
    if not arguments:
        from matu.bits import text

        print(text())
        return DONE
    file = _value_of("--config", arguments)
    base = read_config(Path(file)) if file else RunConfig()
    parsed: BitsArguments = _parse(BitsArguments, arguments, BitsArguments(base), "bits")
    parsed.settings.check()
    _prepare_libraries()
    from matu.forecast import as_table, as_text, forecast

    found = forecast(parsed.settings, _roots(parsed.folders))
    print(json.dumps(as_table(parsed.settings, found), indent=1) if parsed.json else as_text(parsed.settings, found))
    return DONE


def _of_sites(command: str) -> Callable[[list[str]], int]:
    """A command of a deployed federation; its module is loaded when it is called."""

    def call(arguments: list[str]) -> int:
        _prepare_libraries()
        from matu import cli_sites

        found: int = getattr(cli_sites, command)(arguments)
        return found

    return call


def _no_more(command: str, arguments: list[str]) -> None:
    if arguments:
        raise ConfigError(f"matu {command}: takes no options, found {' '.join(arguments)}")


def _flags(folders: Folders) -> list[str]:
    """The folders that were given as options, as options again."""
    given = {"--data-root": folders.data_root, "--models-root": folders.models_root, "--cache": folders.cache}
    return [word for flag, folder in given.items() if folder for word in (flag, str(folder))]


def _roots(folders: Folders) -> Any:
    from matu.roots import Roots
    from matu.tasks import default_cache_dir

    def root(flag: str, given: Path | None, variable: str) -> Path | None:
        if given is None and os.environ.get(variable):
            flag, given = variable, Path(os.environ[variable])
        if given is not None and not given.is_dir():
            raise ConfigError(f"{flag}: {given} is no folder")
        return given

    return Roots(
        root("--data-root", folders.data_root, "MATU_DATA"),
        root("--models-root", folders.models_root, "MATU_MODELS"),
        folders.cache or default_cache_dir(),
    )


def _check_unchanged(saved: RunConfig, asked: RunConfig, folder: str) -> None:
    before, after = dataclasses.asdict(saved), dataclasses.asdict(asked)
    changed = [
        f"{name} {before[section][name]!r} -> {value!r}"
        for section, values in after.items()
        for name, value in values.items()
        if before[section][name] != value
    ]
    if changed:
        raise ConfigError(
            f"--resume {folder}: the checkpoint is of another configuration ({'; '.join(changed)}); "
            "resume without these options, or start a new run"
        )


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option that must be known before the others can be parsed."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _leading_words(arguments: Sequence[str]) -> list[str]:
    """The words before the first option."""
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return list(arguments[:first])


def _prepare_libraries() -> None:
    """Before torch is imported: how its threads wait, no telemetry, no progress bars and advice of libraries."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait spin briefly: a busy machine stays usable
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for kind in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"(transformers|peft|datasets|huggingface_hub)\b")
