"""Bounds on what one client can do to a round, applied before anything enters a sum.

With any of them a round's updates are kept until the last has arrived, as task vectors and heads in an unnamed
temporary file: what does not fit in memory is on disk, if TMPDIR is. Without, nothing of this is used.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import IO

import numpy as np
import torch
from torch import Tensor

from matu.config import DefenceConfig
from matu.errors import DataError
from matu.methods import Method, Round, State
from matu.training import Weights

FEWEST = 3
"""Sites that a median is taken of."""
NUMBERS = 1 << 20
"""Coordinates times holders that are trimmed at a time."""


@dataclass(frozen=True)
class _Kept:
    """Where one client's task lies in the file, in numbers."""

    site: str
    task: str
    samples: int
    start: int
    vector: int
    head: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.vector + math.prod(self.head)


class Guard:
    """A round at the server behind the bounds of a configuration.

    Parameters
    ----------
    method, state
        As for the round itself.
    config
        The bounds.

    Attributes
    ----------
    bounded
        By client, what was cut of its update: for the record.
    """

    def __init__(self, method: Method, state: State, config: DefenceConfig) -> None:
        self.method, self.config = method, config
        self.inner: Round = method.begin_round(state)
        self.bounded: dict[str, list[str]] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # it ends with the round, finished or not
        self._close = weakref.finalize(self, self._file.close)
        self._kept: list[_Kept] = []
        self._numbers = 0

    def add(self, site: str, tasks: Sequence[str], samples: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Keep one site's update; DataError if a rescaler is beyond its limit."""
        limit = self.config.rescaler_limit
        if limit and "rescalers" in tensors and float(tensors["rescalers"].max()) > limit:
            raise DataError(f"a rescaler of {float(tensors['rescalers'].max()):.6g}, rescaler_limit is {limit:g}")
        for (task, weights), count in zip(self.method.reported(tasks, tensors).items(), samples, strict=True):
            cap = self.config.sample_limit
            if cap and count > cap:
                self._note(site, f"{task}: {count} samples count as {cap}")
                count = cap
            rows = torch.cat([weights.vector.flatten(), weights.head.flatten()]).float().contiguous().numpy()
            self._file.write(rows.tobytes())
            self._kept.append(
                _Kept(site, task, count, self._numbers, weights.vector.numel(), tuple(weights.head.shape))
            )
            self._numbers += len(rows)

    def finish(self) -> State:
        """Bound, trim, fold in; the state after the round."""
        if self._kept:
            self._file.flush()
            rows = np.memmap(self._file, np.float32, "r+", shape=(self._numbers,))
            self._kept.sort(key=lambda one: (one.task, one.site))  # not the order of arrival
            if self.config.norm_limit:
                self._bound(rows)
            if self.config.trim:
                for task in sorted({one.task for one in self._kept}):
                    self._trim(rows, [one for one in self._kept if one.task == task])
            for one in self._kept:
                part = torch.from_numpy(np.array(rows[one.start : one.start + one.size]))
                weights = Weights(part[: one.vector], part[one.vector :].reshape(one.head))
                self.inner.add_weights(one.site, one.task, one.samples, weights)
        self._close()
        return self.inner.finish()

    def _bound(self, rows: np.ndarray) -> None:
        """Scale what is longer than so many times the round's median down to that; vectors and heads apart.

        The median is over sites, of each the median over its tasks, and what is zero has no length to go by. Of two
        sites nobody can tell which one is too long, so it takes three.
        """
        for what, part in (("vector", lambda k: (k.start, k.start + k.vector)),
                           ("head", lambda k: (k.start + k.vector, k.start + k.size))):  # fmt: skip
            sizes = {one: _root_mean_square(rows[slice(*part(one))]) for one in self._kept}
            by_site: dict[str, list[float]] = {}
            for one, size in sizes.items():
                if size:
                    by_site.setdefault(one.site, []).append(size)
            if len(by_site) < FEWEST:
                continue
            middle = median_low(map(median_low, by_site.values()))
            limit = self.config.norm_limit * middle
            for one, size in sizes.items():
                if size > limit:
                    rows[slice(*part(one))] *= np.float32(limit / size)
                    self._note(one.site, f"{one.task}: {what} {size / middle:.3g} times the median")

    def _trim(self, rows: np.ndarray, kept: Sequence[_Kept]) -> None:
        """Coordinate by coordinate, put the mean of the rest in place of the largest and smallest of a task.

        The weighted mean over all is then that of the rest.
        """
        cut = int(self.config.trim * len(kept) + 1e-9)  # 0.29 of 100 is 29
        if not cut:
            return
        weights = np.array([one.samples for one in kept], np.float64)
        block = max(1, NUMBERS // len(kept))
        for first in range(0, kept[0].size, block):
            last = min(first + block, kept[0].size)
            values = np.stack([rows[one.start + first : one.start + last] for one in kept]).astype(np.float64)
            order = np.argsort(values, axis=0, kind="stable")
            inner = np.zeros(values.shape, bool)
            np.put_along_axis(inner, order[cut : len(kept) - cut], True, axis=0)
            share = weights[:, None] * inner
            mean = (share * values).sum(axis=0) / share.sum(axis=0)
            for one, row, stays in zip(kept, values, inner, strict=True):
                rows[one.start + first : one.start + last] = np.where(stays, row, mean)

    def _note(self, site: str, what: str) -> None:
        self.bounded.setdefault(site, []).append(what)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if len(values) else 0.0
