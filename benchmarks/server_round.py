"""How long the server's mathematics takes, beside a plain NumPy transcription and one copy of the bytes.

python benchmarks/server_round.py [--clients 30] [--tasks 8] [--held 3] [--dim 884736] [--repeats 5] [--out FILE]

The same updates go through both in one run; what is printed is the best of the repeats, and the
transcription's result is compared with ours before any time is believed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from matu import RoundAccumulator, Unified, similarity, unify
from matu.vectors import compiled, similarity_of_rows, transfer_rows

FLOOR, PLAIN, OURS = "every byte read and written once", "plain NumPy, whole round", "matu, whole round"
PHASES = "add: checks", "means and votes", "similarity of all tasks", "transfer"
Update = tuple[list[int], Unified, list[int]]


def updates(clients: int, tasks: int, held: int, dim: int) -> list[Update]:
    """One round's updates: each client holds `held` random tasks."""
    draw = np.random.default_rng(0)
    shared = torch.from_numpy(draw.standard_normal((tasks, dim), dtype=np.float32))
    found = []
    for _ in range(clients):
        mine = sorted(int(t) for t in draw.choice(tasks, held, replace=False))
        noise = torch.from_numpy(draw.standard_normal((held, dim), dtype=np.float32))
        found.append((mine, unify(shared[mine] + noise), [int(n) for n in draw.integers(50, 500, held)]))
    return found


def ours(round_: list[Update], tasks: int, dim: int, phases: dict[str, float] | None = None) -> list[torch.Tensor]:
    """As the server of `matu` does it: float32 out. What each phase took is put into `phases`."""
    names, marks = [f"t{t}" for t in range(tasks)], [time.perf_counter()]
    sums = RoundAccumulator(names, dim)
    for mine, unified, samples in round_:
        sums.add([names[t] for t in mine], unified, samples)
    marks.append(time.perf_counter())
    found = list(sums.by_task(torch.float32).values())
    marks.append(time.perf_counter())
    rows = [mean for mean, _ in found]
    alike = similarity_of_rows(rows)
    marks.append(time.perf_counter())
    new = transfer_rows(rows, [agreement for _, agreement in found], alike)
    marks.append(time.perf_counter())
    if phases is not None:
        for phase, began, ended in zip(PHASES, marks, marks[1:], strict=False):
            phases[phase] = min(ended - began, phases.get(phase, math.inf))
    return new


def plain_numpy(round_: list[Update], tasks: int, dim: int) -> np.ndarray:
    """Eq. 3 to 7 as one would first write them, vectorised over coordinates."""
    votes = np.zeros((tasks, dim))
    sums, samples_of, holders = np.zeros((tasks, dim)), np.zeros(tasks), np.zeros(tasks)
    for mine, unified, samples in round_:
        vector, masks = unified.vector.numpy().astype(np.float64), unified.masks.numpy()
        for i, t in enumerate(mine):
            u = masks[i] * vector
            votes[t] += np.sign(u)
            sums[t] += samples[i] * float(unified.rescalers[i]) * u
            samples_of[t] += samples[i]
            holders[t] += 1
    alpha = np.abs(votes) / holders[:, None]
    m_hat = np.where(alpha >= 0.4, 1.0, alpha)
    tau_hat = m_hat * sums / samples_of[:, None]
    signs = np.sign(tau_hat)
    s = 0.5 * (signs @ signs.T / dim + 1)
    new = tau_hat.copy()
    for t in range(tasks):
        others = [o for o in sorted(range(tasks), key=lambda o: -s[t, o]) if o != t and s[t, o] > 0.5][:3]
        if others:
            cross = m_hat[t] * sum(s[t, o] * tau_hat[o] for o in others) / sum(s[t, o] for o in others)
            new[t] = 0.5 * (tau_hat[t] + cross)
    return new


def touch(read: list[np.ndarray], target: list[np.ndarray], results: list[np.ndarray]) -> None:
    """Copy the updates, and write as much as comes out."""
    for part, copy in zip(read, target, strict=True):
        np.copyto(copy, part)
    for result in results:
        result.fill(1.0)


def touch_by_threads(
    pool: ThreadPoolExecutor, threads: int, read: list[np.ndarray], target: list[np.ndarray], results: list[np.ndarray]
) -> None:  # fmt: skip
    """The same, each thread a share of every array."""

    def share(i: int) -> None:
        own = [[np.array_split(part.reshape(-1), threads)[i] for part in parts] for parts in (read, target, results)]
        touch(own[0], own[1], own[2])

    list(pool.map(share, range(threads)))


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"clients": 30, "tasks": 8, "held": 3, "dim": 884_736, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    round_ = updates(a.clients, a.tasks, a.held, a.dim)
    np.testing.assert_allclose(
        torch.stack(ours(round_, a.tasks, a.dim)).numpy(), plain_numpy(round_, a.tasks, a.dim), rtol=1e-6, atol=1e-7
    )
    read = [part.numpy() for _, u, _ in round_ for part in (u.vector, u.masks)]
    target = [np.ones_like(part) for part in read]  # written once before: no page is new
    results = [np.ones(a.dim, kind) for kind in (np.float32, np.float32, np.uint8) for _ in range(a.tasks)]
    # mean, new vector, votes
    stack = torch.stack([round_[0][1].modulate(i) for i in range(a.held)])
    means = torch.randn(a.tasks, a.dim, dtype=torch.float64)
    phases: dict[str, float] = {}
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        found = {
            FLOOR: best_seconds(lambda: touch(read, target, results), a.repeats),
            f"the same on {threads} threads": best_seconds(
                lambda: touch_by_threads(pool, threads, read, target, results), a.repeats
            ),
            PLAIN: best_seconds(lambda: plain_numpy(round_, a.tasks, a.dim), a.repeats),
            OURS: best_seconds(lambda: ours(round_, a.tasks, a.dim, phases), a.repeats),
            **{f"  {phase}": seconds for phase, seconds in phases.items()},
            "unify, one client": best_seconds(lambda: unify(stack), a.repeats),
            "similarity": best_seconds(lambda: similarity(means), a.repeats),
        }
    compiled.FROM_DIM = a.dim + 1
    found["matu without numba, whole round"] = best_seconds(lambda: ours(round_, a.tasks, a.dim), min(a.repeats, 3))
    for name, seconds in found.items():
        print(f"{name:34s} {1e3 * seconds:9.1f} ms")
    faster, floors = found[PLAIN] / found[OURS], found[OURS] / found[FLOOR]
    print(f"{faster:.1f} times as fast as plain NumPy: {'holds' if faster >= 5 else 'does NOT hold'} (5 asked)")
    print(f"{floors:.2f} times the floor, one copy: {'holds' if floors < 3 else 'does NOT hold'} (under 3 asked)")
    on_all = found[f"the same on {threads} threads"]
    print(f"{found[OURS] / on_all:.2f} times the copy on {threads} threads")
    record = {
        "seconds": found, "clients": a.clients, "tasks": a.tasks, "held": a.held, "dim": a.dim,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
