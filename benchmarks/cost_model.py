"""What a round costs the server, by clients, tasks and adapter size: fitted on small rounds, checked on larger ones.

python benchmarks/cost_model.py [--small] [--out FOLDER]

The server is that of `matu run` (round loop, messages, checkpoint); sites answer with random changes and are not
counted. Seconds are processor time of one thread, memory is what the process grew by at its peak; each point is a
process of its own. Then a round's updates are folded by one process, and by four that pass their sums on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import nnls

from matu import RoundAccumulator
from matu.config import RunConfig
from matu.federation.checkpoint import Progress, save_checkpoint
from matu.federation.rounds import Federation, codecs_of, run_rounds
from matu.methods import Local, Problem
from matu.methods.matu import Matu, seen_tasks
from matu.training import Weights
from matu.vectors import Layout, similarity_of_rows
from matu.vectors.accumulate import WAITING_BYTES
from matu.wire import Envelope, Header, encode
from server_round import updates
from watch import machine

CLASSES, FEATURES = 10, 192
SUM_BYTES = 21
ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """One round: adapter parameters d, tasks T, tasks a client k, clients sampled s."""

    d: int
    T: int
    k: int
    s: int


FIT = [Point(200_000, 8, 3, 4), Point(200_000, 8, 3, 12), Point(200_000, 8, 1, 12), Point(200_000, 32, 3, 4),
       Point(200_000, 64, 1, 4), Point(400_000, 16, 2, 6)]  # fmt: skip
MANY_HOLDERS = [Point(400_000, 4, 2, 60)]
"""More updates than wait: sums are folded. Means of so many random changes are not what a downlink usually holds."""
CHECK = [Point(900_000, 8, 3, 12), Point(200_000, 100, 3, 20), Point(1_800_000, 12, 3, 6)]
PAPER = Point(39_976_960, 100, 3, 1000)
"""LoRA of rank 16 on all linear layers of a 7 B model (32 blocks, width 4,096, inner 11,008); 1,000 of 10^6 clients."""
SMALL = [Point(2_000, 4, 2, 3), Point(2_000, 8, 2, 3), Point(4_000, 4, 2, 3), Point(2_000, 4, 2, 6)]


class Changes:
    """Sites that answer with random changes of what they get (`matu.federation.transport.Transport`)."""

    def __init__(self, method: Matu, codecs: Any) -> None:
        self.method, self.codecs = method, codecs
        self.draw, self.spent_s = torch.Generator().manual_seed(0), 0.0

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        for name, payload in payloads.items():
            began = time.process_time()
            reply = self._answer(payload)
            self.spent_s += time.process_time() - began
            yield name, reply

    def _answer(self, payload: bytes) -> bytes:
        envelope = Envelope(payload)
        asked = envelope.header
        held = envelope.tensors(self.method.downlink_parts(asked.tasks))
        local = Local(asked.tasks, dict.fromkeys(asked.tasks, 50), {}, self._change)
        tensors, _ = self.method.local_update(local, held)
        update = Header(
            "update", asked.run, asked.round, asked.method, asked.site, asked.fingerprint, asked.tasks,
            samples=(50,) * len(asked.tasks), metrics={"loss": 1.0, "images": 1.0},
        )  # fmt: skip
        return encode(update, self.method.uplink_parts(asked.tasks), tensors, self.codecs, held=held)

    def _change(self, starts: Mapping[str, Weights]) -> dict[str, Weights]:
        return {
            task: Weights(*(part + 1e-3 * torch.randn(part.shape, generator=self.draw) for part in start))
            for task, start in starts.items()
        }


def measure(point: Point) -> dict[str, float]:
    """The last of some rounds of which each holds as many tasks as it can."""
    torch.set_num_threads(1)
    tasks = [f"t{i}" for i in range(point.T)]
    config = RunConfig()
    up, down = codecs_of(config.wire)
    method = Matu(Problem(dict.fromkeys(tasks, CLASSES), Layout(("adapter",), ((point.d,),)), FEATURES), config)
    clients = {f"c{i:04}": tuple(sorted({tasks[(point.k * i + j) % point.T] for j in range(point.k)}))
               for i in range(point.s)}  # fmt: skip
    sites = Changes(method, up)
    federation = Federation(
        method, "matu", clients, sites, "0" * 32, "0" * 64, dict.fromkeys(tasks, "10:x"), ROUNDS, 1.0, 0, down
    )
    seconds: list[float] = []
    lines: list[Mapping[str, Any]] = []
    start = Progress(0, full(method))
    with tempfile.TemporaryDirectory() as folder:
        before, mark = peak_mb(), [time.process_time(), 0.0]

        def save(progress: Progress) -> None:
            save_checkpoint(Path(folder), progress, "")
            now = time.process_time()
            seconds.append(now - mark[0] - (sites.spent_s - mark[1]))
            mark[:] = time.process_time(), sites.spent_s

        run_rounds(federation, start, evaluate=lambda *_: None, record=lines.append, save=save)
        disk = sum(file.stat().st_size for file in Path(folder).glob("state-*"))
    return {
        "seconds": min(seconds), "grew_mb": peak_mb() - before, "disk_mb": disk / 1e6,
        "up_kb": lines[-1]["uplink_bytes"] / point.s / 1e3, "down_kb": lines[-1]["downlink_bytes"] / point.s / 1e3,
    }  # fmt: skip


def full(method: Matu) -> dict[str, torch.Tensor]:
    """A state in which every task has been seen."""
    draw, state = torch.Generator().manual_seed(1), dict[str, torch.Tensor]()
    for task in method.problem.tasks:
        state[f"mean/{task}"] = 1e-3 * torch.randn(method.problem.dim, generator=draw)
        state[f"votes/{task}"] = torch.ones(method.problem.dim, dtype=torch.uint8)
        state[f"holders/{task}"] = torch.tensor(1)
        state[f"head/{task}"] = torch.randn(method.problem.head_shape(task), generator=draw)
    return state | {"similarity": similarity_of_rows([state[f"mean/{task}"] for task in seen_tasks(state)])}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


TERMS = {
    "seconds": ("s k d", "T d", "T² d", "s"), "grew_mb": ("T d", "T' d", "W", "1"),
    "up_kb": ("d", "k d", "k"), "down_kb": ("d", "k d", "k"), "disk_mb": ("T d", "T"),
}  # fmt: skip
"""What each cost is a sum of. T': tasks with a holder this round; W: bytes of updates that wait, and of the sums."""


