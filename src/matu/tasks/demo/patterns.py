"""Two-colour textures, computed over the canvas at any angle and period."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matu.tasks.demo.canvas import OVERSAMPLING, SIDE, rotation

Field = NDArray[np.float64]
PATTERNS = ("bricks", "checks", "dots", "grid", "rings", "speckle", "stripes", "waves")


def pattern(kind: str, rng: np.random.Generator, period_px: float) -> Field:
    """Draw a texture, `float [96, 96]` in 0..1, at a random angle and phase.

    `period_px` is in pixels of the final image. Raises KeyError for an unknown `kind`.
    """
    side = SIDE * OVERSAMPLING
    grid = (np.arange(side) - side / 2) / (period_px * OVERSAMPLING)
    turned = np.stack(np.meshgrid(grid, grid), axis=-1) @ rotation(rng.uniform(0, 180)) + (
        0 if kind == "rings" else rng.uniform(0, 1, 2)
    )
    if kind == "speckle":
        cells = np.floor(turned * 2.2).astype(int)
        grains = rng.random((64, 64)) < 0.4
        return grains[cells[..., 0] % 64, cells[..., 1] % 64].astype(float)
    return _KINDS[kind](turned[..., 0], turned[..., 1]).astype(float)


_KINDS = {
    "bricks": lambda u, v: (v * 1.4 % 1 < 0.22) | ((u * 0.7 + 0.5 * np.floor(v * 1.4)) % 1 < 0.14),
    "checks": lambda u, v: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    "dots": lambda u, v: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1,
    "grid": lambda u, v: (u % 1 < 0.26) | (v % 1 < 0.26),
    "rings": lambda u, v: np.hypot(u, v) % 1 < 0.5,
    "stripes": lambda u, v: u % 1 < 0.5,
    "waves": lambda u, v: (u + 1.2 * np.abs(v * 0.6 % 1 - 0.5)) % 1 < 0.5,
}
