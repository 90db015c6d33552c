"""The command line: parses, calls, prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

from matu.cli.common import DONE, FAILED, INTERRUPTED, WRONG_INPUT
from matu.errors import ConfigError, DataError, DivergedError, MatuError

USAGE = """\
matu: many-task federated fine-tuning with one unified task vector

A federation on this machine
  matu run         run a federation in this process, from start to table
  matu simulate    the same with virtual sites side by side, over Flower on Ray
  matu compare     several methods side by side: tuned alike, tables, figures
  matu relate      which tasks are alike: five measures, clusters, figures
Look at it
  matu watch       follow a run in the terminal
  matu report      a page of a run, or of several side by side
  matu tasks       list and check tasks: classes, counts, a contact sheet
  matu methods     list the methods and their options
  matu bits        what a run's messages will weigh
Use what came out
  matu inspect     what an artifact of a run weighs and holds
  matu predict     classify images with it
  matu evaluate    measure it on test images
  matu export      write its tasks as plain PEFT adapters
  matu forget      write it without a task, or with a task negated
  matu merge       merge PEFT LoRA adapters without any federation
Sites elsewhere
  matu certs       keys and certificates for a federation of real sites
  matu server      run a federation whose sites are elsewhere, over TLS
  matu site        take part in one with this site's tasks
Besides
  matu completion  a script that completes commands and options in a shell

Example: matu run --config configs/demo.toml
matu COMMAND --help tells a command's options; matu --version the version.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.
"""

COMMANDS = {
    **dict.fromkeys(("run", "simulate"), "matu.cli.run"),
    **dict.fromkeys(("compare",), "matu.cli.compare"),
    **dict.fromkeys(("tasks", "methods", "bits"), "matu.cli.show"),
    **dict.fromkeys(("relate",), "matu.cli.relate"),
    **dict.fromkeys(("merge",), "matu.cli.merge"),
    **dict.fromkeys(("inspect", "predict", "evaluate", "export", "forget"), "matu.cli.artifact"),
    **dict.fromkeys(("report", "watch"), "matu.cli.report"),
    **dict.fromkeys(("certs", "server", "site"), "matu.cli.sites"),
    **dict.fromkeys(("completion",), "matu.cli.completion"),
}
"""By command, the module that is loaded when it is called: a function of that name, and its options, NameArguments."""


def options_of(command: str) -> type:
    """The dataclass of a command's options."""
    kind: type = getattr(import_module(COMMANDS[command]), f"{command.capitalize()}Arguments")
    return kind


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `matu` and `python -m matu`; exits with 0, 1 (failed), 2 (wrong input) or 130 (Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] != ["site"]:
        sys.exit(run_command(words))
    try:
        code: object = run_command(words)
    except SystemExit as ended:
        code = ended.code
    # All is put away. A thread may be in the middle of a training step, where Python's own end aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else FAILED)


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"matu {version('matu')}")
        return DONE
    if arguments[0] not in COMMANDS:
        print(_unknown(arguments[0]), file=sys.stderr)
        return WRONG_INPUT
    try:
        call: Callable[[list[str]], int] = getattr(import_module(COMMANDS[arguments[0]]), arguments[0])
        return call(arguments[1:])
    except (MatuError, OSError) as error:
        print(f"matu: {error}", file=sys.stderr)
        wrong = isinstance(error, (ConfigError, DataError)) and not isinstance(error, DivergedError)
        return WRONG_INPUT if wrong else FAILED
    except KeyboardInterrupt:
        print("\nmatu: stopped", file=sys.stderr)
        return INTERRUPTED


def _unknown(word: str) -> str:
    """What is wrong with a first word that is no command."""
    if word.startswith("-"):
        return f"matu: {word}: a command comes first, then its options; matu --help lists the commands"
    near = get_close_matches(word, COMMANDS, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"matu: unknown command '{word}'{meant or '; expected one of ' + ', '.join(COMMANDS)}"
