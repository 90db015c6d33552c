"""A sum of float vectors that has the same bits in whatever order its terms arrive."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from matu.errors import RangeError
from matu.vectors import compiled
from matu.vectors.blocks import BLOCK, COMPILED_BLOCK, in_blocks
from matu.vectors.checks import Device, require_count, require_finite, require_float, require_shape

DIGIT_BITS = 44
MAX_TERMS = 1 << (62 - DIGIT_BITS)

MAX_BIN = (2046 - 33) // DIGIT_BITS

_DIGIT = 2.0**DIGIT_BITS
_EXPONENT_BIAS = 1023
# Biased exponents below this share bin 0. It places a bin's edges at 2^±22, so that the usual weighted
# sums (1e-6 to 1e6) stay in one bin, and keeps every power of two used here a normal number.
_FIRST_EXPONENT = 33


class Term(NamedTuple):
    """weight · values, where the mask allows; what `require_term` asks is taken for granted.

    Attributes
    ----------
    values : float32 or float64 [d], contiguous
    weight : float
    mask : bool [d], contiguous, or None
        The term is 0 where it is False.
    """

    values: Tensor
    weight: float
    mask: Tensor | None = None

    def at(self, at: slice) -> "Term":
        """The term's part in a block."""
        return Term(self.values[at], self.weight, None if self.mask is None else self.mask[at])


