"""What every function here asks of its input, with errors that say what is wrong and where."""

import math
import operator

import torch
from torch import Tensor

from matu.errors import RangeError

FLOAT_TYPES = (torch.float32, torch.float64)

Device = torch.device | str


def require_float(values: object, what: str) -> Tensor:
    """Return `values` if it is a float32 or float64 tensor, else raise ValueError."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{what}: got {type(values).__name__}, expected a torch.Tensor")
    if values.dtype not in FLOAT_TYPES:
        raise ValueError(f"{what}: got {values.dtype}, expected torch.float32 or torch.float64")
    return values


def require_shape(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise ValueError unless `values` has exactly this shape."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{what}: shape {list(values.shape)}, expected {list(shape)}")


def require_finite(values: Tensor, what: str) -> float:
    """Return the largest magnitude in a non-empty tensor; RangeError that names the first NaN or infinity."""
    # NaN passes through aminmax, so two numbers tell about all entries without a temporary.
    low, high = (float(bound) for bound in torch.aminmax(values.detach()))
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high)
    position = tuple(torch.nonzero(~torch.isfinite(values))[0].tolist())
    raise RangeError(f"{what}: {values[position].item()} at index {list(position)}, expected finite numbers")


def require_matrix(values: object, what: str, rows: str) -> Tensor:
    """Return finite `float [rows, d]` without gradient, rows and d at least 1, else raise ValueError."""
    matrix = require_float(values, what)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{what}: shape {list(matrix.shape)}, expected [{rows}, d] with both at least 1")
    matrix = matrix.detach()
    require_finite(matrix, what)
    return matrix


def require_count(value: object, what: str, least: int) -> int:
    """Return `value` as an int of at least `least`, else raise ValueError; a bool is no count."""
    if not isinstance(value, bool):
        try:
            count = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            if count >= least:
                return count
    raise ValueError(f"{what}: got {value!r}, expected a whole number of at least {least}")


def require_fraction(value: float, what: str) -> float:
    """Return `value` if it lies in [0, 1], else raise ValueError."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{what}: got {value!r}, expected a number from 0 to 1")
    return float(value)


MAX_SAMPLES = 1 << 53
"""Larger counts would not be whole numbers in float64."""


def require_sample_count(samples: object, what: str) -> int:
    """A whole number of samples, from 1 to `MAX_SAMPLES`; ValueError for anything else."""
    count = require_count(samples, what, 1)
    if count > MAX_SAMPLES:
        raise ValueError(f"{what}: {count}, expected at most {MAX_SAMPLES}")
    return count
