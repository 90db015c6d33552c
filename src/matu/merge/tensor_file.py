"""A safetensors file written one tensor at a time; the library's own writer wants all of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8",
    torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
_ENTRY = 160
"""Bytes that suffice for the type, shape and place of a tensor in the header."""


@contextmanager
def tensor_file(path: Path, names: Iterable[str]) -> Iterator[Callable[[str, Tensor], None]]:
    """Give a function that appends a tensor to a new file; the header is filled in at the end.

    Parameters
    ----------
    path
        Of the file.
    names
        All that may be appended: room is left for them.
    """
    room = 64 + sum(len(json.dumps(name)) + _ENTRY for name in names)
    room += -room % 8
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    with open(path, "wb") as file:
        file.seek(8 + room)

        def add(name: str, tensor: Tensor) -> None:
            began = file.tell() - 8 - room
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            ends = file.tell() - 8 - room
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [began, ends]}

        yield add
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= room
        file.seek(0)
        file.write(room.to_bytes(8, "little") + text.ljust(room))
