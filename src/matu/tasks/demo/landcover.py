"""Land cover from above: mosaics of parcels, canopy, water, roads and roofs under any season's colours."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from matu.tasks.demo.canvas import OVERSAMPLING, Colour, Points, Pose, Scene

REACH = 1.5  # a frame of half extent 1 covers the image at any turn when drawn this far


class Season(NamedTuple):
    """The colours of one image; hues wander so far that colour alone says little about the cover."""

    ground: Colour
    plants: Colour
    bright: Colour
    water: Colour


def season(rng: np.random.Generator) -> Season:
    ground = np.array([0.42, 0.42, 0.3]) + rng.uniform(-0.16, 0.16) + rng.normal(0, 0.07, 3)
    away = rng.choice([-1.0, 1.0]) * rng.uniform(0.13, 0.24)
    plants = ground + away + rng.normal(0, 0.05, 3)
    water = ground + rng.choice([-1.0, 1.0]) * rng.uniform(0.13, 0.24) + rng.normal(0, 0.07, 3)
    bright = ground + 0.8 * (1 - ground) * rng.uniform(0.5, 1.0) + rng.normal(0, 0.05, 3)
    return Season(ground, plants, bright, water)


def paint_landcover(scene: Scene, name: str) -> None:
    """Paint one aerial view of the named cover, at any angle."""
    colours = season(scene.rng)
    frame = scene.pose(half_px=(16, 16), turn=180)
    scene.polygon(frame(_box(-2, -2, 2, 2)), colours.ground)
    COVERS[name](scene, frame, colours)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _crops(scene: Scene, frame: Pose, colours: Season) -> None:
    edges = np.cumsum(np.concatenate([[-REACH], scene.rng.uniform(0.5, 0.9, 6)]))
    for left, right in pairwise(edges.tolist()):
        middle = scene.rng.uniform(-0.7, 0.7)
        for top, bottom in ((-REACH, middle), (middle, REACH)):
            _parcel(scene, frame, colours, (left, top, right, bottom))


def _parcel(scene: Scene, frame: Pose, colours: Season, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    mix = scene.rng.uniform(0, 1)
    tone = mix * colours.plants + (1 - mix) * colours.ground + scene.rng.normal(0, 0.06, 3)
    scene.polygon(frame(_box(*box)), tone)
    furrow = tone + scene.rng.choice([-0.09, 0.09])
    if scene.rng.random() < 0.6:
        for x in np.arange(left + 0.1, right, 0.22):
            scene.stroke(frame(np.array([[x, top], [x, bottom]])), 2, furrow)
    scene.stroke(frame(_box(*box)), 2, colours.ground - 0.08)


def _forest(scene: Scene, frame: Pose, colours: Season) -> None:
    for x, y, size, shade in scene.rng.uniform(-1, 1, (110, 4)):
        at = frame(np.array([x, y]) * REACH)
        radius = (1.9 + 0.8 * size) * OVERSAMPLING
        scene.disc(at + 2.5, radius, colours.plants - 0.16)
        scene.disc(at, radius, colours.plants + 0.09 * shade)


def _orchard(scene: Scene, frame: Pose, colours: Season) -> None:
    step = scene.rng.uniform(0.3, 0.44)
    radius = scene.rng.uniform(0.28, 0.38) * step * frame.unit_px
    for x in np.arange(-REACH, REACH, step):
        for y in np.arange(-REACH, REACH, step):
            if scene.rng.random() < 0.94:
                at = frame(np.array([x, y]))
                scene.disc(at + 2, radius, colours.ground - 0.12)
                scene.disc(at, radius, colours.plants)


def _river(scene: Scene, frame: Pose, colours: Season) -> None:
    _meadow(scene, frame, colours)
    x = np.linspace(-REACH, REACH, 24)
    bends = scene.rng.uniform(0.15, 0.4) * np.sin(scene.rng.uniform(2, 4) * x + scene.rng.uniform(0, 6))
    course = frame(np.stack([x, bends + scene.rng.uniform(-0.3, 0.3)], axis=1))
    width = scene.rng.uniform(5, 9) * OVERSAMPLING
    scene.stroke(course, width + 6, colours.plants)
    scene.stroke(course, width, colours.water)


def _shore(scene: Scene, frame: Pose, colours: Season) -> None:
    _meadow(scene, frame, colours)
    x = np.linspace(-REACH, REACH, 24)
    bays = 0.12 * np.sin(scene.rng.uniform(2, 6) * x + scene.rng.uniform(0, 6)) + scene.rng.uniform(-0.3, 0.3)
    line = np.stack([x, bays], axis=1)
    scene.polygon(frame(np.concatenate([line, [[REACH, 2.0], [-REACH, 2.0]]])), colours.water)
    scene.stroke(frame(line), scene.rng.uniform(4, 8), colours.bright)


def _road(scene: Scene, frame: Pose, colours: Season) -> None:
    _meadow(scene, frame, colours)
    asphalt = np.full(3, scene.rng.uniform(0.25, 0.6))
    width = scene.rng.uniform(4, 7) * OVERSAMPLING
    ways = [np.array([[-2.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 0.0], [scene.rng.uniform(-1, 1), 2.0]])]
    for way in ways[: 1 + int(scene.rng.random() < 0.4)][::-1]:
        scene.stroke(frame(way), width + 5, colours.bright)
        scene.stroke(frame(way), width, asphalt)
        scene.stroke(frame(way), 2, colours.bright)


def _meadow(scene: Scene, frame: Pose, colours: Season) -> None:
    for x, y in scene.rng.uniform(-REACH, REACH, (3, 2)):
        scene.disc(frame(np.array([x, y])), scene.rng.uniform(8, 22), colours.ground + scene.rng.normal(0, 0.05, 3))
    for x, y in scene.rng.uniform(-REACH, REACH, (8, 2)):
        scene.disc(frame(np.array([x, y])), scene.rng.uniform(3, 6), colours.plants)


def _homes(scene: Scene, frame: Pose, colours: Season) -> None:
    step = scene.rng.uniform(0.42, 0.5)
    for row, y in enumerate(np.arange(-REACH, REACH, step)):
        if row % 2:
            scene.stroke(frame(np.array([[-2, y + step / 2], [2, y + step / 2]])), 7, np.full(3, 0.5))
        for x in np.arange(-REACH, REACH, step):
            w, h = scene.rng.uniform(0.1, 0.16, 2)
            roof = colours.bright * scene.rng.uniform(0.6, 1.0) + scene.rng.normal(0, 0.06, 3)
            scene.polygon(frame(_box(x - w, y - h, x + w, y + h)) + 3, colours.ground - 0.18)
            scene.polygon(frame(_box(x - w, y - h, x + w, y + h)), roof)


def _industry(scene: Scene, frame: Pose, colours: Season) -> None:
    for x in (-1.0, 0.0, 1.0):
        for y in (-1.0, 0.0, 1.0):
            if scene.rng.random() < 0.25:
                continue
            w, h = scene.rng.uniform(0.26, 0.44, 2)
            box = _box(x - w, y - h, x + w, y + h)
            roof = colours.bright * scene.rng.uniform(0.6, 1.0) + scene.rng.normal(0, 0.04, 3)
            scene.polygon(frame(box) + 4, colours.ground - 0.2)
            scene.polygon(frame(box), roof)
            ridge = np.array([[x - w, y], [x + w, y]])
            scene.stroke(frame(ridge), 2, roof - 0.15)


COVERS = {
    "crops": _crops,
    "forest": _forest,
    "homes": _homes,
    "industry": _industry,
    "orchard": _orchard,
    "river": _river,
    "road": _road,
    "shore": _shore,
}
