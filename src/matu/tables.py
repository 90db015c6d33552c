"""Dataclasses from TOML tables: typed, and nothing in them that is not known."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matu.errors import ConfigError


def read_table(path: Path) -> dict[str, Any]:
    """The content of a TOML file; ConfigError if it is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error


def from_table(kind: Any, table: Any, where: str) -> Any:
    """A dataclass from a table of its fields, sections within; ConfigError, naming `where`, for what does not fit."""
    return kind(**values_of(kind, table, where))


def values_of(kind: Any, table: Any, where: str, *, leave: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a dataclass's fields in a table, typed; those to `leave` are not known here."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a section, found {table!r}")
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in leave}
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(hints)}")
    values = {}
    for name, value in table.items():
        place = f"{where}: {name}"
        if dataclasses.is_dataclass(hints[name]):
            values[name] = from_table(hints[name], value, f"{where} [{name}]")
        else:
            values[name] = _typed(hints[name], value, place)
    return values


def _typed(hint: Any, value: Any, place: str) -> Any:
    """The value as the hinted type; TOML lists become tuples, whole numbers may stand for floats."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{place}: expected a list, found {value!r}")
        return tuple(_typed(typing.get_args(hint)[0], item, place) for item in value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{place}: {value!r}; expected one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{place}: {value!r}; expected {_WORDS[hint]}")
    return value


_WORDS: types.MappingProxyType[type, str] = types.MappingProxyType(
    {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
)
