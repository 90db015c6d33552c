"""Unification of several task vectors into one, with a mask and a rescaler for each task."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from matu.errors import RangeError
from matu.vectors import compiled
from matu.vectors.blocks import BLOCK, COMPILED_BLOCK, DEVICE_BLOCK, in_blocks
from matu.vectors.checks import require_matrix


@dataclass(frozen=True, eq=False)
class Unified:
    """One vector for k tasks, and for each task its modulator: a mask and a rescaler.

    Attributes
    ----------
    vector : float [d]
        Unified task vector.
    masks : bool [k, d]
        Where the sign of a task agrees with the unified vector.
    rescalers : float [k]
        Ratio of a task's mass to the mass of its masked unified vector, not negative.
    """

    vector: Tensor
    masks: Tensor
    rescalers: Tensor

    @property
    def count(self) -> int:
        """Number of tasks k."""
        return self.masks.shape[0]

    @property
    def dim(self) -> int:
        """Number of parameters d."""
        return self.vector.shape[0]

    def modulate(self, i: int) -> Tensor:
        """Return task i's approximate vector λ^i · m^i ⊙ τ, float [d]."""
        return self.rescalers[i] * torch.where(self.masks[i], self.vector, 0)


def unify(vectors: Tensor, *, most: float = math.inf) -> Unified:
    """Unify task vectors by electing a sign and the largest agreeing magnitude (Eq. 2 and section 3.2).

    Permuting the tasks permutes masks and rescalers and changes no bit of the vector: the elected sign is
    that of the exact sum. One task comes back unchanged, with rescaler 1 (0 for a zero vector).

    Parameters
    ----------
    vectors : float32 or float64 [k, d]
        One task vector a row, on any device.
    most
        What a larger rescaler is cut to: none has a bound where a task disagrees almost everywhere.

    Returns
    -------
    Unified
        In the dtype and on the device of `vectors`.

    Raises
    ------
    ValueError
        Wrong shape or dtype, an entry that is not finite, or a rescaler beyond the range of the dtype.
    """
    vectors = require_matrix(vectors, "task vectors", "tasks").contiguous()
    vector, masks = elect(vectors)
    return Unified(vector, masks, _rescalers(vectors, vector, masks, most))


def elect(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unified vector, float [d], and masks, bool [k, d], of contiguous finite task vectors: `unify` less the rescalers.

    Every coordinate stands alone, so that vectors may be unified a part at a time.
    """
    vector = torch.empty_like(vectors[0])
    masks = torch.empty_like(vectors, dtype=torch.bool)
    compile_ = compiled.pays(vectors.shape[1], vectors)

    def part(at: slice) -> None:
        if not compile_:
            vector[at], masks[:, at] = _elect(vectors[:, at])
            return
        where = compiled.unify(vectors, vector, masks, at).nonzero()[:, 0] + at.start
        if len(where):
            vector[where], masks[:, where] = _elect(vectors[:, where])

    in_blocks(vectors.shape[1], part, vectors.device, COMPILED_BLOCK if compile_ else max(1, BLOCK // len(vectors)))
    return vector, masks


def _elect(block: Tensor) -> tuple[Tensor, Tensor]:
    """Unified vector and masks of some coordinates, float [k, b]."""
    elected = _elected_sign(block)
    # Nothing underflows: the elected sign is -1, 0 or 1.
    agreeing = block * elected > 0
    return elected * torch.where(agreeing, block.abs(), 0).amax(dim=0), agreeing


def _elected_sign(block: Tensor) -> Tensor:
    """Sign of the exact sum over tasks, -1, 0 or 1 in the dtype of `block`, float [k, b] -> [b]."""
    count = block.shape[0]
    numbers = block.double()
    total = numbers.sum(dim=0)
    elected = total.sign()
    # A sum of one or two floats is zero or overflows only where the exact sum is zero or large.
    if count > 2:
        mass = numbers.abs().sum(dim=0)
        # Twice the bound on the rounding of any order of summation; `not >` also catches overflow and NaN.
        bound = count * torch.finfo(torch.float64).eps * mass
        doubtful = ~(total.abs() > bound) & (mass > 0)
        if bool(doubtful.any()):
            columns = numbers[:, doubtful].T.tolist()
            elected[doubtful] = elected.new_tensor([_exact_sign(column) for column in columns])
    return elected.to(block.dtype)


def _exact_sign(numbers: list[float]) -> int:
    try:
        total: float | Fraction = math.fsum(numbers)
    except OverflowError:
        total = sum(map(Fraction, numbers), Fraction(0))
    return (total > 0) - (total < 0)


def _rescalers(vectors: Tensor, vector: Tensor, masks: Tensor, most: float) -> Tensor:
    """Σ|τ^t| / Σ|m^t ⊙ τ| for each task, at most `most`, 0 where the denominator is 0, float [k]."""
    ratios = []
    for row, mask in zip(vectors, masks, strict=True):
        mass, mass_exponent = _mass(row, None)
        kept, kept_exponent = _mass(vector, mask)
        ratios.append(min(most, mass / kept * 2.0 ** (mass_exponent - kept_exponent)) if kept else 0.0)
    rescalers = vectors.new_tensor(ratios)
    for i in torch.nonzero(~torch.isfinite(rescalers))[:, 0].tolist():
        raise RangeError(f"task vectors: row {i} needs the rescaler {ratios[i]:.3g}, beyond {vectors.dtype}")
    return rescalers


def _mass(values: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """Σ|x| where the mask allows, as a float64 and an exponent of two, which is 0 unless the plain sum overflows."""
    for exponent in (0, 64):
        mass = _block_sums(values, mask, 2.0**-exponent)
        if math.isfinite(mass):
            break
    return mass, exponent


def _block_sums(values: Tensor, mask: Tensor | None, scale: float) -> float:
    """Block by block: nothing as long as the vector is made."""
    sums = []
    for start in range(0, len(values), DEVICE_BLOCK):
        at = slice(start, start + DEVICE_BLOCK)
        kept = values[at] if mask is None else values[at] * mask[at]  # finite numbers, and faster than to choose
        sums.append(float(torch.linalg.vector_norm(kept if scale == 1 else kept * scale, ord=1, dtype=torch.float64)))
    return sum(sums)
