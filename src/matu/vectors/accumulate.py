"""Votes and weighted sums of one round, folded in one update at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matu.vectors import compiled
from matu.vectors.blocks import BLOCK, COMPILED_BLOCK, in_blocks
from matu.vectors.checks import (
    Device,
    require_count,
    require_finite,
    require_float,
    require_fraction,
    require_sample_count,
    require_shape,
)
from matu.vectors.exact_sum import MAX_TERMS, ExactSum, Term, require_term
from matu.vectors.transfer import Agreement, levels, vote_dtype
from matu.vectors.unify import Unified

WAITING_BYTES = 32
"""Updates wait to be folded together up to this many bytes for each coordinate and task."""


@dataclass(frozen=True, eq=False)
class RoundMeans:
    """What a round says about each task that had a holder, in the accumulator's order of tasks.

    Attributes
    ----------
    tasks : tuple of str, length T'
        Tasks with at least one holder this round.
    vectors : float [T', d]
        Task means (Eq. 4).
    task_masks : float [T', d]
        Agreement after the threshold, in [0, 1] (Eq. 3).
    samples : tuple of int, length T'
        Samples of the task over its holders.
    holders : tuple of int, length T'
        Clients of this round that hold the task.
    """

    tasks: tuple[str, ...]
    vectors: Tensor
    task_masks: Tensor
    samples: tuple[int, ...]
    holders: tuple[int, ...]


class RoundAccumulator:
    """Folds the clients' unified vectors of one round into task means (Eq. 3 and 4).

    The result has the same bits in any order of arrival, and in any grouping: accumulators add (`a + b`). Memory is at
    most 53 bytes a coordinate for each task that has a holder, whatever the number of clients: 21 of sums, and updates
    that wait to be folded together (most of the cost of folding is reading and writing the sums). What is added must
    therefore not be written to later.

    Parameters
    ----------
    tasks : sequence of str
        Every task that may be held, in the order of the results.
    dim : int
        Number of parameters d.
    agreement_threshold : float
        ρ of Eq. 3, from 0 to 1.
    device
        Where the sums are kept; updates may come from any device.

    Raises
    ------
    ValueError
        A repeated task, d below 1, or a threshold outside [0, 1].
    """

    def __init__(
        self, tasks: Sequence[str], dim: int, agreement_threshold: float = 0.4, device: Device = "cpu"
    ) -> None:
        self.tasks = _distinct(tasks)
        self.dim = require_count(dim, "dim", 1)
        self.agreement_threshold = require_fraction(agreement_threshold, "agreement_threshold")
        self._device = torch.device(device)
        self._sums: dict[str, ExactSum] = {}
        self._samples: dict[str, int] = {}
        self._waiting: dict[str, list[Term]] = {}
        self._waiting_bytes = 0

    def add(self, tasks: Sequence[str], unified: Unified, samples: Sequence[int]) -> None:
        """Fold in one client's update; it is checked as a whole before anything changes.

        Parameters
        ----------
        tasks : sequence of str, length k
            The client's tasks, in the order of the masks.
        unified : Unified
            float [d] with masks bool [k, d] and rescalers float [k] >= 0.
        samples : sequence of int, length k
            Training samples of each task at the client, at least 1.

        Raises
        ------
        ValueError
            An unknown or repeated task, lengths or shapes that differ, samples below 1, a negative
            rescaler, numbers that are not finite, or terms that overflow float64.
        """
        names = self._require_known(tasks)
        counts = _require_samples(names, samples)
        rescalers, largest = self._require_unified(unified, len(names))
        weights = [count * rescaler for count, rescaler in zip(counts, rescalers, strict=True)]
        vector = unified.vector.detach()
        for name, mask, weight in zip(names, unified.masks, weights, strict=True):
            if not math.isfinite(largest * weight):  # perhaps the mask leaves the largest out
                require_term(torch.where(mask, vector, 0), weight, self.dim, f"task {name!r}")
            if name in self._sums and self._holders(name) >= MAX_TERMS:
                raise ValueError(f"task {name!r}: {MAX_TERMS} holders in one round, no more fit")
        vector = vector.to(self._device).contiguous()
        masks = unified.masks.to(self._device).contiguous()
        for name, mask, weight, count in zip(names, masks, weights, counts, strict=True):
            self._sums.setdefault(name, ExactSum(self.dim, self._device, signs=True))
            self._waiting.setdefault(name, []).append(Term(vector, weight, mask))
            self._samples[name] = self._samples.get(name, 0) + count
        self._waiting_bytes += vector.nbytes + masks.nbytes
        if self._waiting_bytes > WAITING_BYTES * self.dim * len(self._sums):
            self._fold()

    def means(self, dtype: torch.dtype = torch.float64) -> RoundMeans:
        """Return task means and task masks of the updates so far, rounded to `dtype`; more may follow."""
        found = self.by_task(dtype)
        empty = torch.empty((0, self.dim), dtype=dtype, device=self._device)
        vectors = torch.stack([mean for mean, _ in found.values()]) if found else empty
        task_masks = torch.stack([agreement.mask(dtype) for _, agreement in found.values()]) if found else empty
        samples = tuple(self._samples[name] for name in found)
        return RoundMeans(tuple(found), vectors, task_masks, samples, tuple(map(self._holders, found)))

    def by_task(self, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, Agreement]]:
        """Mean, [d], and agreement of every task with a holder, as `means` but each a tensor of its own."""
        found = {
            name: (
                torch.empty(self.dim, dtype=dtype, device=self._device),
                torch.empty(self.dim, dtype=vote_dtype(self._holders(name)), device=self._device),
            )
            for name in self.tasks if name in self._sums
        }  # fmt: skip

        direct = {name: terms for name in found if (terms := self._direct(name))}
        fills = [self._fill(name, *found[name]) for name in found if name not in direct]
        for dtype in {terms[0].values.dtype for terms in direct.values()}:
            alike = [name for name, terms in direct.items() if terms[0].values.dtype == dtype]
            fills.append(
                compiled.means(
                    [direct[name] for name in alike],
                    [self._samples[name] for name in alike],
                    [levels(self._holders(name), self.agreement_threshold) for name in alike],
                    [found[name][1] for name in alike],
                    [found[name][0] for name in alike],
                )
            )

        def fill(at: slice) -> None:
            for one in fills:  # task by task in a block: what tasks share is read once
                one(at)

        in_blocks(self.dim, fill, self._device, COMPILED_BLOCK if direct else BLOCK)
        return {
            name: (mean, Agreement(votes, self._holders(name), self.agreement_threshold))
            for name, (mean, votes) in found.items()
        }

    def _direct(self, name: str) -> list[Term]:
        """The terms of a task that compiled loops take from vectors to means, without digits in between; or none."""
        terms = self._waiting.get(name, [])
        total = self._sums[name]
        fits = 0 < len(terms) <= compiled.MAX_FOLDED and not total.folded and total.compiles(terms)
        return terms if fits else []

    def _fill(self, name: str, mean: Tensor, votes: Tensor) -> Callable[[slice], None]:
        """What writes a block of a task's mean and votes."""
        total, waiting, samples = self._sums[name], self._waiting.get(name, []), self._samples[name]
        table, compile_ = levels(self._holders(name), self.agreement_threshold, self._device), total.compiles(waiting)

        def fill(at: slice) -> None:
            digits = total.part(at, waiting)
            values = digits.value(samples, compile_=compile_)
            assert digits.signs is not None
            if compile_:
                compiled.agreement(digits.signs, table, values, votes[at], mean[at])
                return
            votes[at] = digits.signs.abs_()
            mean[at] = values.mul_(table[digits.signs])

        return fill

    def __add__(self, other: "RoundAccumulator") -> "RoundAccumulator":
        """All updates of both, as if each had been added to one.

        Raises
        ------
        ValueError
            If they are not of the same tasks, d and threshold, or their holders are too many together.
        """
        mine, theirs = ((a.tasks, a.dim, a.agreement_threshold) for a in (self, other))
        if mine != theirs:
            raise ValueError(f"accumulators of {mine} and {theirs} (tasks, d, threshold): expected the same")
        both = RoundAccumulator(*mine, self._device)
        for one in (self, other):
            one._fold()
            for name, total in one._sums.items():
                both._sums.setdefault(name, ExactSum(both.dim, both._device, signs=True)).merge(total)
                both._samples[name] = both._samples.get(name, 0) + one._samples[name]
        return both

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far as named tensors, which another process can restore and add."""
        self._fold()
        found: dict[str, Tensor] = {}
        for name, total in self._sums.items():
            found |= {f"{name}/{part}": tensor for part, tensor in total.tensors().items()}
            found[f"{name}/samples"] = torch.tensor([self._samples[name]])
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put sums that `tensors` gave in place of what is here.

        Raises
        ------
        ValueError
            For an unknown task, another d, or parts that are missing.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            parts.setdefault(name, {})[part] = tensor
        self._require_known(tuple(parts) or self.tasks)
        sums: dict[str, ExactSum] = {}
        samples: dict[str, int] = {}
        for name, found in parts.items():
            sums[name] = ExactSum.restored({part: t for part, t in found.items() if part != "samples"}, self._device)
            if sums[name].dim != self.dim or "signs" not in found or "samples" not in found:
                raise ValueError(f"task {name!r}: {sums[name].dim} coordinates, parts {', '.join(sorted(found))}")
            samples[name] = require_count(int(found["samples"]), f"samples of task {name!r}", 1)
        self._sums, self._samples, self._waiting, self._waiting_bytes = sums, samples, {}, 0

    def _holders(self, name: str) -> int:
        return self._sums[name].count + len(self._waiting.get(name, []))

    def _fold(self) -> None:
        for name, terms in self._waiting.items():
            self._sums[name].fold(terms)
        self._waiting, self._waiting_bytes = {}, 0

    def _require_known(self, tasks: Sequence[str]) -> tuple[str, ...]:
        names = _distinct(tasks)
        for name in names:
            if name not in self.tasks:
                raise ValueError(f"task {name!r} is unknown, expected one of {', '.join(self.tasks)}")
        return names

    def _require_unified(self, unified: Unified, count: int) -> tuple[list[float], float]:
        """The rescalers, and the largest magnitude of the vector."""
        vector = require_float(unified.vector, "unified vector")
        require_shape(vector, (self.dim,), "unified vector")
        largest = require_finite(vector, "unified vector")
        if not isinstance(unified.masks, Tensor) or unified.masks.dtype != torch.bool:
            raise ValueError("masks: expected a bool tensor")
        require_shape(unified.masks, (count, self.dim), "masks")
        rescalers = require_float(unified.rescalers, "rescalers")
        require_shape(rescalers, (count,), "rescalers")
        require_finite(rescalers, "rescalers")
        numbers: list[float] = rescalers.tolist()
        for i, number in enumerate(numbers):
            if number < 0:
                raise ValueError(f"rescalers: {number:.6g} at index [{i}], expected none below 0")
        return numbers, largest


def _distinct(tasks: Sequence[str]) -> tuple[str, ...]:
    names = tuple(tasks)
    if isinstance(tasks, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"tasks: got {tasks!r}, expected a list of at least one task name")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"task {name!r} is named {names.count(name)} times, expected once")
    return names


def _require_samples(names: tuple[str, ...], samples: Sequence[int]) -> list[int]:
    if len(samples) != len(names):
        raise ValueError(f"samples: {len(samples)} counts for {len(names)} tasks, expected one each")
    pairs = zip(names, samples, strict=True)
    return [require_sample_count(count, f"samples of task {name!r}") for name, count in pairs]
