"""What each codec costs: bytes, milliseconds, error; and what other entropy coders would make of the same symbols.

python benchmarks/coders.py [--dim 884736] [--tasks 4] [--change 0.2] [--repeats 7] [--out FILE]

One update of so many tasks against its downlink, one thread. Task vectors are Gaussian with block scales drawn over two
octaves, tasks half common; the update is the downlink's task vectors plus a change of the given relative length,
unified again. Times are the least of the repeats. The coders' table needs `pip install constriction`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from matu.vectors import unify
from matu.wire import Codecs, Envelope, Header, Kind, Numbers, Part, arrived, encode
from matu.wire.masks import _classes
from matu.wire.numbers import NEAR, _pairs, _quantise
from matu.wire.streams import write_bits, write_bytes
from watch import processor

HEAD = (40, 769)
FORMS = {
    "float32, packed masks (the paper's)": Codecs(),
    "bfloat16": Codecs(Numbers("bfloat16"), Numbers("bfloat16"), coded_masks=True),
    "8bit": Codecs(Numbers("8bit"), Numbers("8bit"), coded_masks=True),
    "4bit": Codecs(Numbers("4bit"), Numbers("8bit"), coded_masks=True),
    "8bit change": Codecs(Numbers("8bit", True), Numbers("8bit", True), coded_masks=True),
    "4bit change": Codecs(Numbers("4bit", True), Numbers("4bit", True), coded_masks=True),
    "3bit change": Codecs(Numbers("3bit", True), Numbers("4bit", True), coded_masks=True),
    "2bit change": Codecs(Numbers("2bit", True), Numbers("4bit", True), coded_masks=True),
    "ternary change": Codecs(Numbers("ternary", True), Numbers("4bit", True), coded_masks=True),
}  # fmt: skip


def messages(dim: int, tasks: int, change: float) -> tuple[list[Part], dict[str, Tensor], dict[str, Tensor]]:
    """Parts, downlink, update."""
    draw = torch.Generator().manual_seed(0)
    scale = 2 ** (2 * torch.rand(-(-dim // 256), generator=draw)).repeat_interleave(256)[:dim]
    common = torch.randn(dim, generator=draw)
    vectors = (common + torch.randn(tasks, dim, generator=draw)) * scale
    heads = {f"head/{i}": torch.randn(HEAD, generator=draw) for i in range(tasks)}
    moved = vectors + change * vectors.std() * torch.randn(vectors.shape, generator=draw)
    down, up = (
        {"vector": u.vector, "masks": u.masks, "rescalers": u.rescalers} for u in (unify(vectors), unify(moved))
    )
    parts = [
        Part("vector", Kind.VECTOR, (dim,), "vector"), Part("masks", Kind.MASKS, (tasks, dim), "masks", of="vector"),
        Part("rescalers", Kind.RESCALERS, (tasks,)), *(Part(name, Kind.HEAD, HEAD, name) for name in heads),
    ]  # fmt: skip
    return (
        parts,
        down | heads,
        up | {name: head + change * torch.randn(HEAD, generator=draw) for name, head in heads.items()},
    )


def best(repeats: int, call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the least of its processor times in ms."""
    times, found = [], None
    for _ in range(repeats):
        began = time.process_time()
        found = call()
        times.append(time.process_time() - began)
    return found, 1e3 * min(times)


