"""`artifact.json`, what is needed to use an artifact: its form, and what may stand in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from matu.config import RunConfig, config_of
from matu.errors import DataError
from matu.vectors import Layout
from matu.wire import MAX_RESCALER, is_name

FORMAT = 3
KIND = "federated"
NOTE = "artifact.json"
MAX_DIM, MAX_NUMBERS, MAX_RANK, MAX_IMAGE_SIZE = 1 << 28, 1 << 31, 1 << 12, 1 << 13
LORA = ("rank", "alpha", "targets", "adapter_seed", "start_b")


def layout_of(note: Mapping[str, Any]) -> Layout:
    """Names and shapes of the adapter's parameters, in the order of the flat vector."""
    parameters = note["adapter"]["parameters"]
    return Layout(tuple(parameters), tuple(map(tuple, parameters.values())))


def check_note(note: Any) -> None:
    """Require a note of this format, its numbers fitting each other and in bounds; DataError or ConfigError."""
    _check_kind(note)
    _check_form(note, _NOTE, NOTE)
    layout = layout_of(note)
    if not layout.dim == note["adapter"]["dim"] <= MAX_DIM:
        raise DataError(f"dim {note['adapter']['dim']}, the parameters have {layout.dim}, at most {MAX_DIM}")
    _check_values(note)


def _check_values(note: Mapping[str, Any]) -> None:
    """Numbers that fit each other, in bounds, and names that may be shown; DataError or ConfigError."""
    config_in(note, note["backbone"]["name"])
    rank, pixels, tasks = note["adapter"]["lora"]["rank"], note["preprocessing"], note["tasks"]
    for name, shape in note["adapter"]["parameters"].items():
        if len(shape) != 2 or min(shape) < 1 or rank not in shape:
            raise DataError(f"parameter '{name[:80]}': shape {shape}, expected two sides, one of them the rank {rank}")
    if pixels["image_size"] > MAX_IMAGE_SIZE:
        raise DataError(f"image_size {pixels['image_size']}, at most {MAX_IMAGE_SIZE}")
    if len(pixels["mean"]) != 3 or len(pixels["std"]) != 3 or min(pixels["std"]) <= 0:
        raise DataError(f"mean {pixels['mean']}, std {pixels['std']}: expected three numbers each, std above 0")
    if not tasks or not all(about["classes"] for about in tasks.values()):
        raise DataError(f"{NOTE}: no tasks, or one without classes")
    numbers = len(tasks) * note["adapter"]["dim"] if note["form"] == "separate" else 0  # which few bytes may stand for
    if numbers > MAX_NUMBERS or rank > MAX_RANK:
        raise DataError(f"rank {rank}, {numbers} numbers of all tasks; at most {MAX_RANK} and {MAX_NUMBERS}")
    if (hidden := next((one for one in _texts(note) if not one.isprintable()), None)) is not None:
        raise DataError(f"{NOTE}: {hidden[:40]!r}: expected printable text of one line")
    for name in (note["backbone"]["name"], *tasks):
        if not is_name(name):
            raise DataError(f"{NOTE}: {name[:40]!r}: expected 1 to 255 bytes of printable text")
    for task, about in tasks.items():
        if abs(about["scale"]) > MAX_RESCALER:
            raise DataError(f"task '{task}': scale {about['scale']:g}, at most {MAX_RESCALER:g} either way")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a note: people read them in terminals and in Markdown."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(one)


def config_in(note: Mapping[str, Any], backbone: str) -> RunConfig:
    """The adapter's and the images' settings as a configuration; ConfigError for values that cannot be."""
    lora = {name: note["adapter"]["lora"][name] for name in LORA}
    table = {"model": {"backbone": backbone, **lora}, "tasks": {"image_size": note["preprocessing"]["image_size"]}}
    config = config_of(table, NOTE)
    config.check()
    return config


def _check_kind(note: Any) -> None:
    """What is not this format, or of another command, is told first; DataError."""
    kind, found = (note.get("kind"), note.get("format")) if isinstance(note, dict) else (None, None)
    if kind != KIND:
        hint = "; of what matu merge wrote, matu export gives the adapters back" if kind == "merged" else ""
        raise DataError(f"{NOTE}: kind {kind!r}, expected '{KIND}', which a run leaves{hint}")
    if found != FORMAT:
        raise DataError(
            f"{NOTE}: format {found!r}, this version of matu reads {FORMAT}; no other was ever released: run anew"
        )


_NOTE: dict[str, Any] = {
    "form": str,
    "tensors_sha256": str,
    "backbone": {"name": str, "revision": str | None, "sha256": str, "features": int},
    "adapter": {
        "fingerprint": str,
        "dim": int,
        "lora": {
            "rank": int, "alpha": float, "targets": [str], "adapter_seed": int, "start_b": float, "linearised": bool,
        },
        "parameters": {...: [int]},
    },
    "preprocessing": {"image_size": int, "mean": [float], "std": [float]},
    "tasks": {...: {"classes": [str], "source": str, "sha256": str, "accuracy": {...: float}, "scale": float}},
    "provenance": {
        "matu": str, "method": str, "options": [str], "seed": int, "rounds": int, "run": str, "date": str,
        "changes": [str],
    },
}  # fmt: skip
"""What must stand in `artifact.json`: types by key, in [] those of a list's entries, under ... those of any key."""


def _check_form(value: Any, expected: Any, where: str) -> None:
    """Require the structure of `_NOTE`; DataError with the place of the first thing that differs."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object")
        for key, inner in (dict.fromkeys(value, expected[...]) if ... in expected else expected).items():
            if key not in value:
                raise DataError(f"{where}: no '{key}'")
            _check_form(value[key], inner, f"{where}: {key}")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise DataError(f"{where}: expected a list")
        for entry in value:
            _check_form(entry, expected[0], where)
    elif (
        not isinstance(value, expected)
        or (isinstance(value, bool) and expected is not bool)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise DataError(f"{where}: {str(value)[:40]!r}, expected {expected}")
