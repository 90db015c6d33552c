"""MaTU whose masks are read as signs: an ablation (docs/matu-plus.md).

Everything as in `matu`, and the same bytes, but for the unification: a mask of 0 means the opposite of the unified
vector's sign and not zero, so a task keeps the sign of every entry that is not zero; magnitudes are shared with the
least squared error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from matu.config import RunConfig
from matu.errors import ConfigError
from matu.methods.base import Round, State
from matu.methods.matu import Matu, MatuRound
from matu.training import Weights
from matu.wire import MAX_RESCALER


class TrueSigns(Matu):
    """The method of this file; agreement_threshold=0 leaves the task mask of Eq. 3 out."""

    @classmethod
    def options_of(cls, config: RunConfig) -> Any:
        if not config.matu.unification:
            raise ConfigError("true_signs: a reading of unification; unification = false leaves nothing of it")
        return super().options_of(config)

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        vector = tensors["vector"]
        signs = 2 * tensors["masks"].to(vector) - 1 if len(tasks) > 1 else torch.ones(1, self.problem.dim)
        return {
            task: Weights(tensors["rescalers"][i] * signs[i] * vector, tensors[f"head/{task}"])
            for i, task in enumerate(tasks)
        }

    def begin_round(self, state: State) -> TrueSignsRound:
        return TrueSignsRound(self, state)

    def _pack(self, weights: Mapping[str, Weights]) -> dict[str, Tensor]:
        vector, masks, rescalers = share_magnitudes(torch.stack([w.vector for w in weights.values()]))
        tensors = {"vector": vector, "rescalers": rescalers.clamp(max=MAX_RESCALER)}
        if len(weights) > 1:
            tensors["masks"] = masks
        return tensors | {f"head/{task}": w.head for task, w in weights.items()}


class TrueSignsRound(MatuRound):
    """Sums of one round, of the vectors that updates stand for."""

    add = Round.add


def share_magnitudes(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unify with true signs: float [k, d] -> vector [d], masks bool [k, d], rescalers [k] >= 0.

    λ^t (2 m^t − 1) ⊙ vector has the sign of τ^t wherever τ^t is not zero, and magnitudes λ^t a that minimise
    Σ_t ‖|τ^t| − λ^t a‖²: λ is the first eigenvector of the Gram matrix of the magnitudes, none of its entries negative,
    and a = Σ_t λ^t |τ^t|. Rank one has no place for zeros of single tasks: a zero takes the shared magnitude, and a
    task that shares no entry with a larger one gets λ = 0. The vector's own signs are those of the sum, + where that
    is zero. One task comes back as it was.
    """
    if len(vectors) == 1:
        return vectors[0].clone(), torch.ones_like(vectors, dtype=torch.bool), torch.ones(1, dtype=vectors.dtype)
    sizes = vectors.double().abs()
    rescalers = torch.linalg.eigh(sizes @ sizes.T).eigenvectors[:, -1].abs()
    elected = torch.where(vectors.double().sum(dim=0) < 0, -1.0, 1.0)
    vector = (elected * (rescalers @ sizes)).to(vectors.dtype)
    return vector, vectors.sign() == elected, rescalers.to(vectors.dtype)
