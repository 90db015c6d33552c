"""How long the server's mathematics takes, beside a plain NumPy transcription and one copy of the bytes.

python benchmarks/server_round.py [--clients 30] [--tasks 8] [--held 3] [--dim 884736] [--repeats 5] [--out FILE]

The same updates go through both in one run; what is printed is the best of the repeats, and the
transcription's result is compared with ours before any time is believed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from matu import RoundAccumulator, Unified, similarity, unify
from matu.vectors import compiled, similarity_of_rows, transfer_rows

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


def ours(round_: list[Update], tasks: int, dim: int) -> list[torch.Tensor]:
    """As the server of `matu` does it: float32 out."""
    names = [f"t{t}" for t in range(tasks)]
    sums = RoundAccumulator(names, dim)
    for mine, unified, samples in round_:
        sums.add([names[t] for t in mine], unified, samples)
    found = list(sums.by_task(torch.float32).values())
    rows = [mean for mean, _ in found]
    return transfer_rows(rows, [agreement for _, agreement in found], similarity_of_rows(rows))


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
    found = {
        "every byte read and written once": best_seconds(lambda: touch(read, target, results), a.repeats),
        "plain NumPy, whole round": best_seconds(lambda: plain_numpy(round_, a.tasks, a.dim), a.repeats),
        "matu, whole round": best_seconds(lambda: ours(round_, a.tasks, a.dim), a.repeats),
        "unify, one client": best_seconds(lambda: unify(stack), a.repeats),
        "similarity": best_seconds(lambda: similarity(means), a.repeats),
    }
    compiled.FROM_DIM = a.dim + 1
    found["matu without numba, whole round"] = best_seconds(lambda: ours(round_, a.tasks, a.dim), a.repeats)
    for name, seconds in found.items():
        print(f"{name:34s} {1e3 * seconds:9.1f} ms")
    record = {
        "seconds": found, "clients": a.clients, "tasks": a.tasks, "held": a.held, "dim": a.dim,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
