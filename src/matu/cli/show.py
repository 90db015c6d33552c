"""Commands that train nothing: matu tasks, matu methods, matu bits."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from matu.cli.common import DONE, Folders, leading_words, parse, prepare_libraries, read_options, roots, value_of
from matu.config import RunConfig, TasksConfig, read_config
from matu.errors import ConfigError


@dataclass(frozen=True)
class TasksArguments:
    """List and check tasks: every image is decoded, and all that is wrong is told.

    Tasks may be named before all options.

    Example:
        matu tasks ./flowers ./birds --sheet sheet.png
    """

    settings: TasksConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    sheet: Path | None = None
    """Also draw a contact sheet into this PNG file."""
    json: bool = False
    """Print the list as JSON."""


@dataclass(frozen=True)
class MethodsArguments:
    """List the methods and their own options.

    Example:
        matu methods
    """


@dataclass(frozen=True)
class BitsArguments:
    """Say what a run's messages will weigh, by what the bytes are for.

    The paper's form stands beside it, and nothing is trained.

    Without any option: the paper's own bit counts beside the printed ones.

    Examples:
        matu bits
        matu bits --config configs/demo.toml --uplink 2bit
    """

    settings: RunConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    config: Path | None = None
    """TOML file with settings; options on the command line override it."""
    json: bool = False
    """Print the numbers as JSON."""


def tasks(arguments: list[str]) -> int:
    """matu tasks."""
    named = leading_words(arguments)
    settings = dataclasses.replace(TasksConfig(), tasks=tuple(named)) if named else TasksConfig()
    parsed: TasksArguments = parse(TasksArguments, arguments[len(named) :], TasksArguments(settings), "tasks")
    prepare_libraries()
    from matu.report.tasks import print_tasks, tasks_as_json
    from matu.roots import read_tasks
    from matu.tasks.contact_sheet import contact_sheet

    found = read_tasks(parsed.settings, roots(parsed.folders))
    if parsed.sheet:
        contact_sheet(found, parsed.sheet)
    if parsed.json:
        print(json.dumps(tasks_as_json(found), indent=1))
    else:
        print_tasks(found, parsed.sheet)
    return DONE


def methods(arguments: list[str]) -> int:
    """matu methods."""
    if leading_words(arguments):
        raise ConfigError(f"matu methods: takes no options, found {' '.join(arguments)}")
    read_options(MethodsArguments, arguments, "methods")
    prepare_libraries()
    from matu.methods import find_method, method_names

    for name in method_names():
        kind = find_method(name)
        about = (sys.modules[kind.__module__].__doc__ or "").split("\n", 1)[0]
        options = [f"{field.name}={field.default}" for field in dataclasses.fields(kind.Options)]
        print(f"{name:16} {about.partition(': ')[2]}" + (f"\n{'':16} options: {', '.join(options)}" if options else ""))
    return DONE


def bits(arguments: list[str]) -> int:
    """matu bits."""
    if not arguments:
        from matu.bits import text

        print(text())
        return DONE
    file = value_of("--config", arguments)
    base = read_config(Path(file)) if file else RunConfig()
    parsed: BitsArguments = parse(BitsArguments, arguments, BitsArguments(base), "bits")
    parsed.settings.check()
    prepare_libraries()
    from matu.forecast import as_table, as_text, forecast

    found = forecast(parsed.settings, roots(parsed.folders))
    print(json.dumps(as_table(parsed.settings, found), indent=1) if parsed.json else as_text(parsed.settings, found))
    return DONE
