"""The header of a message: who says it, to whom, about what; every field has its place and its limit."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from matu.errors import DataError, RangeError
from matu.wire.streams import Reader

MAGIC = b"MATU"
FORMAT = 2
MAX_TEXT_BYTES = 255
MAX_TASKS = 4096
MAX_METRICS = 16
MAX_METRIC = 2.0**53
MAX_SAMPLES = (1 << 32) - 1
MAX_ROUND = (1 << 32) - 1
KINDS = ("train", "update", "evaluate")
_RUN = re.compile(r"[0-9a-f]{32}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_FRONT = struct.Struct("<4sBBI16s32s")
_COUNT = struct.Struct("<H")
_BYTE = struct.Struct("<B")
_SAMPLES = struct.Struct("<I")
_NUMBER = struct.Struct("<d")


@dataclass(frozen=True)
class Header:
    """What a message says about itself.

    Attributes
    ----------
    kind
        "train" (server to site), "update" (site to server), or "evaluate": as "train", to be measured and not trained.
    run
        32 hex digits: of which run.
    round
        Number of the round, from 1.
    method
        Name of the method that both run.
    site
        The site's name.
    fingerprint
        64 hex digits: of the adapter's layout and start (`Layout.fingerprint`), which both sides must share.
    tasks
        Names, distinct, in the order of the rows of stacked tensors.
    class_lists
        Per task, what tells its ordered class names (server to site), or empty.
    samples
        Training samples per task (updates), 1 to 2^32 - 1, or empty.
    metrics
        Numbers for the record (updates), by name; they decide nothing.
    """

    kind: str
    run: str
    round: int
    method: str
    site: str
    fingerprint: str
    tasks: tuple[str, ...]
    class_lists: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for holds, said in self._rules():
            if not holds:
                raise DataError(f"message header: {said}")
        if not all(abs(value) <= MAX_METRIC for value in self.metrics.values()):
            raise RangeError(
                f"message header: metrics {dict(self.metrics)}, expected finite numbers up to {MAX_METRIC:.4g} in "
                "magnitude"
            )

    def _rules(self) -> list[tuple[bool, str]]:
        names = (self.method, self.site, *self.tasks, *self.class_lists, *self.metrics)
        count = len(self.tasks)
        bad = [name for name in names if not is_name(name)]
        return [
            (self.kind in KINDS, f"kind {self.kind!r}, expected one of {KINDS}"),
            (bool(_RUN.fullmatch(self.run)), f"run {self.run!r}, expected 32 hex digits"),
            (bool(_FINGERPRINT.fullmatch(self.fingerprint)), f"fingerprint {self.fingerprint!r}, not 64 hex digits"),
            (0 < self.round <= MAX_ROUND, f"round {self.round}, expected 1 to {MAX_ROUND}"),
            (not bad, f"names {bad[:3]}: expected 1 to {MAX_TEXT_BYTES} bytes of printable text"),
            (0 < count <= MAX_TASKS, f"{count} tasks, expected 1 to {MAX_TASKS}"),
            (len(set(self.tasks)) == count, "tasks: expected distinct names"),
            (len(self.class_lists) in (0, count), f"{len(self.class_lists)} class lists for {count} tasks"),
            (len(self.samples) in (0, count), f"{len(self.samples)} sample counts for {count} tasks"),
            (all(0 < n <= MAX_SAMPLES for n in self.samples), f"samples {self.samples[:3]}, not 1 to {MAX_SAMPLES}"),
            (len(self.metrics) <= MAX_METRICS, f"{len(self.metrics)} metrics, expected at most {MAX_METRICS}"),
        ]  # fmt: skip


def write_header(header: Header) -> bytes:
    """A header as bytes."""
    front = _FRONT.pack(
        MAGIC, FORMAT, KINDS.index(header.kind), header.round,
        bytes.fromhex(header.run), bytes.fromhex(header.fingerprint),
    )  # fmt: skip
    return b"".join([
        front, _text(header.method), _text(header.site), _COUNT.pack(len(header.tasks)), *map(_text, header.tasks),
        _BYTE.pack(bool(header.class_lists)), *map(_text, header.class_lists),
        _BYTE.pack(bool(header.samples)), *map(_SAMPLES.pack, header.samples),
        _BYTE.pack(len(header.metrics)),
        *(_text(name) + _NUMBER.pack(value) for name, value in sorted(header.metrics.items())),
    ])  # fmt: skip


def read_header(reader: Reader) -> Header:
    """The header at the front of a message; DataError for whatever is not one."""
    magic, form, kind, number, run, fingerprint = _FRONT.unpack(reader.take(_FRONT.size))
    if magic != MAGIC:
        raise DataError(f"message: it begins with {bytes(magic)!r}, expected {MAGIC!r}")
    if form != FORMAT:
        raise DataError(f"message: format {form}, this version of matu reads {FORMAT}")
    if kind >= len(KINDS):
        raise DataError(f"message header: kind {kind}, expected 0 to {len(KINDS) - 1}")
    method, site = _read_text(reader), _read_text(reader)
    (count,) = reader.unpack(_COUNT)
    if count > MAX_TASKS:
        raise DataError(f"message header: {count} tasks, expected 1 to {MAX_TASKS}")
    tasks = tuple(_read_text(reader) for _ in range(count))
    lists = tuple(_read_text(reader) for _ in range(count)) if _flag(reader) else ()
    samples = tuple(reader.unpack(_SAMPLES)[0] for _ in range(count)) if _flag(reader) else ()
    (numbers,) = reader.unpack(_BYTE)
    pairs = [(_read_text(reader), float(reader.unpack(_NUMBER)[0])) for _ in range(numbers)]
    if [name for name, _ in pairs] != sorted({name for name, _ in pairs}):
        raise DataError(f"message header: metrics {[name for name, _ in pairs]}, expected distinct names in order")
    return Header(
        KINDS[kind], run.hex(), number, method, site, fingerprint.hex(), tasks, lists, samples, dict(pairs)
    )  # fmt: skip


def is_name(text: str) -> bool:
    """Whether a text may name a site, a task or a class in a message."""
    return text.isprintable() and 0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_TEXT_BYTES


def _text(text: str) -> bytes:
    data = text.encode()
    return _BYTE.pack(len(data)) + data


def _read_text(reader: Reader) -> str:
    (length,) = reader.unpack(_BYTE)
    try:
        return bytes(reader.take(length)).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"message header: a name that is no UTF-8 ({error})") from error


def _flag(reader: Reader) -> bool:
    (flag,) = reader.unpack(_BYTE)
    if flag > 1:
        raise DataError(f"message header: flag {flag}, expected 0 or 1")
    return bool(flag)
