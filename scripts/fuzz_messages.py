"""Mutates messages and opens them as a server does: refused or taken, never a crash, a hang or a large allocation.

python scripts/fuzz_messages.py [--messages 1000000] [--seed 0] [--corpus tests/wire/attacks] [--out FILE]

Message number i depends on the seed and i alone, so that a failure is repeated by --first i --messages 1. Nine of ten
get a checksum that fits, or nothing but the checksum would ever be tried. The process may not take more than 256 MB
beyond what it has after the first thousand, and no message more than a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from matu.config import RunConfig
from matu.federation.rounds import Federation, open_update
from matu.methods import Problem
from matu.methods.matu import Matu
from matu.vectors import Layout
from matu.wire import Codecs, Header, Numbers, encode

TASKS = ("a", "b")
RUN, PRINT = "ab" * 16, "cd" * 32
EXTRA_BYTES = 256 << 20
SIZES = (0, 1, 255, 65535, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFF0)
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 127, 128, 254, 255)


def world(dim: int) -> tuple[Federation, bytes, list[bytes]]:
    """A server, its request, and honest answers in every codec."""
    method = Matu(Problem({"a": 2, "b": 3}, Layout(("adapter",), ((dim,),)), 3), RunConfig())
    federation = Federation(
        method, "matu", {"north": TASKS}, None, RUN, PRINT, {"a": "2:x", "b": "3:y"},  # type: ignore[arg-type]
        rounds=9, participation=1.0, seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    held = {part.name: torch.randn(part.shape) for part in method.downlink_parts(TASKS) if part.name != "masks"}
    held |= {"masks": torch.rand(2, dim) < 0.8, "rescalers": held["rescalers"].abs()}
    answer = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in held.items() if name != "masks"}
    answer |= {"masks": held["masks"] ^ (torch.rand(2, dim) < 0.05), "rescalers": answer["rescalers"].abs()}
    down = Header("train", RUN, 7, "matu", "north", PRINT, TASKS, class_lists=("2:x", "3:y"))
    up = Header("update", RUN, 7, "matu", "north", PRINT, TASKS, samples=(5, 6), metrics={"loss": 0.5})
    request = encode(down, method.downlink_parts(TASKS), held, Codecs())
    answers = [
        encode(up, method.uplink_parts(TASKS), answer, Codecs(Numbers(name, change), Numbers(name, change), coded),
               held=held)
        for name in ("float32", "bfloat16", "8bit", "4bit", "2bit", "ternary")
        for change in (False, True)
        for coded in (False, True)
    ]  # fmt: skip
    return federation, request, answers


def mutated(draw: random.Random, corpus: list[bytes]) -> bytes:
    """A message of the corpus with one to eight changes, most often with a checksum that fits."""
    data = bytearray(draw.choice(corpus))
    if draw.random() < 0.9:
        del data[-16:]
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.choice(INTERESTING)
        elif kind == 2:
            data[at : at + 4] = draw.randbytes(4)
        elif kind == 3:
            del data[at : at + draw.choice((1, 2, 4, 50))]
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.choice((1, 2, 4, 50)))
        elif kind == 5:
            data[at : at + 4] = draw.choice(SIZES).to_bytes(4, "little")
        else:
            other = draw.choice(corpus)
            start = draw.randrange(len(other) + 1)
            data[at : at + draw.choice((4, 40, 400))] = other[start : start + draw.choice((4, 40, 400))]
    body = bytes(data)
    return body + hashlib.blake2b(body, digest_size=16).digest() if draw.random() < 0.9 else body


def limit_memory() -> int:
    """Forbid the process more than what it has and EXTRA_BYTES."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=Path("tests/wire/attacks"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    federation, request, corpus = world(asked.dim)
    corpus += [path.read_bytes() for path in sorted(asked.corpus.glob("*.bin"))]
    outcomes: Counter[str] = Counter()
    slowest, began, limit = 0.0, time.perf_counter(), 0
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("more than a second")))
    for number in range(asked.first, asked.first + asked.messages):
        if number == asked.first + 1000:
            limit = limit_memory()
        payload = mutated(random.Random(f"{asked.seed} {number}"), corpus)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        at = time.perf_counter()
        try:
            _, tensors, _ = open_update(federation, 7, "north", payload, {"north": request})
            gathering = federation.method.begin_round({})
            gathering.add("north", TASKS, (5, 6), tensors)
            outcomes["taken"] += 1
            if not all(bool(np.isfinite(tensor.numpy()).all()) for tensor in tensors.values()):
                raise AssertionError("numbers that are not finite were taken")
        except ValueError as error:  # DataError, and what the sums refuse
            outcomes["refused: " + " ".join(str(error).split()[:3]).rstrip(":,")[:40]] += 1
        except BaseException as error:
            print(f"message {number} of seed {asked.seed}: {type(error).__name__}: {error}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - at)
    found = {
        "messages": asked.messages, "seed": asked.seed, "first": asked.first, "corpus": len(corpus),
        "seconds": round(time.perf_counter() - began, 1), "slowest_ms": round(1e3 * slowest, 2),
        "address_space_limit_mb": limit >> 20, "taken": outcomes.pop("taken", 0), "refused": sum(outcomes.values()),
        "reasons": dict(outcomes.most_common(12)),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
