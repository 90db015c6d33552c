"""matu completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from matu.cli import COMMANDS, options_of
from matu.cli.common import DONE, read_options

_FILES_TOO = """
_matu() { _tyro_matu; [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=(); }
complete -o default -F _matu matu"""
"""Where no option or choice is meant, bash completes files as it would without the script."""


@dataclass(frozen=True)
class CompletionArguments:
    """Print a script that completes commands, options and choices in a shell.

    It calls python3. For this shell, and for every new bash or zsh:

    Examples:
        source <(matu completion bash)
        echo 'source <(matu completion bash)' >> ~/.bashrc
        echo 'source <(matu completion zsh)' >> ~/.zshrc
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Which shell."""


def completion(arguments: list[str]) -> int:
    """matu completion."""
    asked = read_options(CompletionArguments, arguments, "completion")
    commands = tuple(Annotated[options_of(name), tyro.conf.subcommand(name)] for name in COMMANDS)
    any_command: Any = Union[commands]  # noqa: UP007
    words = ["--tyro-print-completion", asked.shell]
    try:
        tyro.cli(any_command, args=words, prog="matu", config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit:
        if asked.shell == "bash":
            print(_FILES_TOO)
    return DONE
