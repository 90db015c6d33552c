"""What every rendered task shares: a posed, antialiased canvas, cluttered backdrops, and a poor camera."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 32
OVERSAMPLING = 3
LUMA = np.array([0.299, 0.587, 0.114])

Points = NDArray[np.float64]
Colour = NDArray[np.float64]


class Pose(NamedTuple):
    """An affine map from an object's own frame, [-1, 1] x [-1, 1] with y down, to canvas pixels."""

    matrix: NDArray[np.float64]
    centre: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        return points @ self.matrix.T + self.centre

    def inner(self, centre: tuple[float, float], half: tuple[float, float]) -> Pose:
        """Return the pose of a part: its centre and half extents given in this frame."""
        return Pose(self.matrix * half, self(np.array(centre)))

    @property
    def unit_px(self) -> float:
        """Canvas pixels a unit of the object's frame takes, averaged over directions."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


def rotation(degrees: float) -> NDArray[np.float64]:
    """The matrix `float [2, 2]` that turns points clockwise on screen (y is down)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


class Scene:
    """One image while it is painted, at `OVERSAMPLING` times its final size.

    `nth` says which example of its class it is: 0, 1, ... in train, -1, -2, ... in test.
    """

    def __init__(self, backdrop: NDArray[np.uint8], rng: np.random.Generator, nth: int) -> None:
        side = SIDE * OVERSAMPLING
        self.rng = rng
        self.nth = nth
        ground = Image.fromarray(backdrop)
        self.ground_luma = float(np.asarray(ground.reduce(SIDE))[0, 0] @ LUMA) / 255
        self.image = ground.resize((side, side), Image.Resampling.BILINEAR)
        self._draw = ImageDraw.Draw(self.image)

    def pose(
        self, half_px: tuple[float, float], turn: float, slant: float = 0.0, squeeze: float = 1.0, shift: float = 3.0
    ) -> Pose:
        """Draw a pose: half extent and largest shift in final pixels, and a turn of at most `turn` degrees."""
        half = self.rng.uniform(*half_px)
        shear = np.array([[squeeze, -slant], [0.0, 1.0]])
        matrix = rotation(self.rng.uniform(-turn, turn)) @ shear * half * OVERSAMPLING
        return Pose(matrix, (SIDE / 2 + self.rng.uniform(-shift, shift, 2)) * OVERSAMPLING)

    def ink(self, contrast: float = 0.4) -> Colour:
        """Draw a colour whose luma differs from the backdrop's by `contrast` if one of a handful does."""
        colours = self.rng.random((8, 3))
        distance = np.abs(colours @ LUMA - self.ground_luma)
        chosen: Colour = colours[np.argmax(np.minimum(distance, contrast))]
        return chosen

    def polygon(self, points: Points, colour: Colour) -> None:
        self._draw.polygon(points.ravel().tolist(), fill=_rgb(colour))

    def stroke(self, points: Points, width_px: float, colour: Colour, thin: float = 1.0) -> None:
        """Draw a polyline with round joints; level parts are `thin` times as wide as upright ones."""
        fill, corners = _rgb(colour), points.tolist()
        for (x0, y0), (x1, y1) in pairwise(corners):
            upright = abs(y1 - y0) / (abs(x1 - x0) + abs(y1 - y0) + 1e-9)
            width = max(1, round(width_px * (thin + (1 - thin) * upright)))
            self._draw.line((x0, y0, x1, y1), fill=fill, width=width)
            if width > 2:
                self._draw.circle((x0, y0), width / 2 - 0.5, fill=fill)
                self._draw.circle((x1, y1), width / 2 - 0.5, fill=fill)

    def disc(self, centre: Points, radius_px: float, colour: Colour) -> None:
        self._draw.circle((float(centre[0]), float(centre[1])), radius_px, fill=_rgb(colour))

    def stencil(self, points: Points) -> Image.Image:
        """Return the mask of a polygon."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=255)
        return mask

    def stain(self, mask: Image.Image, colour: Colour) -> None:
        """Paint one colour through a mask."""
        self.image.paste(_rgb(colour), None, mask)

    def clutter(self, count: int, contrast: float = 0.22) -> None:
        """Scatter strokes and blobs that stand out from the backdrop less than the object will."""
        side = SIDE * OVERSAMPLING
        for _ in range(count):
            delta = self.rng.uniform(-contrast, contrast)
            colour = np.clip(self.ground_luma + delta + self.rng.uniform(-0.15, 0.15, 3), 0, 1)
            points = self.rng.uniform(0, side, (2, 2))
            if self.rng.random() < 0.5:
                self.stroke(points, self.rng.uniform(2, 9), colour)
            else:
                self.disc(points[0], self.rng.uniform(3, 12), colour)

    def finish(self) -> NDArray[np.uint8]:
        """Return the picture at its final size, uint8 [32, 32, 3]."""
        return np.asarray(self.image.reduce(OVERSAMPLING))


def backdrops(rng: np.random.Generator, count: int, luma_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Draw uneven coloured grounds, uint8 [count, 32, 32, 3], of about the given brightness (0..1)."""
    luma = rng.uniform(*luma_range, (count, 1, 1, 1))
    tint = rng.normal(0, 0.12, (count, 1, 1, 3))
    shade = 0.1 * cloud(rng, count, 2) + 0.04 * cloud(rng, count, 8)
    return _bytes(luma + tint - (tint @ LUMA)[..., None] + shade)


def photograph(rng: np.random.Generator, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give images, uint8 [n, 32, 32, 3], a random exposure, white balance, vignette and sensor noise."""
    count = len(images)
    gain = rng.uniform(0.7, 1.15, (count, 1, 1, 1)) * rng.uniform(0.85, 1.15, (count, 1, 1, 3))
    lift = rng.uniform(0, 0.15, (count, 1, 1, 1))
    speed = rng.uniform(0.005, 0.03, (count, 1, 1, 1))
    grain = rng.normal(0, 0.5, images.shape) + rng.normal(0, 1, (*images.shape[:3], 1))
    return _bytes(images / 255 * gain + lift + 0.05 * cloud(rng, count, 2) + speed * grain)


def cloud(rng: np.random.Generator, count: int, cells: int) -> NDArray[np.float64]:
    """Draw smooth colour noise of about unit size, `float [count, 32, 32, 3]`, with `cells` bumps a side."""
    at = np.linspace(0, cells, SIDE)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells + 1)))
    knots = rng.normal(0, 1, (count, 3, cells + 1, cells + 1))
    shared = knots.mean(axis=1, keepdims=True)  # light and shade vary more than hue does
    return np.moveaxis(weights @ (shared * 1.2 + knots * 0.4) @ weights.T, 1, -1)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    r, g, b = colour.tolist()
    return _byte(r), _byte(g), _byte(b)


def _byte(value: float) -> int:
    return min(max(int(value * 255 + 0.5), 0), 255)  # NumPy is slow on three numbers


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
