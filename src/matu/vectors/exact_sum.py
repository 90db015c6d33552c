"""A sum of float vectors that has the same bits in whatever order its terms arrive."""

import math

import torch
from torch import Tensor

from matu.vectors.checks import Device, require_count, require_finite, require_float, require_shape

DIGIT_BITS = 44
MAX_TERMS = 1 << (62 - DIGIT_BITS)

# Coordinates worked on at once: temporaries of 0.5 MB stay in the processor's cache.
BLOCK = 1 << 16
_DIGIT = 2.0**DIGIT_BITS
_EXPONENT_BIAS = 1023
# Biased exponents below this share bin 0. It places a bin's edges at 2^±22, so that the usual weighted
# sums (1e-6 to 1e6) stay in one bin, and keeps every power of two used here a normal number.
_FIRST_EXPONENT = 33


class ExactSum:
    """Elementwise sum of weighted float vectors, float64 [d], independent of their order.

    A float x with biased exponent e belongs to bin b(x) = max(0, ⌊(e - 33) / 44⌋), and bin b has the grid
    g(b) = 2^(44 b - 990), so that |x| < 2^44 g(b(x)). A coordinate keeps the largest bin B seen and two
    integers, high = Σ trunc(x / g(B)) and low = Σ trunc(2^44 frac(x / g(B))). Both are sums of integers
    that depend on x and B alone, and B is a maximum, so no order and no grouping can change them.
    It remains that a larger bin can be reached without the old terms: x of a bin below B has
    trunc(x / g(B)) = 0, and truncation nests, so its part of low is trunc(x / g(B - 1)). Hence one bin up
    turns (high, low) into (0, high), and two or more into (0, 0), as |x| < g(B - 1) for all of them.

    A term loses less than g(B - 1) <= 2^-44 max|x| (2^-1034 for the tiniest), so n terms are off by less
    than n · 2^-44 of the largest. The integers stay below n · 2^44 <= 2^62. A term is weight · value, rounded
    to float64 once.

    Parameters
    ----------
    dim : int
        Number of coordinates d.
    device
        Where the state lives: 17 bytes a coordinate.
    """

    def __init__(self, dim: int, device: Device = "cpu") -> None:
        require_count(dim, "dim", 1)
        self.count = 0
        self._bin = torch.zeros(dim, dtype=torch.int8, device=device)
        self._high = torch.zeros(dim, dtype=torch.int64, device=device)
        self._low = torch.zeros(dim, dtype=torch.int64, device=device)

    @property
    def dim(self) -> int:
        """Number of coordinates d."""
        return self._bin.shape[0]

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Add weight · values, float32 or float64 [d]; ValueError, and no change, if a term is not finite."""
        require_term(values, weight, self.dim)
        self._require_room(1)
        values = values.detach().to(self._bin.device)
        for start in range(0, self.dim, BLOCK):
            at = slice(start, start + BLOCK)
            self._fold(at, values[at].to(torch.float64) * weight)
        self.count += 1

    def merge(self, other: "ExactSum") -> None:
        """Add all terms of another sum of the same d, as if each had been added here."""
        require_shape(other._bin, (self.dim,), "sum to merge")
        self._require_room(other.count)
        device = self._bin.device
        theirs = (other._bin.to(device), other._high.to(device), other._low.to(device))
        largest = torch.maximum(self._bin, theirs[0])
        self._raise_bins(slice(None), largest)
        high, low = _in_bin(largest, *theirs)
        self._high += high
        self._low += low
        self.count += other.count

    def value(self, divisor: float = 1.0) -> Tensor:
        """Return the sum over `divisor`, float64 [d]; divided before it could overflow."""
        result = torch.empty(self.dim, dtype=torch.float64, device=self._bin.device)
        for start in range(0, self.dim, BLOCK):
            at = slice(start, start + BLOCK)
            result[at] = self._value(at, divisor)
        return result

    def _require_room(self, terms: int) -> None:
        if self.count + terms > MAX_TERMS:
            raise ValueError(f"exact sum: {self.count} + {terms} terms, at most {MAX_TERMS} fit")

    def _fold(self, at: slice, terms: Tensor) -> None:
        scaled = terms * _inverse_grid(self._bin[at])
        # Infinite where a term is far above its coordinate's bin, which is as good.
        if float(scaled.abs().amax()) >= _DIGIT:
            self._raise_bins(at, torch.maximum(self._bin[at], _bin_of(terms)))
            scaled = terms * _inverse_grid(self._bin[at])
        whole = scaled.long()
        self._high[at] += whole
        self._low[at] += ((scaled - whole) * _DIGIT).long()

    def _value(self, at: slice, divisor: float) -> Tensor:
        # Carry first: then low is in [0, 2^44), and only one rounding is left where high is small.
        carry = self._low[at] >> DIGIT_BITS
        high = (self._high[at] + carry).double()
        low = (self._low[at] - (carry << DIGIT_BITS)).double()
        digits = (high * _DIGIT + low) / divisor
        exponent = DIGIT_BITS * (self._bin[at].long() - 1) - (_EXPONENT_BIAS - _FIRST_EXPONENT)
        half = exponent >> 1
        # Two factors, because one power of two may be out of range where the product is not.
        return digits * _power_of_two(half) * _power_of_two(exponent - half)

    def _raise_bins(self, at: slice, bins: Tensor) -> None:
        high, low = _in_bin(bins, self._bin[at], self._high[at], self._low[at])
        self._bin[at], self._high[at], self._low[at] = bins, high, low


def require_term(values: object, weight: float, dim: int, what: str = "values") -> None:
    """Raise ValueError unless weight · values is a finite float [dim], so that it can be added."""
    tensor = require_float(values, what)
    require_shape(tensor, (dim,), what)
    require_finite(tensor, what)
    largest = float(torch.linalg.vector_norm(tensor.detach(), ord=math.inf))
    if not math.isfinite(largest * weight):
        raise ValueError(f"{what}: weight {weight:.6g} times {largest:.6g} overflows float64")


def _bin_of(terms: Tensor) -> Tensor:
    exponent = (terms.view(torch.int64) >> 52) & 0x7FF
    # 745 / 2^15 stands for 1 / 44: equal after flooring for every exponent, and much faster than dividing.
    return ((exponent - _FIRST_EXPONENT) * 745 >> 15).clamp_(min=0).to(torch.int8)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + _EXPONENT_BIAS) << 52).view(torch.float64)


def _inverse_grid(bins: Tensor) -> Tensor:
    return _power_of_two((_EXPONENT_BIAS - _FIRST_EXPONENT) - DIGIT_BITS * bins.long())


def _in_bin(bins: Tensor, old_bins: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (high, low) of the same terms as seen from bins that are equal or larger."""
    rise = bins - old_bins
    return torch.where(rise == 0, high, 0), torch.where(rise == 0, low, torch.where(rise == 1, high, 0))
