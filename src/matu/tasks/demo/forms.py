"""Outlines of plane figures, each `float [p, 2]` about the origin, roughly within [-1, 1] x [-1, 1], y down."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from matu.tasks.demo.canvas import Points


def ring(degrees: ArrayLike, radius: ArrayLike = 1.0) -> Points:
    """Return points at clockwise angles from the top."""
    angles = np.radians(degrees)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.reshape(radius, (-1, 1))


def regular(sides: int, turn: float = 0.0) -> Points:
    """Return a regular polygon with a corner `turn` degrees from the top."""
    return ring(np.arange(sides) * 360 / sides + turn)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 40)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 15


def _crescent() -> Points:
    bite = ring(np.linspace(89, -89, 24), 0.85) + np.array([0.0, 0.55])  # meets the disc 122 degrees from its top
    outline: Points = np.concatenate([ring(np.linspace(-122, 122, 30)), bite]) + np.array([0.0, 0.25])
    return outline


def _cross(arm: float = 0.36) -> Points:
    corner = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in (0, 3, 2, 1)])


DISC = regular(40)
TRIANGLE = regular(3) * 1.15
SQUARE = regular(4, turn=45) * 1.2
FORMS = {
    "arrow": np.array([[-1, -0.35], [0, -0.35], [0, -1], [1, 0], [0, 1], [0, 0.35], [-1, 0.35]]),
    "circle": DISC,
    "crescent": _crescent() * 1.15,
    "cross": _cross() * 1.05,
    "heart": _heart(),
    "square": SQUARE,
    "star": ring(np.arange(10) * 36.0, [1.2, 0.5] * 5),
    "triangle": TRIANGLE,
}
