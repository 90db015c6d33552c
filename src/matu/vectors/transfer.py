"""Similarity between tasks and the new task vectors that borrow from similar tasks."""

import torch
from torch import Tensor

from matu.vectors.checks import require_count, require_finite, require_fraction, require_matrix, require_shape

RULES = ("average", "half_sum", "literal", "off")

# Coordinates worked on at once: temporaries of a few tasks stay in the processor's cache.
BLOCK = 1 << 15


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
    vectors = require_matrix(vectors, "task vectors", "tasks")
    count, dim = vectors.shape
    agreeing = torch.zeros(count, count, dtype=torch.float64, device=vectors.device)
    for start in range(0, dim, BLOCK):
        # Whole numbers below 2^53 are exact in any order, and autocast leaves float64 products alone.
        signs = vectors[:, start : start + BLOCK].sign().double()
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
    vectors = require_matrix(vectors, "task vectors", "tasks")
    task_masks = _require_masks(task_masks, vectors)
    top_k = require_count(top_k, "top_k", 0)
    threshold = require_fraction(threshold, "threshold")
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    result = vectors.clone()
    if rule == "off":
        return result
    shares = [_shares(row, t, top_k, threshold, rule) for t, row in enumerate(similarity(vectors).tolist())]
    for start in range(0, vectors.shape[1], BLOCK):
        at = slice(start, start + BLOCK)
        means = vectors[:, at].double()
        for t, (own, others) in enumerate(shares):
            if others:
                # One by one in the order of Z: a matrix product would add in an order of its own.
                borrowed = torch.zeros_like(means[t])
                for other, share in others:
                    borrowed.add_(means[other], alpha=share)
                result[t, at] = borrowed.mul_(task_masks[t, at]).add_(means[t], alpha=own)
    require_finite(result, f"new task vectors by rule {rule!r}, beyond the range of {result.dtype}")
    return result


def _require_masks(task_masks: Tensor, vectors: Tensor) -> Tensor:
    masks = require_matrix(task_masks, "task masks", "tasks")
    require_shape(masks, tuple(vectors.shape), "task masks")
    low, high = (float(bound) for bound in torch.aminmax(masks))
    if low < 0 or high > 1:
        raise ValueError(f"task masks: from {low:.6g} to {high:.6g}, expected numbers from 0 to 1")
    return masks


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
