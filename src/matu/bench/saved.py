"""A comparison as a TOML file, and whether two of them may share a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from matu.bench.options import PLANNED
from matu.bench.plan import Comparison, names_of
from matu.config import RunConfig, WireConfig, config_of, config_table
from matu.errors import ConfigError
from matu.tables import read_table, values_of


def read_comparison(path: Path) -> Comparison:
    """A comparison from a TOML file: a run's sections, and perhaps [compare] and [settings.NAME].

    Raises
    ------
    ConfigError
        For a missing or broken file, or an unknown section, option or value.
    """
    return comparison_of(read_table(path), str(path))


def comparison_of(table: Mapping[str, Any], where: str) -> Comparison:
    """The comparison in a table as `Comparison.table` gives it."""
    run = {name: section for name, section in table.items() if name not in ("compare", "settings")}
    settings = table.get("settings", {})
    rest = values_of(Comparison, table.get("compare", {}), f"{where} [compare]", leave=("base", "settings"))
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise ConfigError(f"{where}: expected sections [settings.NAME], found {settings!r}")
    return Comparison(config_of(run, where), settings, **rest)


def write_comparison(comparison: Comparison) -> bytes:
    """As TOML, complete."""
    return tomli_w.dumps(comparison.table()).encode()


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What keeps two comparisons (tables) from sharing a folder; methods, seeds, settings and rates may be added.

    Where tasks and backbone lie is no difference: what is in them is checked by content.
    """
    found = []
    for section in sorted((set(saved) | set(asked)) - {"compare", "settings", "machine"}):
        before, after = (_without_places(table.get(section, {})) for table in (saved, asked))
        found += [f"{o}: {before.get(o)!r} there, {after.get(o)!r} here" for o in sorted(set(before) | set(after))
                  if before.get(o) != after.get(o) and o not in PLANNED]  # fmt: skip
    before, after = saved["compare"], asked["compare"]
    if before["tune_rounds"] != after["tune_rounds"]:
        found.append(f"tune_rounds: {before['tune_rounds']} there, {after['tune_rounds']} here")
    if not set(before["learning_rates"]) <= set(after["learning_rates"]):
        found.append(f"learning_rates: {before['learning_rates']} there, which {after['learning_rates']} leaves out")
    for name, values in asked["settings"].items():
        if name in saved["settings"] and saved["settings"][name] != values:
            found.append(f"setting '{name}': {saved['settings'][name]} there, {values} here")
    return found


def _without_places(section: Mapping[str, Any]) -> dict[str, Any]:
    places = {"tasks": names_of(section.get("tasks", ())), "backbone": Path(section.get("backbone", "")).name}
    return {option: places.get(option, value) for option, value in section.items()}


def load_saved(path: Path) -> dict[str, Any] | None:
    """The table of the comparison that a folder holds, or None.

    Options that were not there when it was saved are as all runs were then: at their defaults, messages exact.
    """
    if not path.is_file():
        return None
    saved = read_table(path)
    if not {"compare", "settings"} <= set(saved):
        raise ConfigError(f"{path}: not what a comparison keeps; expected sections [compare] and [settings.NAME]")
    older = config_table(RunConfig(wire=WireConfig.exact()))
    return saved | {section: options | saved.get(section, {}) for section, options in older.items()}
