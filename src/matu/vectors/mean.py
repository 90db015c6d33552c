"""Sample-weighted means that are the same in any order of arrival."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matu.vectors.accumulate import WAITING_BYTES
from matu.vectors.blocks import BLOCK, COMPILED_BLOCK, in_blocks
from matu.vectors.checks import Device, require_count, require_float, require_sample_count, require_shape
from matu.vectors.exact_sum import MAX_TERMS, ExactSum, Term, require_term


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
        self._device = torch.device(device)
        self._sum = ExactSum(int(torch.Size(self.shape).numel()), device)
        self._waiting: list[Term] = []

    @property
    def count(self) -> int:
        """Number of values added."""
        return self._sum.count + len(self._waiting)

    def add(self, values: Tensor, samples: int) -> None:
        """Add float32 or float64 values with their weight; ValueError, and no change, if they do not fit."""
        require_shape(require_float(values, "values"), self.shape, "values")
        weight = require_sample_count(samples, "samples")
        flat = values.detach().reshape(-1).to(self._device).contiguous()
        require_term(flat, weight, self._sum.dim)
        if self.count >= MAX_TERMS:
            raise ValueError(f"{MAX_TERMS} values in one mean, no more fit")
        self._waiting.append(Term(flat, weight))
        self.samples += weight
        if sum(term.values.nbytes for term in self._waiting) > WAITING_BYTES * self._sum.dim:
            self._sum.fold(self._waiting)
            self._waiting = []

    def mean(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the mean, rounded to `dtype`, of the given shape; ValueError before the first value."""
        if not self.count:
            raise ValueError("mean of no values: add at least one first")
        result = torch.empty(self._sum.dim, dtype=dtype, device=self._device)

        def fill(at: slice) -> None:
            part = self._sum.part(at, self._waiting)
            result[at] = part.value(self.samples, compile_=self._sum.compiles(self._waiting))

        in_blocks(self._sum.dim, fill, self._device, COMPILED_BLOCK if self._sum.compiles(()) else BLOCK)
        return result.reshape(self.shape)
