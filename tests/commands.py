"""What a command of the documentation means, by matu's own parser; nothing is run."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from matu.bench import Comparison, read_comparison
from matu.cli import COMMANDS, options_of
from matu.cli.common import leading_words, read_options, value_of
from matu.cli.compare import _chosen
from matu.config import RunConfig, read_config

ROOT = Path(__file__).parents[1]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def words_of(line: str) -> list[str]:
    """A shell line's words, without comment."""
    return shlex.split(line, comments=True)


def check_line(line: str) -> None:
    """Fail unless every command, option, target, extra and named configuration of a shell line is there."""
    words = words_of(line)
    if words and words[0] in ("matu", ".venv/bin/matu"):
        check_matu(words[1:])
    elif words and words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS, line
    elif words[:2] == ["python", "-m"]:
        assert words[2] in ("pytest", "http.server"), line
    elif words and words[0] == "python":
        options = [word[2:].replace("-", "_") for word in words[2:] if word.startswith("--")]
        text = (ROOT / words[1]).read_text().replace("-", "_")
        assert all(re.search(rf"\b_*{option}\b", text) for option in options), line
    elif words and words[0] in ("pip", ".venv/bin/pip"):
        assert words[:-1] == [".venv/bin/pip", "install", "--constraint", "constraints.txt", "-e"], line
        (extras,) = re.findall(r"^\.\[([\w,]+)\]$", words[-1])  # matu is on no package index
        assert set(extras.split(",")) <= EXTRAS, line
    elif words:
        assert words[0] == "export", f"no rule for: {line}"


def check_matu(words: Sequence[str]) -> None:
    """Fail unless these are a command, its options with values of their kinds, and settings that may be run."""
    assert words[0] in COMMANDS, words
    command, rest = words[0], list(words[1:])
    if command in ("tasks", "merge"):
        rest = rest[len(leading_words(rest)) :]
    kind, file = options_of(command), value_of("--config", rest)
    kept = ROOT / file if file and file.startswith("configs/") else None  # others are written by the reader
    asked: Any = None
    default: Any = tyro.MISSING_NONPROP
    if command == "compare":
        described = read_comparison(kept) if kept else Comparison(RunConfig())
        default = kind(described.base)
    elif command in ("run", "simulate", "relate", "bits"):
        default = kind(read_config(kept) if kept else RunConfig())
    code: Any = 0
    try:
        asked = read_options(kind, rest, command, default)
    except SystemExit as stop:  # 0 of --help
        code = stop.code
    assert code == 0, f"matu {' '.join(words)}"
    if command == "compare" and asked:
        _chosen(dataclasses.replace(described, base=asked.base), asked).check()
    elif hasattr(asked, "settings") and command != "tasks":
        asked.settings.check()
