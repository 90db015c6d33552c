"""The innermost loops over coordinates, compiled by numba where it is installed (`pip install 'matu[fast]'`).

Each gives the same bits as the torch operations that its caller falls back to: no fused or reordered arithmetic.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

FROM_DIM = 1 << 17
"""Shorter vectors are not worth the seconds that compiling takes."""
GROUP = 16
"""Terms folded at once: at most 2^9, so that sums of 44-bit digits are exact in float64."""
WHOLE = 2 * GROUP
"""So many holders' terms at most go from vectors to means without digits in between."""
NEIGHBOURS = 4
"""Rows that are borrowed from are a multiple of this many: each other number is compiled anew."""


def pays(dim: int, *tensors: Tensor) -> bool:
    """Whether to use what is here: numba is installed, the vector is long, and it lies in ordinary memory."""
    return dim >= FROM_DIM and importlib.util.find_spec("numba") is not None and all(t.is_cpu for t in tensors)


def fold(
    terms: Sequence[tuple[Tensor, float, Tensor | None]],
    bins: Tensor, high: Tensor, low: Tensor, signs: Tensor | None,
) -> None:  # fmt: skip
    """Fold (values, weight, mask) into the digits of an exact sum, and their signs into counts (`exact_sum`)."""
    state = [*(part.numpy() for part in (bins, high, low)), None if signs is None else signs.numpy()]
    kinds: dict[tuple[Any, bool], list[tuple[Tensor, float, Tensor | None]]] = {}
    for term in terms:
        kinds.setdefault((term[0].dtype, term[2] is None), []).append(term)
    for (_, whole), alike in kinds.items():
        for first in range(0, len(alike), GROUP):
            group = alike[first : first + GROUP]
            padded = [*group, *[group[0]] * (GROUP - len(group))]
            _kernels().fold(
                tuple(values.numpy() for values, _, _ in padded),
                None if whole else tuple(mask.numpy() for _, _, mask in padded if mask is not None),
                np.array([weight for _, weight, _ in padded]), len(group), *state,
            )  # fmt: skip


def means(
    terms: Sequence[tuple[Tensor, float, Tensor | None]], samples: int, threshold: float, votes: Tensor, out: Tensor
) -> Callable[[slice], None] | None:
    """Eq. 3 and 4 of masked terms, a block at a time: what `fold`, `value` and `agreement` give, no digits kept.

    None where they are too many or of several types.
    """
    masks = [mask for _, _, mask in terms if mask is not None]
    if len(terms) > WHOLE or len(masks) < len(terms) or len({values.dtype for values, _, _ in terms}) != 1:
        return None
    padding = -len(terms) % GROUP
    arrays = (
        tuple(values.numpy() for values, _, _ in [*terms, *[terms[0]] * padding]),
        tuple(mask.numpy() for mask in [*masks, *[masks[0]] * padding]),
        np.array([weight for _, weight, _ in terms]), len(terms), float(samples), float(len(terms)), threshold,
        votes.numpy(), out.numpy(),
    )  # fmt: skip
    return lambda at: _kernels().means(*arrays, at.start, at.stop)


def value(bins: Tensor, high: Tensor, low: Tensor, divisor: float, out: Tensor) -> None:
    """What digits stand for, over `divisor`, float64."""
    _kernels().value(bins.numpy(), high.numpy(), low.numpy(), float(divisor), out.numpy())


def agreement(signs: Tensor, holders: int, threshold: float, values: Tensor, votes: Tensor, means: Tensor) -> None:
    """Eq. 3 and the mask of Eq. 4: from sums of signs and of float64 terms to votes and task means."""
    _kernels().agreement(signs.numpy(), float(holders), threshold, values.numpy(), votes.numpy(), means.numpy())


def borrow(
    own: Tensor, others: Sequence[Tensor], shares: Sequence[float], keep: float,
    mask: Tensor, levels: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    """Eq. 6 and 7: keep · own + mask ⊙ Σ share · other, the mask as it is, or as votes with the level of each."""
    padded = [*others, *[others[0]] * (-len(others) % NEIGHBOURS)]
    _kernels().borrow(
        own.numpy(), tuple(row.numpy() for row in padded), np.array(shares), len(others), keep,
        mask.numpy(), None if levels is None else levels.numpy(), out.numpy(),
    )  # fmt: skip


def unify(vectors: Tensor, vector: Tensor, masks: Tensor, doubtful: Tensor) -> bool:
    """Eq. 2 over columns of float [k, b]; whether some elected sign is within rounding of 0, and which (bool [b])."""
    return bool(_kernels().unify(vectors.numpy(), vector.numpy(), masks.numpy(), doubtful.numpy()))


@lru_cache(maxsize=1)
def _kernels() -> Any:
    return importlib.import_module("matu.vectors.kernels")
