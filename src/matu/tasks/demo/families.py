"""Painters: how one example of a class is painted, for every family but land cover."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from matu.tasks.demo.canvas import Points, Scene
from matu.tasks.demo.forms import DISC, FORMS, SQUARE, TRIANGLE, regular
from matu.tasks.demo.glyphs import SANS, Face, write
from matu.tasks.demo.patterns import PATTERNS, pattern

Painter = Callable[[Scene, str], None]  # paints one example of the named class

# Of each digit scikit-learn holds at least 174: the first for training, the last for testing.
HANDWRITTEN_PER_CLASS = (114, 60)


def paint_handwriting(scene: Scene, digit: str) -> None:
    """Write a real handwritten digit, another one for every example, in ink on stained paper."""
    pose = scene.pose(half_px=(12, 14), turn=5, squeeze=scene.rng.uniform(1.1, 1.4), shift=1.5)
    to_source = np.linalg.inv(pose.matrix) * 4  # the source's 8 x 8 pixels fill the frame
    affine = np.column_stack([to_source, 4 - to_source @ pose.centre]).ravel().tolist()
    source = Image.fromarray(_handwriting()[int(digit)][scene.nth])
    grey = source.transform(scene.image.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    scene.stain(grey.point(_SHARPEN), scene.ink(0.5))


_SHARPEN = np.clip((np.arange(256) - 105) * 2.5, 0, 255).astype(int).tolist()


@cache
def _handwriting() -> tuple[NDArray[np.uint8], ...]:
    from sklearn.datasets import load_digits  # here: importing it takes seconds, and few runs need it

    bunch = load_digits()
    return tuple((bunch.images[bunch.target == digit] * 15.9).astype(np.uint8) for digit in range(10))


def paint_symbol(scene: Scene, symbol: str, faces: tuple[Face, ...] = (SANS,), crowd: str = "") -> None:
    """Write a symbol over clutter; symbols drawn from `crowd` are cut off by the frame beside it."""
    face = faces[scene.rng.integers(len(faces))]
    slant = scene.rng.uniform(-face.slant, face.slant)
    pose = scene.pose(
        half_px=(9, 12), turn=12, slant=slant, squeeze=scene.rng.uniform(0.65, 0.95), shift=3.5 if crowd else 4.5
    )
    ink = scene.ink()
    scene.clutter(2)
    if crowd:
        for side in (-3.2, 3.2):
            neighbour = crowd[scene.rng.integers(len(crowd))]
            write(scene, neighbour, pose.inner((side, 0.0), (1.0, 1.0)), face, ink)
    write(scene, symbol, pose, face, ink)


def paint_figure(scene: Scene, name: str, label_by: str) -> None:
    """Paint a patterned plane figure, named by its form or by its pattern; the other is drawn at random."""
    other = PATTERNS if label_by == "form" else tuple(FORMS)
    drawn = other[scene.rng.integers(len(other))]
    form, kind = (name, drawn) if label_by == "form" else (drawn, name)
    ink = scene.ink(0.35)
    scene.clutter(2)
    form_mask = scene.stencil(scene.pose(half_px=(10.5, 13.5), turn=15, shift=4)(FORMS[form]))
    scene.stain(form_mask, ink)
    pattern_mask = pattern(kind, scene.rng, scene.rng.uniform(5, 7))
    scene.stain(ImageChops.multiply(form_mask, pattern_mask), ink + 0.5 * (float(ink.mean() < 0.5) - ink))


RED, BLUE, YELLOW = (0.78, 0.1, 0.12), (0.1, 0.25, 0.7), (0.95, 0.75, 0.1)
WHITE, BLACK = (0.93, 0.93, 0.93), (0.08, 0.08, 0.08)


class Sign(NamedTuple):
    """A traffic sign: an outline, the colours of its rim, face and symbols, and where the symbols sit."""

    outline: Points
    rim: tuple[float, float, float]
    face: tuple[float, float, float]
    ink: tuple[float, float, float]
    symbols: str = ""
    half: tuple[float, float] = (0.45, 0.5)
    drop: float = 0.0  # of the symbols below the middle


SIGNS = {
    "ahead only": Sign(DISC, BLUE, BLUE, WHITE, "^", (0.5, 0.6)),
    "bend": Sign(TRIANGLE, RED, WHITE, BLACK, "~", (0.36, 0.36), 0.12),
    "danger": Sign(TRIANGLE, RED, WHITE, BLACK, "!", (0.4, 0.4), 0.1),
    "give way": Sign(-TRIANGLE, RED, WHITE, BLACK),
    "limit 30": Sign(DISC, RED, WHITE, BLACK, "30", (0.22, 0.42)),
    "limit 80": Sign(DISC, RED, WHITE, BLACK, "80", (0.22, 0.42)),
    "no entry": Sign(DISC, RED, RED, WHITE, "-", (0.6, 0.3)),
    "parking": Sign(SQUARE, BLUE, BLUE, WHITE, "P", (0.36, 0.56)),
    "priority": Sign(regular(4), WHITE, YELLOW, BLACK),
    "stop": Sign(regular(8, 22.5), RED, RED, WHITE, "STOP", (0.14, 0.3)),
    "turn left": Sign(DISC, BLUE, BLUE, WHITE, "<", (0.55, 0.55)),
    "turn right": Sign(DISC, BLUE, BLUE, WHITE, ">", (0.55, 0.55)),
}
SIGN_FACE = Face(weight=(0.36, 0.5))


def paint_sign(scene: Scene, name: str) -> None:
    """Paint a weathered traffic sign on its post, in front of clutter."""
    sign = SIGNS[name]
    scene.clutter(7, contrast=0.35)
    pose = scene.pose(half_px=(9, 13), turn=9, squeeze=scene.rng.uniform(0.8, 1.0))
    light = scene.rng.uniform(0.55, 1.1)
    rim, face, ink = (light * np.array(c) + scene.rng.normal(0, 0.06, 3) for c in (sign.rim, sign.face, sign.ink))
    scene.stroke(pose(np.array([[0.0, 0.8], [0.0, 4.0]])), 4.0, np.full(3, scene.rng.uniform(0.3, 0.6)))
    scene.polygon(pose(sign.outline), rim)
    scene.polygon(pose(sign.outline * 0.72), face)
    spread = 2.4 * sign.half[0]
    for place, symbol in enumerate(sign.symbols):
        x = (place - (len(sign.symbols) - 1) / 2) * spread
        write(scene, symbol, pose.inner((x, sign.drop), sign.half), SIGN_FACE, ink)
