"""The one message between server and site, and its one pair of encode and decode.

On the wire a message is a safetensors file: tensors by name, and a JSON header under the key `matu` of
its metadata. Bool tensors travel as packed bits. Nothing else in the project knows what the bytes look like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors
import torch
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from matu.errors import DataError
from matu.vectors.accumulate import MAX_SAMPLES

FORMAT = 1
_HEADER_KEYS = {
    "format", "method", "kind", "round", "site", "fingerprint", "tasks", "class_lists", "samples", "metrics", "bits",
}  # fmt: skip
_KINDS = ("train", "update")


@dataclass(frozen=True)
class Message:
    """What server and site say to each other in a round.

    Attributes
    ----------
    method
        Name of the method that both run.
    kind
        "train" (server to site) or "update" (site to server).
    round
        Number of the round, from 1.
    site
        The site's name.
    fingerprint
        Of the adapter layout and start (`Layout.fingerprint`): both sides must hold the same.
    tasks
        Names, in the order of the rows of stacked tensors.
    class_lists
        Per task, what tells its ordered class names (server to site), or empty.
    samples
        Training samples per task (updates), or empty.
    metrics
        Numbers for the record (updates), by name; they decide nothing.
    tensors
        float32, float64, uint8 or bool tensors by name; what they mean is the method's.
    """

    method: str
    kind: str
    round: int
    site: str
    fingerprint: str
    tasks: tuple[str, ...]
    class_lists: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """A message as bytes; the same message gives the same bytes."""
    packed: dict[str, Tensor] = {}
    bits: dict[str, list[int]] = {}
    for name, tensor in sorted(message.tensors.items()):
        values = tensor.detach().cpu().contiguous()
        if values.dtype == torch.bool:
            bits[name] = list(values.shape)
            values = pack_bits(values)
        packed[name] = values
    header = {
        "format": FORMAT, "method": message.method, "kind": message.kind, "round": message.round,
        "site": message.site, "fingerprint": message.fingerprint, "tasks": list(message.tasks),
        "class_lists": list(message.class_lists), "samples": list(message.samples),
        "metrics": dict(message.metrics), "bits": bits,
    }  # fmt: skip
    return bytes_of_tensors(packed, {"matu": json.dumps(header, separators=(",", ":"), allow_nan=False)})


def decode(payload: bytes) -> Message:
    """The message in `payload`.

    Raises
    ------
    DataError
        If the bytes are no message of this format, or a field is not what it should be.
    """
    try:
        tensors = tensors_of_bytes(payload)
        header = json.loads(json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]["matu"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"message: {len(payload)} bytes that are no matu message ({error})") from error
    _check_header(header)
    for name, shape in header["bits"].items():
        if name not in tensors:
            raise DataError(f"message: the header declares bits '{name}', the tensors are {sorted(tensors)}")
        tensors[name] = unpack_bits(tensors[name], shape)
    return Message(
        method=header["method"], kind=header["kind"], round=header["round"], site=header["site"],
        fingerprint=header["fingerprint"], tasks=tuple(header["tasks"]), class_lists=tuple(header["class_lists"]),
        samples=tuple(header["samples"]), metrics=header["metrics"], tensors=tensors,
    )  # fmt: skip


def _check_header(header: object) -> None:
    def stop(what: str) -> None:
        raise DataError(f"message header: {what}")

    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        return stop(f"fields {sorted(header) if isinstance(header, dict) else header}, expected {sorted(_HEADER_KEYS)}")
    if header["format"] != FORMAT:
        stop(f"format {header['format']}, this version of matu reads {FORMAT}")
    if header["kind"] not in _KINDS:
        stop(f"kind {header['kind']!r}, expected one of {_KINDS}")
    if type(header["round"]) is not int or header["round"] < 0:
        stop(f"round {header['round']!r}, expected a whole number >= 0")
    for name in ("method", "site", "fingerprint"):
        if not isinstance(header[name], str):
            stop(f"{name} {header[name]!r}, expected text")
    tasks, samples = header["tasks"], header["samples"]
    if not isinstance(tasks, list) or not all(isinstance(t, str) for t in tasks) or len(set(tasks)) != len(tasks):
        stop(f"tasks {tasks!r}, expected a list of distinct names")
    lists = header["class_lists"]
    if not isinstance(lists, list) or not all(isinstance(c, str) for c in lists) or len(lists) not in (0, len(tasks)):
        stop(f"class_lists {lists!r}, expected none or one text a task")
    if not isinstance(samples, list) or not all(type(n) is int and 0 < n <= MAX_SAMPLES for n in samples):
        stop(f"samples {samples!r}, expected a list of whole numbers from 1 to {MAX_SAMPLES}")
    if samples and len(samples) != len(tasks):
        stop(f"{len(samples)} sample counts for {len(tasks)} tasks")
    metrics = header["metrics"]
    if not isinstance(metrics, dict) or not all(type(x) in (int, float) and math.isfinite(x) for x in metrics.values()):
        stop(f"metrics {metrics!r}, expected finite numbers by name")
    if not isinstance(header["bits"], dict):
        stop(f"bits {header['bits']!r}, expected shapes by name")


_WEIGHTS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack_bits(mask: Tensor) -> Tensor:
    """bool, any shape -> uint8 [ceil(n / 8)]: row-major, lowest bit first, padding 0."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    return (flat.view(-1, 8) * _WEIGHTS).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: list[int]) -> Tensor:
    """The inverse of `pack_bits` for a stated shape.

    Raises
    ------
    DataError
        If the shape does not fit the bytes, or padding bits are set.
    """
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"bits: shape {shape!r}, expected a list of whole numbers")
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        raise DataError(f"bits: {packed.dtype} {list(packed.shape)} cannot hold shape {shape}")
    flat = (packed[:, None] & _WEIGHTS).ne(0).flatten()
    if bool(flat[count:].any()):
        raise DataError("bits: padding bits are set, expected zeros")
    return flat[:count].view(shape)
