"""Options by name alone, as settings and methods of a comparison change them: "mat_fl rounds=300 clusters=5"."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from matu.config import RunConfig, TrainingConfig, config_of, config_table
from matu.errors import ConfigError
from matu.methods import find_method, method_name
from matu.methods.base import parse_options

SHARED = ("tasks", "machine")
"""Sections that no setting and no method may change; nor may they change the backbone."""
PLANNED = ("method", "options", "learning_rate", "reference", "held_out")
"""Options that the plan itself sets: methods bring their own, rates are tuned, individual is a method."""


def tuning_spec(spec: str) -> str:
    """A method with its options of [training] alone: with others it takes the rate that it has without them."""
    training = {field.name for field in dataclasses.fields(TrainingConfig)}
    name, *words = spec.split()
    return " ".join([name, *(word for word in words if word.partition("=")[0] in training)])


def shown(spec: str) -> str:
    """A method as people and results name it: without the folder of its file."""
    name, *words = spec.split() or [""]
    return " ".join([method_name(name), *words])


def parse_spec(spec: str) -> tuple[str, dict[str, Any], list[str]]:
    """ "mat_fl clusters=5 rounds=300" -> its name, the options of the run it changes, and its own options.

    Raises
    ------
    ConfigError
        For an unknown method, or a word that is neither.
    """
    name, *words = spec.split() or [""]
    kind, own, changes = find_method(name), [], {}
    fields = dict(by_name(RunConfig()))
    for word in words:
        option, equals, text = word.partition("=")
        if option in {f.name for f in dataclasses.fields(kind.Options)} or option not in fields or not equals:
            own.append(word)
        else:
            changes[option] = _typed_like(fields[option], text, f"method '{spec}'")
    parse_options(kind, own)
    return name, changes, own


def _typed_like(example: Any, text: str, where: str) -> Any:
    if isinstance(example, tuple):
        raise ConfigError(f"{where}: takes no lists; a setting of the configuration may")
    try:
        if isinstance(example, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(example)(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: {text!r}; expected something like {example}") from None


def _options_of(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    for section in dataclasses.fields(config):
        for option, value in dataclasses.asdict(getattr(config, section.name)).items():
            yield section.name, option, value


def by_name(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Every option and its value; an option's name is in one section only."""
    for _, option, value in _options_of(config):
        yield option, value


def with_options(config: RunConfig, changes: Mapping[str, Any], where: str = "") -> RunConfig:
    """The configuration with options replaced by name, whatever section they stand in.

    Raises
    ------
    ConfigError
        For an unknown name, or a value of another type.
    """
    table = config_table(config)
    section_of = {option: section for section, option, _ in _options_of(config)}
    for option, value in changes.items():
        if option not in section_of:
            raise ConfigError(f"{where}: unknown option '{option}'; known are {', '.join(section_of)}")
        if where and (section_of[option] in SHARED or option == "backbone"):
            raise ConfigError(f"{where}: '{option}' is shared by all that is compared; set it for the whole comparison")
        if where and option in PLANNED:
            raise ConfigError(f"{where}: '{option}' is not for a setting or a method; the comparison itself sets it")
        table[section_of[option]][option] = list(value) if isinstance(value, tuple) else value
    return config_of(table, where)
