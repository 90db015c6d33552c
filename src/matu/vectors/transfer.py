"""Similarity between tasks and the new task vectors that borrow from similar tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matu.vectors.blocks import BLOCK, in_blocks
from matu.vectors.checks import require_count, require_finite, require_fraction, require_matrix, require_shape

RULES = ("average", "half_sum", "literal", "off")


def similarity(vectors: Tensor) -> Tensor:
    """Return the share of agreeing signs between tasks, S = ½ (Σ_j sgn·sgn / d + 1) (Eq. 5).

    Signs are counted in whole numbers, so S is exact but for one division. An entry of zero agrees with
    nothing, itself included: S(t, t) < 1 for a vector with zeros.

    Parameters
    ----------
    vectors : float32 or float64 [T, d]
        One task vector a row.

    Returns
    -------
    float64 [T, T]
        Symmetric, in [0, 1], on the device of `vectors`.

    Raises
    ------
    ValueError
        Wrong shape or dtype, or an entry that is not finite.
    """
    return _similarity(list(require_matrix(vectors, "task vectors", "tasks")))


def _similarity(rows: Sequence[Tensor]) -> Tensor:
    dim, device = len(rows[0]), rows[0].device
    agreeing = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    for start in range(0, dim, BLOCK):
        # Whole numbers up to 2^15 are exact in float32 in any order; autocast would round them.
        signs = torch.stack([row[start : start + BLOCK] for row in rows]).sign().float()
        with torch.autocast(device.type, enabled=False):
            agreeing += signs @ signs.T
    return 0.5 * (agreeing / dim + 1)


def transfer(
    vectors: Tensor, task_masks: Tensor, top_k: int = 3, threshold: float = 0.5, rule: str = "average"
) -> Tensor:
    """Return the new task vectors τ^t from the task means τ̂^t and those of the most similar tasks (Eq. 6, 7).

    Z^t holds the `top_k` most similar other tasks with S > `threshold`; ties go in task order. With
    sum^t = m̂^t ⊙ Σ_{t'∈Z} S(t,t') τ̂^{t'}, which is Eq. 6 as printed, the rules are

    ========  ===========================================  =============================
    rule      τ^t where Z^t is not empty                   reading
    ========  ===========================================  =============================
    average   ½ (τ̂^t + sum^t / Σ_{t'∈Z} S(t,t'))           both equations are averages
    half_sum  ½ (τ̂^t + sum^t)                              Eq. 6 as printed, Eq. 7 halved
    literal   τ̂^t + sum^t                                  both as printed
    off       τ̂^t                                          the control
    ========  ===========================================  =============================

    and every rule gives τ̂^t where Z^t is empty.

    Parameters
    ----------
    vectors : float32 or float64 [T, d]
        Task means (Eq. 4), one task a row.
    task_masks : float32 or float64 [T, d]
        Agreement after the threshold, in [0, 1] (Eq. 3).
    top_k : int
        κ, at least 0.
    threshold : float
        ε, from 0 to 1.
    rule : str
        One of `RULES`.

    Returns
    -------
    float [T, d]
        In the dtype and on the device of `vectors`, computed in float64.

    Raises
    ------
    ValueError
        Wrong shapes or dtypes, entries that are not finite, masks outside [0, 1], a parameter out of its
        range, or a result beyond the range of the dtype.
    """
    matrix = require_matrix(vectors, "task vectors", "tasks")
    masks = require_matrix(task_masks, "task masks", "tasks")
    require_shape(masks, tuple(matrix.shape), "task masks")
    return torch.stack(transfer_rows(list(matrix), list(masks), top_k, threshold, rule))


def transfer_rows(
    rows: Sequence[Tensor], task_masks: Sequence[Tensor], top_k: int = 3, threshold: float = 0.5, rule: str = "average"
) -> list[Tensor]:
    """As `transfer`, of vectors that are tensors of their own, each [d]; so is every result."""
    for row, mask in zip(rows, task_masks, strict=True):
        require_finite(row, "task vectors")
        _require_mask(mask)
    top_k = require_count(top_k, "top_k", 0)
    threshold = require_fraction(threshold, "threshold")
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    if rule == "off":
        return [row.clone() for row in rows]
    shares = [_shares(row, t, top_k, threshold, rule) for t, row in enumerate(_similarity(rows).tolist())]
    result = [torch.empty_like(row) for row in rows]

    def borrow(at: slice) -> None:
        means = [row[at].double() for row in rows]
        for t, (own, others) in enumerate(shares):
            if not others:
                result[t][at] = rows[t][at]
                continue
            # One by one in the order of Z: a matrix product would add in an order of its own.
            borrowed = torch.zeros_like(means[t])
            for other, share in others:
                borrowed.add_(means[other], alpha=share)
            result[t][at] = borrowed.mul_(task_masks[t][at]).add_(means[t], alpha=own)

    in_blocks(len(rows[0]), borrow, rows[0].device)
    for row in result if rule != "average" else ():  # an average lies between finite numbers
        require_finite(row, f"new task vectors by rule {rule!r}, beyond the range of {row.dtype}")
    return result


def _require_mask(mask: Tensor) -> None:
    low, high = (float(bound) for bound in torch.aminmax(mask))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"task masks: from {low:.6g} to {high:.6g}, expected numbers from 0 to 1")


def _shares(
    similarities: list[float], task: int, top_k: int, threshold: float, rule: str
) -> tuple[float, list[tuple[int, float]]]:
    """Weight of a task's own mean, and (task, weight) of what it borrows, most similar first."""
    others = [t for t, s in enumerate(similarities) if t != task and s > threshold]
    others = sorted(others, key=lambda t: -similarities[t])[:top_k]
    # Weights carry the halves and the division, so that an average of finite numbers cannot overflow.
    own = 1.0 if rule == "literal" else 0.5
    divisor = sum(similarities[t] for t in others) if rule == "average" else 1.0
    return own, [(t, own * similarities[t] / divisor) for t in others]
