"""What several commands share: exit codes, folders, and how options are read."""

from __future__ import annotations

import dataclasses
import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from matu.config import RunConfig
from matu.errors import ConfigError
from matu.federation.flower import ENVIRONMENT

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted."


@dataclass(frozen=True)
class Folders:
    """Where this machine keeps things."""

    data_root: Path | None = None
    """Folder of task folders; the environment's MATU_DATA by default."""
    models_root: Path | None = None
    """Folder of backbone folders; the environment's MATU_MODELS by default."""
    cache: Path | None = None
    """Decoded images and reference results; MATU_CACHE, or the user's cache folder by default."""


def parse(kind: Any, arguments: list[str], default: Any, command: str) -> Any:
    """The options of a command as `kind`; ConfigError for words that belong to none."""
    stray = leading_words(arguments)
    if stray:
        raise ConfigError(
            f"matu {command}: {' '.join(stray)}: expected options; tasks are named by --tasks {' '.join(stray)}"
        )
    return read_options(kind, arguments, command, default)


def read_options(kind: Any, arguments: Sequence[str], command: str, default: Any = tyro.MISSING_NONPROP) -> Any:
    """The options of a command as `kind`; --help says its docstring, examples included, and the exit codes."""
    return tyro.cli(
        kind, args=arguments, default=default, prog=f"matu {command}",
        description=f"{inspect.cleandoc(kind.__doc__)}\n\n{EXIT_CODES}", config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option that must be known before the others can be parsed; ConfigError for a second one."""
    found = []
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != option:
            continue
        if equals or i + 1 < len(arguments):
            found.append(value if equals else arguments[i + 1])
    if len(found) > 1:
        raise ConfigError(f"{option}: given {len(found)} times ({', '.join(found)}), expected once")
    return found[0] if found else None


def leading_words(arguments: Sequence[str]) -> list[str]:
    """The words before the first option."""
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return list(arguments[:first])


def named_after(config: RunConfig) -> str:
    """A folder's name from the tasks: all of four, else the first three and how many more."""
    names = [Path(task).name.replace(":", "-").replace("/", "-") for task in config.tasks.tasks]
    return "-".join(names if len(names) <= 4 else [*names[:3], f"and-{len(names) - 3}-more"])


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Folders given by path as whole paths, so that the run's config.toml means the same from anywhere."""

    from matu.tasks.sources import is_path

    def whole(name: str) -> str:  # a link at the end keeps its name, which is the task's
        path = Path(name).expanduser()
        return str(path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name)

    names = tuple(whole(task) if is_path(task) else task for task in config.tasks.tasks)
    tasks = dataclasses.replace(config.tasks, tasks=names)
    backbone = config.model.backbone
    model = dataclasses.replace(
        config.model, backbone=whole(backbone) if backbone.startswith((".", "/", "~")) else backbone
    )
    method = config.federation.method
    if method.endswith(".py"):
        method = str(Path(method).expanduser().resolve())
    federation = dataclasses.replace(config.federation, method=method)
    return dataclasses.replace(config, tasks=tasks, model=model, federation=federation)


def with_whole_path(spec: str) -> str:
    """A method's file by its whole path, so that a comparison goes on from anywhere."""
    name, _, options = spec.partition(" ")
    return f"{Path(name).expanduser().resolve() if name.endswith('.py') else name} {options}".strip()


def flags(folders: Folders) -> list[str]:
    """The folders that were given as options, as options again."""
    given = {"--data-root": folders.data_root, "--models-root": folders.models_root, "--cache": folders.cache}
    return [word for flag, folder in given.items() if folder for word in (flag, str(folder))]


def roots(folders: Folders) -> Any:
    """The `matu.roots.Roots` of this machine; ConfigError for a folder that is none."""
    from matu.roots import find_roots

    return find_roots(folders.data_root, folders.models_root, folders.cache)


def prepare_libraries() -> None:
    """Before torch is imported: how its threads wait, no telemetry, no progress bars and advice of libraries."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait spin briefly: a busy machine stays usable
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(ENVIRONMENT)
    for kind in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"(transformers|peft|datasets|huggingface_hub)\b")
