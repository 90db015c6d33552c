"""Textures as masks, computed over the canvas at any angle and period."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matu.tasks.demo.canvas import OVERSAMPLING, SIDE, rotation

Field = NDArray[np.float64]
_AT = np.arange(SIDE * OVERSAMPLING) - SIDE * OVERSAMPLING / 2
_GRID = np.stack(np.meshgrid(_AT, _AT), axis=-1) / OVERSAMPLING


def pattern(kind: str, rng: np.random.Generator, period_px: float) -> Image.Image:
    """Draw a texture's mask over the whole canvas, at a random angle and phase.

    `period_px` is in pixels of the final image. Raises KeyError for an unknown `kind`.
    """
    phase = 0 if kind == "rings" else rng.uniform(0, 1, 2)  # rings stay round the middle
    across, along = np.moveaxis(_GRID @ (rotation(rng.uniform(0, 180)) / period_px) + phase, -1, 0)
    inside = _speckle(across, along, rng) if kind == "speckle" else _KINDS[kind](across, along)
    return Image.fromarray(inside.astype(np.uint8) * 255)


def _speckle(u: Field, v: Field, rng: np.random.Generator) -> NDArray[np.bool_]:
    grains = rng.random((64, 64)) < 0.4
    inside: NDArray[np.bool_] = grains[(u * 2.2).astype(int) % 64, (v * 2.2).astype(int) % 64]
    return inside


def _bricks(u: Field, v: Field) -> NDArray[np.bool_]:
    row = v * 1.4
    return (row % 1 < 0.22) | ((u * 0.7 + 0.5 * np.floor(row)) % 1 < 0.14)


_KINDS: dict[str, Callable[[Field, Field], NDArray[np.bool_]]] = {
    "bricks": _bricks,
    "checks": lambda u, v: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    "dots": lambda u, v: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1,
    "grid": lambda u, v: (u % 1 < 0.26) | (v % 1 < 0.26),
    "rings": lambda u, v: np.hypot(u, v) % 1 < 0.5,
    "stripes": lambda u, v: u % 1 < 0.5,
    "waves": lambda u, v: (u + 1.2 * np.abs(v * 0.6 % 1 - 0.5)) % 1 < 0.5,
}
PATTERNS = tuple(sorted([*_KINDS, "speckle"]))
