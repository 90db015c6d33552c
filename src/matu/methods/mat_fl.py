"""MaT-FL: an adapter per client and task, averaged within clusters (Cai et al. 2023).

sent up      an adapter and a head for each of the client's tasks
sent down    that client's own adapters and heads, as the server grouped them last
trained      every task of the client from its own adapter
aggregated   δ_i = θ_i − mean θ over the adapters of the round; hard: agglomerative clusters (cosine, average
             linkage), each adapter becomes its cluster's plain mean, each head that of its task in the cluster;
             soft: means weighted by max(0, cos(δ_i, δ_j))
kept         at the server: an adapter and a head per (client, task); at clients: nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from matu.methods.base import Round, State
from matu.methods.per_task_fedavg import PerTaskFedAvg
from matu.training import Weights


@dataclass(frozen=True)
class Options:
    """`grouping` hard or soft; `clusters` of the hard one."""

    grouping: str = "hard"
    clusters: int = 3

    def __post_init__(self) -> None:
        if self.grouping not in ("hard", "soft"):
            raise ValueError(f"grouping {self.grouping!r}: expected hard or soft")
        if self.clusters < 1:
            raise ValueError(f"clusters {self.clusters}: expected 1 or more")


class MatFl(PerTaskFedAvg):
    """The method of this file."""

    Options = Options
    personal = True

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        tensors = {}
        for task in tasks:
            base = self.problem.base(task)
            tensors[f"adapter/{task}"] = state.get(f"adapter/{site}/{task}", base.vector)
            tensors[f"head/{task}"] = state.get(f"head/{site}/{task}", base.head)
        return tensors

    def begin_round(self, state: State) -> MatFlRound:
        return MatFlRound(self, state)

    def server_weights(self, state: State) -> None:
        return None


class MatFlRound(Round):
    """The round's updates; grouping needs them all at once."""

    method: MatFl

    def __init__(self, method: MatFl, state: State) -> None:
        self.method, self.state = method, state
        self.received: dict[tuple[str, str], Weights] = {}

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.received[site, task] = weights

    def finish(self) -> State:
        if not self.received:
            return self.state
        owners = sorted(self.received)
        vectors = torch.stack([self.received[owner].vector for owner in owners]).double()
        o = self.method.options
        shares = soft_shares(vectors) if o.grouping == "soft" else hard_shares(vectors, o.clusters)
        grouped = shares @ vectors
        state = dict(self.state)
        for i, (site, task) in enumerate(owners):
            same = [j for j, owner in enumerate(owners) if owner[1] == task]
            heads = torch.stack([self.received[owners[j]].head for j in same]).double()
            among = shares[i, same] / shares[i, same].sum()
            state[f"adapter/{site}/{task}"] = grouped[i].float()
            state[f"head/{site}/{task}"] = torch.tensordot(among, heads, dims=1).float()
        return state


def hard_shares(vectors: Tensor, clusters: int) -> Tensor:
    """float64 [n, d] -> [n, n]: row i holds 1 / |cluster of i| for the members of its cluster, else 0."""
    count = len(vectors)
    if count <= clusters:
        return torch.eye(count, dtype=torch.float64)
    grouping = AgglomerativeClustering(n_clusters=clusters, metric="precomputed", linkage="average")
    labels = torch.from_numpy(grouping.fit_predict(np.asarray(1 - _cosines(vectors))))
    together = (labels[:, None] == labels[None]).double()
    return together / together.sum(dim=1, keepdim=True)


def soft_shares(vectors: Tensor) -> Tensor:
    """float64 [n, d] -> [n, n]: max(0, cos(δ_i, δ_j)), rows scaled to sum 1; an adapter is always its own."""
    cosines = _cosines(vectors).clamp(min=0).fill_diagonal_(1)
    return cosines / cosines.sum(dim=1, keepdim=True)


def _cosines(vectors: Tensor) -> Tensor:
    """Cosines of the differences from the mean; 0 where a difference is zero, 1 on the diagonal."""
    delta = vectors - vectors.mean(dim=0)
    lengths = delta.norm(dim=1, keepdim=True)
    unit = delta / torch.where(lengths > 0, lengths, 1)
    return (unit @ unit.T).clamp(-1, 1).fill_diagonal_(1)
