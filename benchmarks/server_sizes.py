"""The server's mathematics at many sizes: time by phase, and memory, which must not grow with clients.

python benchmarks/server_sizes.py [--small] [--out FILE]

Updates are made one at a time and handed over, which is not counted; `growth_mb` is how much the process grew by at its
peak, all that a round holds and the update at hand included. Seconds are wall time and, of all threads,
processor time, of the better of two passes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from matu import RoundAccumulator, Unified, unify
from matu.vectors import similarity_of_rows, transfer_rows
from watch import machine


@dataclass(frozen=True)
class Point:
    """One round: adapter parameters d, tasks T, tasks a client k, clients N; every task has a holder."""

    d: int
    T: int
    k: int
    N: int


SIZES = [
    *(Point(100_000, T, min(T, 3), max(10, -(-T // 3))) for T in (1, 8, 30, 100, 300)),
    *(Point(884_736, T, min(T, 3), max(10, -(-T // 3))) for T in (1, 8, 30, 100, 300)),
    *(Point(10_000_000, T, min(T, 3), 10) for T in (1, 8, 30)),
    Point(50_000_000, 1, 1, 6), Point(50_000_000, 8, 2, 6),
]  # fmt: skip
CLIENTS = [Point(200_000, 8, 3, N) for N in (10, 30, 100, 300, 1000)]
COMPILING = [Point(300_000, 3, 3, 2), Point(300_000, 1, 1, 40), Point(140_000, 2, 2, 260)]
SMALL = [Point(1_000, 8, 3, 10), Point(2_000, 8, 3, 10)]


def updates(point: Point) -> Iterator[tuple[list[str], Unified, list[int]]]:
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(point.d, generator=draw)
    masks = torch.rand(point.k, point.d, generator=draw) < 0.7
    for i in range(point.N):
        tasks = sorted({(point.k * i + j) % point.T for j in range(point.k)})
        own = Unified(vector * (1 + i / point.N), masks.roll(i, dims=1)[: len(tasks)], torch.ones(len(tasks)))
        yield [f"t{t}" for t in tasks], own, [50 + i] * len(tasks)


def measure(point: Point) -> dict[str, Any]:
    spent = dict.fromkeys(("add", "means and votes", "similarity", "transfer", "unify"), (0.0, 0.0))
    mark = [0.0, 0.0]

    def begin() -> None:
        mark[:] = time.perf_counter(), time.process_time()

    def end(phase: str) -> None:
        wall, processor = time.perf_counter() - mark[0], time.process_time() - mark[1]
        spent[phase] = spent[phase][0] + wall, spent[phase][1] + processor

    before = fresh_mb()
    _round(point, begin, end)
    found = {phase: {"wall_s": wall, "processor_s": processor} for phase, (wall, processor) in spent.items()}
    return asdict(point) | {"phases": found, "growth_mb": peak_mb() - before}


def _round(point: Point, begin: Any, end: Any) -> None:
    sums = RoundAccumulator([f"t{t}" for t in range(point.T)], point.d)
    for update in updates(point):
        begin()
        sums.add(*update)
        end("add")
    del update
    begin()
    found = list(sums.by_task(torch.float32).values())
    end("means and votes")
    del sums
    rows = [mean for mean, _ in found]
    begin()
    alike = similarity_of_rows(rows)
    end("similarity")
    begin()
    new = transfer_rows(rows, [agreement for _, agreement in found], alike)
    end("transfer")
    downlink = torch.stack(new[: point.k])
    begin()
    unify(downlink)
    end("unify")


def fresh_mb() -> float:
    """What is in memory now, from where the peak counts anew; what was freed is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def total_s(row: dict[str, Any]) -> float:
    return sum(spent["wall_s"] for spent in row["phases"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for point in [] if args.small else COMPILING:
        measure(point)
    for point in SMALL if args.small else [*CLIENTS, *SIZES]:
        rows.append(min(measure(point), measure(point), key=total_s))
        phases = rows[-1]["phases"]
        times = "  ".join(f"{phase} {1e3 * spent['wall_s']:.0f}" for phase, spent in phases.items())
        total = total_s(rows[-1])
        size = f"d {point.d:>10,} T {point.T:3d} k {point.k} N {point.N:4d}"
        print(f"{size}: {1e3 * total:7.0f} ms ({times})  growth {rows[-1]['growth_mb']:.0f} MB", flush=True)
        if args.out:
            args.out.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
