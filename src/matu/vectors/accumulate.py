"""Votes and weighted sums of one round, folded in one update at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matu.vectors.checks import (
    Device,
    require_count,
    require_finite,
    require_float,
    require_fraction,
    require_shape,
)
from matu.vectors.exact_sum import MAX_TERMS, ExactSum, require_term
from matu.vectors.unify import Unified

# Larger counts would not be whole numbers in float64.
MAX_SAMPLES = 1 << 53


@dataclass(frozen=True, eq=False)
class RoundMeans:
    """What a round says about each task that had a holder, in the accumulator's order of tasks.

    Attributes
    ----------
    tasks : tuple of str, length T'
        Tasks with at least one holder this round.
    vectors : float64 [T', d]
        Task means (Eq. 4).
    task_masks : float64 [T', d]
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


class _TaskSums:
    """Running sums of one task over its holders."""

    def __init__(self, dim: int, device: Device) -> None:
        self.votes = torch.zeros(dim, dtype=torch.int32, device=device)
        self.weighted = ExactSum(dim, device)
        self.samples = 0

    def add(self, masked: Tensor, rescaler: float, samples: int) -> None:
        self.votes += masked.sign().to(self.votes)
        self.weighted.add(masked, samples * rescaler)
        self.samples += samples

    def task_mask(self, agreement_threshold: float) -> Tensor:
        # In place: temporaries of d numbers cost more than the arithmetic.
        agreement = self.votes.double().abs_().div_(self.weighted.count)
        return agreement.masked_fill_(agreement >= agreement_threshold, 1.0)


class RoundAccumulator:
    """Folds the clients' unified vectors of one round into task means (Eq. 3 and 4).

    The result has the same bits in any order of arrival. Memory is 21 bytes a coordinate for each task
    that has a holder, whatever the number of clients.

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
        self._sums: dict[str, _TaskSums] = {}

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
        rescalers = self._require_unified(unified, len(names))
        masked = [torch.where(mask, unified.vector.detach(), 0) for mask in unified.masks]
        for name, row, rescaler, count in zip(names, masked, rescalers, counts, strict=True):
            require_term(row, count * rescaler, self.dim, f"task {name!r}")
            if name in self._sums and self._sums[name].weighted.count >= MAX_TERMS:
                raise ValueError(f"task {name!r}: {MAX_TERMS} holders in one round, no more fit")
        sums = {name: self._sums.get(name) or _TaskSums(self.dim, self._device) for name in names}
        for name, row, rescaler, count in zip(names, masked, rescalers, counts, strict=True):
            sums[name].add(row.to(self._device), rescaler, count)
        self._sums.update(sums)

    def means(self) -> RoundMeans:
        """Return task means and task masks of the updates so far; more may follow."""
        names = tuple(name for name in self.tasks if name in self._sums)
        shape = (len(names), self.dim)
        vectors = torch.empty(shape, dtype=torch.float64, device=self._device)
        task_masks = torch.empty_like(vectors)
        for i, name in enumerate(names):
            sums = self._sums[name]
            task_masks[i] = sums.task_mask(self.agreement_threshold)
            vectors[i] = sums.weighted.value(sums.samples).mul_(task_masks[i])
        samples = tuple(self._sums[name].samples for name in names)
        holders = tuple(self._sums[name].weighted.count for name in names)
        return RoundMeans(names, vectors, task_masks, samples, holders)

    def _require_known(self, tasks: Sequence[str]) -> tuple[str, ...]:
        names = _distinct(tasks)
        for name in names:
            if name not in self.tasks:
                raise ValueError(f"task {name!r} is unknown, expected one of {', '.join(self.tasks)}")
        return names

    def _require_unified(self, unified: Unified, count: int) -> list[float]:
        vector = require_float(unified.vector, "unified vector")
        require_shape(vector, (self.dim,), "unified vector")
        require_finite(vector, "unified vector")
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
        return numbers


class MeanAccumulator:
    """Sample-weighted mean of float tensors of one shape, such as heads, the same in any order of arrival.

    Parameters
    ----------
    shape : sequence of int
        Shape of every value.
    device
        Where the sums are kept; values may come from any device.
    """

    def __init__(self, shape: Sequence[int], device: Device = "cpu") -> None:
        self.shape = tuple(require_count(size, "shape", 1) for size in shape)
        self.samples = 0
        self._sum = ExactSum(int(torch.Size(self.shape).numel()), device)

    @property
    def count(self) -> int:
        """Number of values added."""
        return self._sum.count

    def add(self, values: Tensor, samples: int) -> None:
        """Add float32 or float64 values with their weight; ValueError, and no change, if they do not fit."""
        require_shape(require_float(values, "values"), self.shape, "values")
        weight = _require_sample_count(samples, "samples")
        self._sum.add(values.reshape(-1), weight)
        self.samples += weight

    def mean(self) -> Tensor:
        """Return the mean, float64 of the given shape; ValueError before the first value."""
        if not self.count:
            raise ValueError("mean of no values: add at least one first")
        return self._sum.value(self.samples).reshape(self.shape)


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
    return [_require_sample_count(count, f"samples of task {name!r}") for name, count in pairs]


def _require_sample_count(samples: object, what: str) -> int:
    count = require_count(samples, what, 1)
    if count > MAX_SAMPLES:
        raise ValueError(f"{what}: {count}, expected at most {MAX_SAMPLES}")
    return count
