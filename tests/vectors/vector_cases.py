"""Random cases for the property tests: hypothesis draws sizes, kinds and a seed, NumPy the numbers."""

import numpy as np
import torch
from hypothesis import strategies as st

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
TINY = {torch.float64: (5e-324, 1e-310, 1e-300, 1e-30), torch.float32: (1.4e-45, 1e-40, 1e-38, 1e-30)}
KINDS = ("normal", "grid", "sparse", "tiny", "wide", "ties")

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float64, torch.float32])
kinds = st.sampled_from(KINDS)
# Mostly small, for the oracle's sake, and up to 5,000.
dims = st.one_of(*(st.integers(1, most) for most in (1, 8, 60, 60, 300, 300, 1000)), st.integers(1000, 5000))
# Entries of masked vectors in a round: `test_full_size` has them all.
BUDGET = 10_000


def matrix(seed, rows, dim, kind, dtype=torch.float64):
    """Return float [rows, dim] of one kind; every kind but `normal` is rich in special values."""
    rng = np.random.default_rng(seed)
    shape = (rows, dim)
    values = rng.standard_normal(shape)
    if kind in ("grid", "sparse"):
        values = rng.integers(-4, 5, shape) / 8
    if kind == "sparse":
        values *= (rng.random(shape) < 0.3) & (rng.random((rows, 1)) < 0.8)
    if kind == "tiny":
        values = rng.choice([-1.0, 0.0, 1.0], shape) * rng.choice(TINY[dtype], shape)
    if kind == "wide":
        values *= 10.0 ** rng.uniform(-30, 30, (rows, 1)) * 10.0 ** rng.uniform(-3, 3, shape)
    if kind == "ties":
        # Rows that cancel others exactly, or to all but a trifle.
        for row in range(1, rows):
            values[row] = rng.choice([-1.0, 1.0, -0.5, 0.0], dim) * values[rng.integers(row)]
        values[rng.integers(rows)] += (rng.random(dim) < 0.1) * 1e-20
    return torch.from_numpy(values).to(dtype)


def message(seed, count, dim, exact):
    """Return (vector, masks, rescalers) of a client, float64; if `exact`, products and sums are exact."""
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((count, dim)) < rng.choice([0.1, 0.5, 1.0]))
    if exact:
        vector, rescalers = rng.integers(-32, 33, dim) / 64, rng.integers(0, 40, count) / 16
    else:
        vector, rescalers = rng.standard_normal(dim), rng.uniform(0.5, 3, count)
    return torch.from_numpy(vector), masks, torch.from_numpy(rescalers)


def held_tasks(seed, tasks, clients, dim):
    """Draw which tasks each client holds, of fewer clients and tasks where the oracle would take too long."""
    rng = np.random.default_rng(seed)
    clients = max(1, min(clients, BUDGET // dim))
    most = max(1, min(len(tasks), BUDGET // (clients * dim)))
    counts = rng.integers(1, most + 1, clients).tolist()
    return [[tasks[i] for i in rng.choice(len(tasks), count, replace=False)] for count in counts]


def assert_close(actual, expected, dtype, what=""):
    """Hold a tensor to a list of the oracle, relative to 1 + its largest entry."""
    expected = torch.tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, what
    error = (actual.cpu().double() - expected).abs().max().item() if expected.numel() else 0.0
    largest = expected.abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[dtype] * (1 + largest), (what, error, largest)