def read(payload: bytes, parts: Sequence[Part], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the receiver does."""
    return Envelope(payload).tensors(parts, held)


def forms(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Bytes, times and error of every form."""
    parts, down, up = messages(asked.dim, asked.tasks, asked.change)
    names = tuple(f"t{i}" for i in range(asked.tasks))
    header = Header("update", "0" * 32, 1, "matu", "north", "0" * 64, names, samples=(100,) * asked.tasks)
    rows: dict[str, dict[str, float]] = {}
    for name, codecs in FORMS.items():
        held = arrived(parts, down, Codecs(Numbers("8bit"), Numbers("8bit"), True)) if codecs != Codecs() else down
        payload, writing = best(asked.repeats, partial(encode, header, parts, up, codecs, held=held))
        opened, reading = best(asked.repeats, partial(read, payload, parts, held))
        error = (opened["vector"] - up["vector"]).norm() / up["vector"].norm()
        sizes = Envelope(payload).sizes(parts)
        rows[name] = {
            "kilobytes": len(payload) / 1e3, **{f"{share}_kb": size / 1e3 for share, size in sizes.items()},
            "encode_ms": writing, "decode_ms": reading, "relative_error": float(error),
        }  # fmt: skip
    return rows


def coders(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Bits a symbol by entropy coder, for 2 to 4 bit changes and the classes of flips."""
    _, down, up = messages(asked.dim, asked.tasks, asked.change)
    held, values = down["vector"].numpy(), up["vector"].numpy()
    change = values - np.float32(np.dot(values, held) / np.dot(held, held)) * held
    rows = np.pad(change, (0, -len(change) % 256)).reshape(-1, 256)
    found: dict[str, dict[str, float]] = {}
    for bits in (2, 3, 4):
        q = _quantise(rows, len(change), bits, None)[2].reshape(-1)
        far = np.abs(q.astype(int)) > NEAR
        packed = _pairs(np.where(far, np.int8(-8), q))
        size = {
            level: min(len(zstandard.compress(q.tobytes(), level)), len(zstandard.compress(packed, level)) + far.sum())
            for level in (1, 9)
        }
        found[f"{bits}bit change"] = {
            "entropy": entropy(q), "here": 8 * min(len(write_bytes(q.tobytes())), len(write_bytes(packed)) + far.sum())
            / len(q), **{f"zstd level {level}": 8 * one / len(q) for level, one in size.items()},
            "constriction": ans([q]) / len(q),
        }  # fmt: skip
    masks, old = up["masks"].numpy(), down["masks"].numpy()
    streams = [
        (row ^ before)[way]
        for row, (before, ways) in zip(masks, _classes(len(masks), values, (old, held)), strict=True)
        for way in ways
    ]
    count = masks.size
    joint = [sum((masks ^ old)[i].astype(np.int64) << i for i in range(len(masks)))]
    context = sum(old[i].astype(np.int64) << i for i in range(len(old))) * 2 + (np.sign(values) == np.sign(held))
    found["masks"] = {
        "packed": 1.0, "packed, zstd level 1": 8 * len(zstandard.compress(np.packbits(masks).tobytes(), 1)) / count,
        "flips, zstd level 1": 8 * len(zstandard.compress(np.packbits(masks ^ old).tobytes(), 1)) / count,
        "entropy of the classes": sum(len(s) * entropy(s) for s in streams) / count,
        "here": 8 * sum(len(write_bits(stream)) for stream in streams) / count,
        "constriction, classes": ans(streams) / count,
        "constriction, all tasks jointly": ans([joint[0][context == c] for c in np.unique(context)]) / count,
    }  # fmt: skip
    return found


def entropy(symbols: np.ndarray) -> float:
    """Bits a symbol, of their frequencies."""
    if not len(symbols):
        return 0.0
    share = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(share * np.log2(share)).sum())


def ans(streams: list[np.ndarray]) -> float:
    """Bits of an ANS coder with the exact frequencies of each stream, themselves not counted; NaN without it."""
    try:
        import constriction
    except ImportError:
        return float("nan")
    coder, model = constriction.stream.stack.AnsCoder(), constriction.stream.model.Categorical
    for stream in streams:
        values, symbols = np.unique(stream, return_inverse=True)
        if len(values) > 1:
            share = np.bincount(symbols) / len(symbols)
            coder.encode_reverse(symbols.astype(np.int32), model(share, perfect=False))
    return float(coder.num_bits())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=884_736)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--change", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "dim": asked.dim, "tasks": asked.tasks, "change": asked.change, "forms": forms(asked),
        "bits_a_symbol": coders(asked), "processor": processor(), "cores": os.cpu_count(),
    }  # fmt: skip
    for name, row in found["forms"].items():
        print(f"{name:36}" + "".join(f"  {key} {value:.4g}" for key, value in row.items()))
    for name, row in found["bits_a_symbol"].items():
        print(f"{name:14}" + "".join(f"  {key} {value:.3f}" for key, value in row.items()))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
