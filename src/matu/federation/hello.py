"""What server and sites tell each other beside the messages of a round: small JSON, checked field by field.

A hello is a site's answer to "who are you": its name, its tasks with class names and numbers of images, the
fingerprint of its adapter. A score is its answer to "how good is this": how many of its own test images of each task it
labels right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matu.errors import DataError
from matu.wire import MAX_SAMPLES, MAX_TASKS, is_name

FORMAT = 1
MAX_BYTES = 1 << 20
"""A longer hello or score is refused unread."""
MAX_CLASSES = 1 << 16
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Held:
    """A task at a site.

    Attributes
    ----------
    classes
        Names, distinct, in order.
    train, test
        Numbers of images; 1 or more to train on, 0 or more to test on.
    """

    classes: tuple[str, ...]
    train: int
    test: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise DataError(f"{len(self.classes)} class names, expected 2 to {MAX_CLASSES}, each once")
        bad = [name for name in self.classes if not is_name(name)]
        if bad:
            raise DataError(f"class names {bad[:3]}: expected 1 to 255 bytes of printable text")
        if not 1 <= self.train <= MAX_SAMPLES or not 0 <= self.test <= MAX_SAMPLES:
            raise DataError(f"{self.train} training and {self.test} test images, expected 1 and 0 to {MAX_SAMPLES}")


@dataclass(frozen=True)
class Hello:
    """Who a site is.

    Attributes
    ----------
    site
        Its name.
    fingerprint
        64 hex digits, of its adapter (`AdaptedModel.fingerprint`).
    tasks
        What it holds, by name, in its order.
    versions
        Of matu and what decides numbers, for the record.
    """

    site: str
    fingerprint: str
    tasks: Mapping[str, Held]
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_names(self.site, *self.tasks, *self.versions, *self.versions.values())
        _require_hex("fingerprint", self.fingerprint, 64)
        if not 1 <= len(self.tasks) <= MAX_TASKS:
            raise DataError(f"{len(self.tasks)} tasks, expected 1 to {MAX_TASKS}")

    def encode(self) -> bytes:
        """As JSON; DataError if that is too long."""
        tasks = {n: {"classes": list(h.classes), "train": h.train, "test": h.test} for n, h in self.tasks.items()}
        return _encode(
            {"kind": "hello", "site": self.site, "fingerprint": self.fingerprint, "tasks": tasks,
             "versions": dict(self.versions)}
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """The inverse; DataError, with the reason, for anything else."""
        table = _decode(data, "hello", {"site": str, "fingerprint": str, "tasks": dict, "versions": dict})
        tasks = {}
        for name, about in table["tasks"].items():
            fields = _fields(about, {"classes": list, "train": int, "test": int}, f"task {name[:80]!r}")
            if not all(isinstance(one, str) for one in fields["classes"]):
                raise DataError(f"task {name[:80]!r}: class names that are no text")
            tasks[name] = Held(tuple(fields["classes"]), fields["train"], fields["test"])
        if not all(isinstance(one, str) for one in table["versions"].values()):
            raise DataError("versions that are no text")
        return cls(table["site"], table["fingerprint"], tasks, table["versions"])


@dataclass(frozen=True)
class Score:
    """What a site found of a round's weights on its own test images.

    Attributes
    ----------
    site, run, round
        Who, and of what.
    correct
        By task, right labels.
    """

    site: str
    run: str
    round: int
    correct: Mapping[str, int]

    def __post_init__(self) -> None:
        _require_names(self.site, *self.correct)
        _require_hex("run", self.run, 32)
        if self.round < 0 or any(not 0 <= n <= MAX_SAMPLES for n in self.correct.values()):
            raise DataError(f"score: round {self.round}, right labels {list(self.correct.values())[:3]}")

    def encode(self) -> bytes:
        """As JSON."""
        return _encode(
            {"kind": "score", "site": self.site, "run": self.run, "round": self.round, "correct": dict(self.correct)}
        )

    @classmethod
    def decode(cls, data: bytes) -> Score:
        """The inverse; DataError, with the reason, for anything else."""
        table = _decode(data, "score", {"site": str, "run": str, "round": int, "correct": dict})
        if not all(type(n) is int for n in table["correct"].values()):
            raise DataError("score: right labels that are no whole numbers")
        return cls(table["site"], table["run"], table["round"], table["correct"])


def _encode(table: Mapping[str, Any]) -> bytes:
    data = json.dumps({"format": FORMAT, **table}, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise DataError(f"{table['kind']} of {len(data)} bytes, at most {MAX_BYTES} may be sent")
    return data


def _decode(data: bytes, kind: str, fields: Mapping[str, type]) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise DataError(f"{kind} of {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        table = json.loads(data.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except RecursionError:
        raise DataError(f"{kind}: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{kind}: no JSON ({str(error)[:100]})") from error
    found = _fields(table, {"format": int, "kind": str, **fields}, kind)
    if found["format"] != FORMAT or found["kind"] != kind:
        raise DataError(f"{found['kind'][:80]!r} of format {found['format']}, expected {kind!r} of format {FORMAT}")
    return found


def _fields(table: Any, fields: Mapping[str, type], where: str) -> dict[str, Any]:
    """Exactly these fields, each of exactly this type."""
    if not isinstance(table, dict) or set(table) != set(fields):
        there = sorted(map(str, table))[:8] if isinstance(table, dict) else type(table).__name__
        raise DataError(f"{where}: {there}, expected {sorted(fields)}")
    for name, kind in fields.items():
        if type(table[name]) is not kind:
            raise DataError(f"{where}: {name} is {type(table[name]).__name__}, expected {kind.__name__}")
    return dict(table)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name twice in one object")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _require_names(*names: str) -> None:
    bad = [name for name in names if not is_name(name)]
    if bad:
        raise DataError(f"names {[name[:80] for name in bad[:3]]}: expected 1 to 255 bytes of printable text")


def _require_hex(what: str, text: str, digits: int) -> None:
    if len(text) != digits or not _HEX.fullmatch(text):
        raise DataError(f"{what} {text[:80]!r}, expected {digits} hex digits")
