"""Similarity between tasks and the new task vectors that borrow from similar tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from matu.vectors import compiled
from matu.vectors.blocks import BLOCK, COMPILED_BLOCK, DEVICE_BLOCK, in_blocks
from matu.vectors.checks import Device, require_count, require_finite, require_fraction, require_matrix, require_shape

RULES = ("average", "half_sum", "literal", "off")

Share = tuple[float, list[tuple[int, float]]]
"""Weight of a task's own mean, and (task, weight) of what it borrows, most similar first."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """A task mask (Eq. 3) as the votes that it is made of: a byte a coordinate, up to 255 holders.

    Attributes
    ----------
    votes : uint8 or int32 [d]
        |Σ_n sgn(u_n)| over the task's holders.
    holders : int
        |N^t|, at least 1.
    threshold : float
        ρ, from 0 to 1.

    Raises
    ------
    ValueError
        More votes than holders.
    """

    votes: Tensor
    holders: int
    threshold: float

    def __post_init__(self) -> None:
        least, most = (int(end) for end in torch.aminmax(self.votes))
        if least < 0 or most > self.holders:
            raise ValueError(f"votes: {least} to {most} of {self.holders} holders")

    @cached_property
    def levels(self) -> Tensor:
        """The entry of the mask by number of votes, float64 [holders + 1]."""
        return levels(self.holders, self.threshold, self.votes.device)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """The task mask as float."""
        return self.levels.to(dtype)[self.votes.int()]


def levels(holders: int, threshold: float, device: Device = "cpu") -> Tensor:
    """Eq. 3: the entry of a task mask by number of votes, float64 [holders + 1]."""
    shares = torch.arange(holders + 1, dtype=torch.float64, device=device).div_(holders)
    return shares.masked_fill_(shares >= threshold, 1.0)


def vote_dtype(holders: int) -> torch.dtype:
    """What counts of so many votes are kept in."""
    return torch.uint8 if holders < 256 else torch.int32


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
    return similarity_of_rows(list(require_matrix(vectors, "task vectors", "tasks")))


def similarity_of_rows(rows: Sequence[Tensor]) -> Tensor:
    """As `similarity`, of vectors that are tensors of their own, float [d] each; their entries are not checked."""
    dim, device = len(rows[0]), rows[0].device
    if compiled.pays(dim, *rows):
        counts: list[Tensor] = []
        in_blocks(dim, lambda at: counts.append(compiled.agreeing(rows, at)), device, COMPILED_BLOCK)
        agreeing = torch.stack(counts).sum(dim=0).double()
    else:
        agreeing = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
        size = BLOCK if device.type == "cpu" else max(BLOCK, DEVICE_BLOCK // len(rows))
        for start in range(0, dim, size):
            # Whole numbers up to 2^24 are exact in float32 in any order; autocast would round them.
            signs = torch.stack([row[start : start + size] for row in rows]).sign().float()
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
    low, high = (float(bound) for bound in torch.aminmax(masks))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"task masks: from {low:.6g} to {high:.6g}, expected numbers from 0 to 1")
    rows = list(matrix)
    return torch.stack(transfer_rows(rows, list(masks), similarity_of_rows(rows), top_k, threshold, rule))


def transfer_rows(
    rows: Sequence[Tensor], task_masks: Sequence[Tensor | Agreement], similarities: Tensor,
    top_k: int = 3, threshold: float = 0.5, rule: str = "average", *, wanted: Sequence[int] | None = None,
) -> list[Tensor]:  # fmt: skip
    """As `transfer`, of vectors that are tensors of their own, each [d], whose entries are not checked.

    Parameters
    ----------
    rows, task_masks
        By task.
    similarities : float64 [T, T]
        Of the rows.
    wanted
        Places of the tasks whose new vectors are asked for; None: all. One that borrows nothing may be the row itself.
    """
    top_k = require_count(top_k, "top_k", 0)
    threshold = require_fraction(threshold, "threshold")
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    tasks = range(len(rows)) if wanted is None else wanted
    shares = {t: _shares(similarities[t].tolist(), t, top_k, threshold, rule) for t in tasks}
    result = {t: torch.empty_like(rows[t]) if others else rows[t] for t, (_, others) in shares.items()}

    compile_ = compiled.pays(len(rows[0]), *rows)
    fills = _fills(rows, task_masks, {t: share for t, share in shares.items() if share[1]}, result, compile_=compile_)

    def fill(at: slice) -> None:
        for one in fills:
            one(at)

    in_blocks(len(rows[0]), fill, rows[0].device, COMPILED_BLOCK if compile_ else BLOCK)
    for t, row in result.items() if rule != "average" else ():  # an average lies between finite numbers
        if row is not rows[t]:
            require_finite(row, f"new task vectors by rule {rule!r}, beyond the range of {row.dtype}")
    return [result[t] for t in tasks]


def _fills(
    rows: Sequence[Tensor], task_masks: Sequence[Tensor | Agreement], shares: Mapping[int, Share],
    out: Mapping[int, Tensor], *, compile_: bool,
) -> list[Callable[[slice], None]]:  # fmt: skip
    """What writes a block of the vectors of tasks that borrow."""
    if not compile_:
        return [partial(_borrow, rows, task_masks[t], t, share, out[t]) for t, share in shares.items()]
    kinds: dict[object, list[int]] = {}
    for t in shares:
        mask = task_masks[t]
        kinds.setdefault(mask.dtype if isinstance(mask, Tensor) else mask.votes.dtype, []).append(t)
    fills = []
    for tasks in kinds.values():
        masks, levels_ = zip(*(_parts(task_masks[t], rows[t].dtype) for t in tasks), strict=True)
        table = None if levels_[0] is None else levels_
        fills.append(compiled.borrow(rows, {t: shares[t] for t in tasks}, masks, table, [out[t] for t in tasks]))
    return fills


def _parts(mask: Tensor | Agreement, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A mask as it is, or votes and the level of each as float64, rounded to the type of the vectors."""
    return (mask, None) if isinstance(mask, Tensor) else (mask.votes, mask.levels.to(dtype).double())


def _borrow(
    rows: Sequence[Tensor], mask: Tensor | Agreement, task: int, share: Share, out: Tensor, at: slice
) -> None:  # fmt: skip
    """own · τ̂ + m̂ ⊙ Σ share · τ̂', in some coordinates, in float64."""
    (own, others), (votes, levels_) = share, _parts(mask, out.dtype)
    # One by one in the order of Z: a matrix product would add in an order of its own, and a fused one rounds once.
    borrowed = torch.zeros(out[at].shape, dtype=torch.float64, device=out.device)
    for t, weight in others:
        borrowed += rows[t][at].double() * weight
    borrowed *= votes[at] if levels_ is None else levels_[votes[at].int()]
    out[at] = borrowed.add_(rows[task][at].double() * own)


def _shares(similarities: list[float], task: int, top_k: int, threshold: float, rule: str) -> Share:
    if rule == "off":
        return 1.0, []
    others = [t for t, s in enumerate(similarities) if t != task and s > threshold]
    others = sorted(others, key=lambda t: -similarities[t])[:top_k]
    # Weights carry the halves and the division, so that an average of finite numbers cannot overflow.
    own = 1.0 if rule == "literal" else 0.5
    divisor = sum(similarities[t] for t in others) if rule == "average" else 1.0
    return own, [(t, own * similarities[t] / divisor) for t in others]
