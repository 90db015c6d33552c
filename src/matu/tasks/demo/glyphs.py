"""A small stroke font of our own: capitals and digits as polylines, drawn thick, thin, slanted or seriffed."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from matu.tasks.demo.canvas import Colour, Points, Pose, Scene

# A point is two digits, x then y (down), on a grid of 0..8; commas part strokes; "~" rounds a stroke's corners.
STROKES = {
    "A": "08 40 88, 15 75",
    "B": "00 08, ~00 70 74 04, ~04 84 88 08",
    "C": "~82 80 00 08 88 86",
    "D": "00 08, ~00 80 88 08",
    "E": "80 00 08 88, 04 64",
    "F": "80 00 08, 04 64",
    "G": "~82 80 00 08 88 85, 85 45",
    "H": "00 08, 80 88, 04 84",
    "I": "40 48",
    "J": "~70 76 78 08 06",
    "K": "00 08, 80 05, 33 88",
    "L": "00 08 88",
    "M": "08 00 45 80 88",
    "N": "08 00 88 80",
    "O": "~40 00 08 88 80 40",
    "P": "00 08, ~00 80 85 05",
    "Q": "~40 00 08 88 80 40, 55 88",
    "R": "00 08, ~00 80 84 04, 44 88",
    "S": "~81 70 00 04 84 88 18 07",
    "T": "00 80, 40 48",
    "U": "~00 05 08 88 85 80",
    "V": "00 48 80",
    "W": "00 28 42 68 80",
    "X": "00 88, 80 08",
    "Y": "00 44 80, 44 48",
    "Z": "00 80 08 88",
    "0": "~40 00 08 88 80 40",
    "1": "12 40 48",
    "2": "~02 00 80 84 08, 08 88",
    "3": "~01 00 80 84 34, ~34 84 88 08 07",
    "4": "68 60 05 85",
    "5": "80 10 04, ~04 33 83 88 08 07",
    "6": "~80 20 04 06, ~04 08 88 83 03 05",
    "7": "00 80 38",
    "8": "~40 00 04 84 80 40, ~44 04 08 88 84 44",
    "9": "~84 82 80 00 05 85 83, ~83 84 68 18",
    "-": "04 84",
    "!": "40 45, 47 48",
    "<": "84 04, 41 04 47",
    ">": "04 84, 41 84 47",
    "^": "48 40, 14 40 74",
    "~": "~28 23 83, 50 83 56",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Face(NamedTuple):
    """How a typeface draws strokes: ranges are drawn from anew for every image."""

    weight: tuple[float, float] = (0.3, 0.5)  # stroke width over the glyph's half height
    thin: float = 1.0  # width of level strokes over that of upright ones
    serifs: bool = False
    slant: float = 0.15


SANS = Face()
SERIF = Face(weight=(0.34, 0.5), thin=0.5, serifs=True)


def write(scene: Scene, symbol: str, pose: Pose, face: Face, colour: Colour) -> None:
    """Draw one symbol to fill the pose's frame."""
    weight_px = scene.rng.uniform(*face.weight) * pose.unit_px
    for stroke in outlines(symbol):
        scene.stroke(pose(stroke), weight_px, colour, face.thin)
    if face.serifs:
        for serif in serifs(symbol):
            scene.stroke(pose(serif), weight_px * face.thin, colour)


@cache
def outlines(symbol: str) -> tuple[Points, ...]:
    """Return a symbol's strokes, each `float [p, 2]` in the frame [-1, 1] x [-1, 1]."""
    return tuple(_points(stroke) for stroke in STROKES[symbol].split(", "))


@cache
def serifs(symbol: str) -> tuple[Points, ...]:
    """Return a bar across each free end of a straight stroke that touches the top or base line."""
    bars = []
    for stroke in STROKES[symbol].split(", "):
        points = _points(stroke)
        if stroke.startswith("~"):
            continue
        for end, inner in ((points[0], points[1]), (points[-1], points[-2])):
            upright = abs(end[1] - inner[1]) >= abs(end[0] - inner[0])
            across = np.array([0.32, 0.0]) if upright else np.array([0.0, 0.26])
            if abs(end[1]) == 1:
                bars.append(np.stack([end - across, end + across]))
    return tuple(bars)


def _points(stroke: str) -> Points:
    points = np.array([[int(point[0]), int(point[1])] for point in stroke.removeprefix("~").split()]) / 4 - 1
    for _ in range(2 if stroke.startswith("~") else 0):  # Chaikin's corner cutting, ends kept
        near, far = points[:-1], points[1:]
        cut = np.stack([0.75 * near + 0.25 * far, 0.25 * near + 0.75 * far], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points