class Digits(NamedTuple):
    """The sum in some coordinates: bins int8, high and low int64, and Σ sgn(value) int32 if signs are counted."""

    bins: Tensor
    high: Tensor
    low: Tensor
    signs: Tensor | None

    @classmethod
    def zeros(cls, dim: int, device: Device, signs: bool) -> Self:
        """A sum of no terms."""
        kinds = (torch.int8, torch.int64, torch.int64)
        bins, high, low = (torch.zeros(dim, dtype=kind, device=device) for kind in kinds)
        return cls(bins, high, low, torch.zeros(dim, dtype=torch.int32, device=device) if signs else None)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Digits":
        """The parts, changed alike."""
        bins, high, low = (change(part) for part in self[:3])
        return Digits(bins, high, low, None if self.signs is None else change(self.signs))

    def fold(self, terms: Sequence[Term], *, compile_: bool = False) -> None:
        """Add terms, in place."""
        if compile_:
            compiled.fold(terms, *self)
            return
        for values, weight, mask in terms:
            kept = values if mask is None else torch.where(mask, values, 0)
            if self.signs is not None:
                self.signs.add_(kept.sign().to(torch.int32))
            self._add(kept.to(torch.float64) * weight)

    def value(self, divisor: float, *, compile_: bool = False) -> Tensor:
        """The sum over `divisor`, float64; divided before it could overflow."""
        if compile_:
            result = torch.empty(self.bins.shape, dtype=torch.float64)
            compiled.value(self.bins, self.high, self.low, divisor, result)
            return result
        # Carry first: then low is in [0, 2^44), and only one rounding is left where high is small.
        carry = self.low >> DIGIT_BITS
        high, low = (self.high + carry).double(), (self.low - (carry << DIGIT_BITS)).double()
        digits = (high * _DIGIT + low) / divisor
        exponent = DIGIT_BITS * (self.bins.long() - 1) - (_EXPONENT_BIAS - _FIRST_EXPONENT)
        half = exponent >> 1
        # Two factors, because one power of two may be out of range where the product is not.
        return digits * _power_of_two(half) * _power_of_two(exponent - half)

    def merge(self, other: "Digits") -> None:
        """Add another sum's terms, in place."""
        largest = torch.maximum(self.bins, other.bins)
        self._raise_bins(largest)
        high, low = _in_bin(largest, *other[:3])
        self.high.add_(high)
        self.low.add_(low)
        if self.signs is not None and other.signs is not None:
            self.signs.add_(other.signs)

    def _add(self, terms: Tensor) -> None:
        scaled = terms * _inverse_grid(self.bins)
        # Infinite where a term is far above its coordinate's bin, which is as good.
        if float(scaled.abs().amax()) >= _DIGIT:
            self._raise_bins(torch.maximum(self.bins, _bin_of(terms)))
            scaled = terms * _inverse_grid(self.bins)
        whole = scaled.long()
        self.high.add_(whole)
        self.low.add_(((scaled - whole) * _DIGIT).long())

    def _raise_bins(self, bins: Tensor) -> None:
        high, low = _in_bin(bins, self.bins, self.high, self.low)
        for part, new in ((self.bins, bins), (self.high, high), (self.low, low)):
            part.copy_(new)


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
        Where the state lives: 17 bytes a coordinate, from the first term on.
    signs : bool
        Also count Σ sgn(value) over the terms, for 4 bytes more.
    """

    def __init__(self, dim: int, device: Device = "cpu", *, signs: bool = False) -> None:
        self.dim = require_count(dim, "dim", 1)
        self.count = 0
        self._device, self._signs = torch.device(device), signs
        self._digits: Digits | None = None

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Add weight · values, float32 or float64 [d]; ValueError, and no change, if a term is not finite."""
        require_term(values, weight, self.dim)
        self.fold([Term(values.detach().to(self._device).contiguous(), weight)])

    def fold(self, terms: Sequence[Term]) -> None:
        """Add terms that have been checked and lie on this sum's device; ValueError if they are too many."""
        self._require_room(len(terms))
        if self._digits is None:
            self._digits = Digits.zeros(self.dim, self._device, self._signs)
        digits, compile_ = self._digits, self.compiles(terms)

        def fold(at: slice) -> None:
            digits.each(lambda part: part[at]).fold([term.at(at) for term in terms], compile_=compile_)

        in_blocks(self.dim, fold, self._device, COMPILED_BLOCK if compile_ else BLOCK)
        self.count += len(terms)

    def merge(self, other: "ExactSum") -> None:
        """Add all terms of another sum of the same d, as if each had been added here."""
        if other.dim != self.dim:
            raise ValueError(f"sum to merge: {other.dim} coordinates, expected {self.dim}")
        self._require_room(other.count)
        if other._digits is not None:
            theirs = other._digits.each(lambda part: part.to(self._device))
            if self._digits is None:
                self._digits = Digits.zeros(self.dim, self._device, self._signs)
            self._digits.merge(theirs)
        self.count += other.count

    def value(self, divisor: float = 1.0) -> Tensor:
        """Return the sum over `divisor`, float64 [d]; divided before it could overflow."""
        result = torch.empty(self.dim, dtype=torch.float64, device=self._device)

        def fill(at: slice) -> None:
            result[at] = self.part(at, ()).value(divisor, compile_=self.compiles(()))

        in_blocks(self.dim, fill, self._device, COMPILED_BLOCK if self.compiles(()) else BLOCK)
        return result

    def part(self, at: slice, more: Sequence[Term]) -> Digits:
        """A copy of the digits in a block, with `more` terms that the sum itself does not take in."""
        if self._digits is None:
            copy = Digits.zeros(at.stop - at.start, self._device, self._signs)
        else:
            copy = self._digits.each(lambda part: part[at].clone())
        copy.fold([term.at(at) for term in more], compile_=self.compiles(more))
        return copy

    @property
    def folded(self) -> bool:
        """Whether terms have been folded in."""
        return self._digits is not None

    def compiles(self, terms: Sequence[Term]) -> bool:
        """Whether compiled loops are there for these terms, and worth it."""
        return self._device.type == "cpu" and compiled.pays(self.dim, *(term.values for term in terms))

    def tensors(self) -> dict[str, Tensor]:
        """What `restored` takes, for another process."""
        digits = self._digits or Digits.zeros(self.dim, self._device, self._signs)
        named = {name: part for name, part in digits._asdict().items() if part is not None}
        return named | {"count": torch.tensor([self.count])}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], device: Device = "cpu") -> Self:
        """The sum that `tensors` came from.

        Raises
        ------
        ValueError
            For tensors that are not of one sum.
        """
        kinds = {"bins": torch.int8, "high": torch.int64, "low": torch.int64, "count": torch.int64}
        if "signs" in tensors:
            kinds["signs"] = torch.int32
        bad = [name for name, kind in kinds.items() if name not in tensors or tensors[name].dtype != kind]
        if bad or len({tensors[name].shape for name in kinds if name != "count"}) != 1 or tensors["bins"].ndim != 1:
            raise ValueError(
                f"exact sum: {', '.join(bad) or 'lengths'} not as expected: {', '.join(kinds)} of one length"
            )
        found = cls(len(tensors["bins"]), device, signs="signs" in tensors)
        found.count = require_count(int(tensors["count"]), "count", 0)
        found._require_room(0)
        bound = found.count << DIGIT_BITS
        for name, least, most in (
            ("bins", 0, MAX_BIN), ("high", -bound, bound), ("low", -bound, bound), ("signs", -found.count, found.count),
        ):  # fmt: skip
            if name in tensors:
                low, high = (int(end) for end in torch.aminmax(tensors[name]))
                if low < least or high > most:
                    raise ValueError(f"exact sum: {name} from {low} to {high}, no sum of {found.count} terms has that")
        digits = Digits(tensors["bins"], tensors["high"], tensors["low"], tensors.get("signs"))
        found._digits = digits.each(lambda part: part.to(device, copy=True))
        return found

    def _require_room(self, terms: int) -> None:
        if self.count + terms > MAX_TERMS:
            raise ValueError(f"exact sum: {self.count} + {terms} terms, at most {MAX_TERMS} fit")


def require_term(values: object, weight: float, dim: int, what: str = "values") -> None:
    """Raise ValueError unless weight · values is a finite float [dim], so that it can be added."""
    tensor = require_float(values, what)
    require_shape(tensor, (dim,), what)
    largest = require_finite(tensor, what)
    if not math.isfinite(largest * weight):
        raise RangeError(f"{what}: weight {weight:.6g} times {largest:.6g} overflows float64")


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