def values(point: Point) -> dict[str, float]:
    """The terms: d in 10^6, s and k in 10^3 where they stand alone, W in 10^6 bytes."""
    d, T, k, s = point.d / 1e6, point.T, point.k, point.s
    held = min(T, s * k)
    waiting, most = s * (4 + k), WAITING_BYTES * held  # bytes a coordinate: float32 and masks
    folded = waiting if waiting <= most else most + SUM_BYTES * held
    return {
        "s k d": s * k * d, "T d": T * d, "T² d": T * T * d, "T' d": held * d, "W": folded * d, "d": d,
        "k d": k * d if k > 1 else 0, "s": s / 1e3, "k": k / 1e3, "T": T / 1e3, "1": 1,
    }  # fmt: skip


def row(point: Point, cost: str) -> list[float]:
    return [values(point)[term] for term in TERMS[cost]]


def fit(points: list[Point], found: list[dict[str, float]], cost: str) -> list[float]:
    """Constants, none below 0, that leave the least relative errors."""
    measured = np.array([one[cost] for one in found])
    matrix = np.array([row(point, cost) for point in points])
    return [float(c) for c in nnls(matrix / measured[:, None], np.ones(len(points)))[0]]


def model(fitted: dict[Point, dict[str, float]], checked: dict[Point, dict[str, float]]) -> dict[str, Any]:
    """Constants, what they say of rounds that they were not fitted on, and what they say on paper."""
    record: dict[str, Any] = {"fitted_on": [asdict(p) | one for p, one in fitted.items()], "constants": {}}
    record |= {"checked_on": [asdict(p) for p in checked], "on_paper": asdict(PAPER)}
    for cost, names in TERMS.items():
        points = [point for point in fitted if point not in MANY_HOLDERS or not cost.endswith("_kb")]
        constants = fit(points, [fitted[point] for point in points], cost)
        record["constants"][cost] = dict(zip(names, constants, strict=True))
        print(f"{cost:8} = " + " + ".join(f"{c:.4g} {name}" for c, name in zip(constants, names, strict=True)))
        for told, (point, one) in zip(record["checked_on"], checked.items(), strict=True):
            told[cost] = {"measured": one[cost], "predicted": float(np.dot(row(point, cost), constants))}
            print(f"    {point}: predicted {told[cost]['predicted']:.4g}, measured {one[cost]:.4g}")
        record["on_paper"][cost] = float(np.dot(row(PAPER, cost), constants))
    return record


def fold(numbers: list[int], clients: int, tasks: int, dim: int, out: Path | None) -> RoundAccumulator:
    """Some of a round's updates, folded; what they come to is left in a file if one is named."""
    torch.set_num_threads(1)
    sums = RoundAccumulator([f"t{t}" for t in range(tasks)], dim)
    for number, (mine, unified, samples) in enumerate(updates(clients, tasks, 3, dim)):
        if number in numbers:
            sums.add([f"t{t}" for t in mine], unified, samples)
    if out:
        save_file(sums.tensors(), out)
    return sums


def tree(clients: int, tasks: int, dim: int) -> dict[str, Any]:
    """Four processes with a quarter of a round each, merged, beside one."""
    fresh = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"part-{i}" for i in range(4)]
        jobs = [
            fresh.Process(target=fold, args=(list(range(i, clients, 4)), clients, tasks, dim, file))
            for i, file in enumerate(files)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        size = sum(file.stat().st_size for file in files) / 4
        began = time.process_time()
        parts = [RoundAccumulator([f"t{t}" for t in range(tasks)], dim) for _ in files]
        for part, file in zip(parts, files, strict=True):
            part.restore(load_file(file))
        whole = (parts[0] + parts[1]) + (parts[2] + parts[3])
        merging = time.process_time() - began
    one, merged = fold(list(range(clients)), clients, tasks, dim, None).means(), whole.means()
    same = torch.equal(one.vectors, merged.vectors) and torch.equal(one.task_masks, merged.task_masks)
    if not same or one.samples != merged.samples or one.holders != merged.holders:
        raise SystemExit("four processes came to other sums than one")
    return {
        "clients": clients, "tasks": tasks, "dim": dim, "equal_to_the_last_bit": same,
        "bytes_of_sums_a_task_and_coordinate": size / tasks / dim, "restore_and_merge_s": round(merging, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny rounds, in seconds: the figures say nothing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    fitted, checked = (SMALL, SMALL[:1]) if args.small else (FIT + MANY_HOLDERS, CHECK)
    where = machine()
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(measure, [*fitted, *checked], chunksize=1)
    record = model(dict(zip(fitted, found, strict=False)), dict(zip(checked, found[len(fitted) :], strict=True)))
    record["tree"] = tree(8, 4, 5_000) if args.small else tree(16, 8, 884_736)
    print(json.dumps(record["tree"]))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "cost_model.json").write_text(json.dumps(where | record, indent=1) + "\n")


if __name__ == "__main__":
    main()
