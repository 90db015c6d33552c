"""matu merge: PEFT LoRA adapters of one base into one vector with a modulator a task, without any federation."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matu.cli.common import DONE, leading_words, parse, prepare_libraries
from matu.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class MergeArguments:
    """Merge PEFT LoRA adapters of one base: matu merge ADAPTER_DIR... --to DIR.

    A task is called as its folder is; NAME=DIR calls it otherwise.

    Example:
        matu merge adapters/birds adapters/cars signs=runs/7/adapter --to merged
    """

    to: Path | None = None
    """New folder for what comes out."""
    method: Literal["unify", "ties", "task_arithmetic", "mean"] = "unify"
    """unify: one vector, and a mask and a number a task; the others: one adapter for all tasks."""
    rank: int | None = None
    """Of what comes out where weight changes are merged; the adapters' largest rank by default."""
    keep: float | None = None
    """ties: share of entries that survives the trim; 0.2 by default."""
    scale: float | None = None
    """ties, task_arithmetic: of the merged vector; 1 and 0.3 by default."""
    assume_shared_start: Path | None = None
    """You vouch that all adapters' training began at the adapter in this folder: its A and B are subtracted."""
    json: bool = False
    """Print the content of artifact.json in place of the table."""


def merge(arguments: list[str]) -> int:
    """matu merge."""
    words = leading_words(arguments)
    parsed: MergeArguments = parse(MergeArguments, arguments[len(words) :], MergeArguments(), "merge")
    if parsed.to is None:
        raise ConfigError("matu merge: --to DIR is missing: the folder for what comes out")
    folders = _named(words)
    prepare_libraries()
    from matu.merge import merge as merge_adapters

    note = merge_adapters(
        folders, parsed.to, method=parsed.method, rank=parsed.rank, keep=parsed.keep, scale=parsed.scale,
        shared_start=parsed.assume_shared_start,
    )  # fmt: skip
    if parsed.json:
        print(json.dumps(note, indent=1))
        return DONE
    from matu.report.console import plain_console

    console = plain_console()
    console.print(_table(note))
    for line in _lines(note, parsed.to):
        console.print(line, markup=False, soft_wrap=True)
    return DONE


def _named(words: list[str]) -> dict[str, Path]:
    """Folders by task; ConfigError for a name that is no good, or is there twice."""
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        named = equals and os.sep not in name and not name.startswith(("~", "."))  # else the sign is in a path
        path = Path(folder if named else word).expanduser()
        name = name if named else os.path.basename(os.path.abspath(path))
        if name in folders:
            raise ConfigError(f"two adapters are called '{name}' ({folders[name]}, {path}); name one: NAME={path}")
        folders[name] = path
    return folders


def _table(note: dict[str, Any]) -> Table:
    from rich.table import Table

    from matu.merge.card import FIGURES, number

    table = Table(title=f"{len(note['tasks'])} adapters merged by {note['method']}, {note['form'].replace('_', ' ')}")
    table.add_column("task")
    for heading in FIGURES.values():
        table.add_column(heading, justify="right")
    for name, task in note["tasks"].items():
        table.add_row(name, *(number(task[key]) for key in FIGURES))
    return table


def _lines(note: dict[str, Any], to: Path) -> list[str]:
    sizes = note["sizes"]
    before, after, heads = (sizes[f"{what}_bytes"] / 1e6 for what in ("adapters", "merged", "heads"))
    lines = [f"size: {before:.2f} MB before, {after:.2f} MB now ({after / before:.1%}), heads in both {heads:.2f} MB"]
    if note["form"] == "weight_change":
        lines.append(
            "the adapters are not known to share a start, so their weight changes were merged, "
            f"at rank {note['adapter_config']['r']}; --rank sets another"
        )
    return [*lines, f"written to {to}"]
