"""Weight changes that are given by their factors: common bases, inner products; no full matrix is ever formed.

A task's change of one module is ΔW_t = B_t A_t, B_t [m, r_t] (its scale folded in), A_t [r_t, n], all float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""B [m, r] and A [r, n]."""


def product(one: Factors, other: Factors) -> float:
    """⟨B A, B' A'⟩, the sum of the entrywise products."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def common_rows(changes: Sequence[Factors], weights: Sequence[float], rank: int) -> tuple[Tensor, float]:
    """Orthonormal rows V [rank, n] with the least Σ_t (w_t ‖ΔW_t − ΔW_t Vᵀ V‖)², and the Σ_t (w_t ‖ΔW_t Vᵀ‖)² kept.

    They are the leading right singular vectors of all w_t ΔW_t on top of each other. Those of R_t A_t are the same,
    where B_t = Q_t R_t, and these have few rows.
    """
    stack = torch.cat(
        [w * torch.linalg.qr(b, mode="r").R @ a for (b, a), w in zip(changes, weights, strict=True)]
    )  # [Σ r_t, n]
    wide = stack.shape[0] <= stack.shape[1]
    energies, vectors = torch.linalg.eigh(stack @ stack.T if wide else stack.T @ stack)
    leading = vectors[:, -rank:].flip(1)  # eigh ascends
    rows = leading.T @ stack if wide else leading.T
    lengths = rows.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > 1e-10 * lengths.max(), rows / lengths, 0)
    # The last rows may be rounding alone: QR makes them orthonormal, whatever they are.
    return torch.linalg.qr(rows.T).Q.T.contiguous(), float(energies[-rank:].clamp(min=0).sum())


def common_columns(changes: Sequence[Factors], weights: Sequence[float], rank: int) -> tuple[Tensor, float]:
    """Orthonormal columns U [m, rank], as `common_rows` of the transposed changes."""
    rows, kept = common_rows([(a.T, b.T) for b, a in changes], weights, rank)
    return rows.T.contiguous(), kept


def truncate(change: Factors, rank: int) -> Factors:
    """The nearest change of at most a rank; its columns and rows have the same lengths."""
    q_b, r_b = torch.linalg.qr(change[0])
    q_a, r_a = torch.linalg.qr(change[1].T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    return q_b @ u[:, :rank] * root, root[:, None] * (v[:rank] @ q_a.T)
