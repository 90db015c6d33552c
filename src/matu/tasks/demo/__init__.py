"""The bundled offline suite: eight tasks of 32 px images that our own code renders, and any number beyond.

Families hold related tasks by construction (handwritten and printed digits; letters in two styles), and a
conflicting pair: the two `figures` tasks see the same kind of image and label it by different attributes.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from matu.errors import DataError
from matu.seeds import stream
from matu.tasks.demo.canvas import Scene, backdrops, photograph
from matu.tasks.demo.families import (
    HANDWRITTEN_PER_CLASS,
    SIGNS,
    Painter,
    paint_figure,
    paint_handwriting,
    paint_sign,
    paint_symbol,
)
from matu.tasks.demo.forms import FORMS
from matu.tasks.demo.glyphs import LETTERS, SANS, SERIF
from matu.tasks.demo.landcover import COVERS, paint_landcover
from matu.tasks.demo.patterns import PATTERNS

__all__ = ["DEMO_8", "RENDERER_VERSION", "RenderedTask", "more_tasks", "render_task"]

RENDERER_VERSION = 2
"""Part of a cached rendering's key: raise it whenever a task's pixels change."""

PAPER = (0.6, 0.95)
NIGHT = (0.05, 0.4)
DIGITS = tuple("0123456789")
DEMO_LETTERS = tuple("ABEGHKMRST")


class RenderedTask(NamedTuple):
    """A rendered task: images uint8 [n, 32, 32, 3], labels int64 [n] that index `classes`."""

    name: str
    family: str
    classes: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


class _Recipe(NamedTuple):
    family: str
    classes: tuple[str, ...]
    paint: Painter
    ground: tuple[float, float] = (0.1, 0.9)  # how bright the backdrops are, 0..1
    per_class: tuple[int, int] | None = None  # the most examples of a class that exist, train and test


_DEMO = {
    "digits": _Recipe("digits", DIGITS, paint_handwriting, PAPER, HANDWRITTEN_PER_CLASS),
    "digits_clutter": _Recipe("digits", DIGITS, partial(paint_symbol, faces=(SANS, SERIF), crowd="0123456789"), NIGHT),
    "letters_sans": _Recipe("letters", DEMO_LETTERS, partial(paint_symbol, faces=(SANS,)), NIGHT),
    "letters_serif": _Recipe("letters", DEMO_LETTERS, partial(paint_symbol, faces=(SERIF,)), PAPER),
    "figures_form": _Recipe("figures", tuple(FORMS), partial(paint_figure, label_by="form"), PAPER),
    "figures_pattern": _Recipe("figures", PATTERNS, partial(paint_figure, label_by="pattern"), PAPER),
    "signs": _Recipe("signs", tuple(SIGNS), paint_sign),
    "landcover": _Recipe("landcover", tuple(COVERS), paint_landcover),
}
DEMO_8 = tuple(_DEMO)

# What further tasks are made of: all classes to choose from, and the demo recipes to follow.
_POOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "letters": (tuple(LETTERS), ("letters_sans", "letters_serif")),
    "forms": (tuple(FORMS), ("figures_form",)),
    "patterns": (PATTERNS, ("figures_pattern",)),
    "signs": (tuple(SIGNS), ("signs",)),
    "landcover": (tuple(COVERS), ("landcover",)),
}


def render_task(name: str, *, train: int = 600, test: int = 300, seed: int = 0) -> RenderedTask:
    """Render a demo task, or a further one such as ``letters-17``, the same way every time.

    `train` and `test` count images; classes come as evenly as the counts allow. Handwritten digits run out
    at 1,140 and 600. Raises DataError for an unknown name or a count below one.
    """
    if min(train, test) < 1:
        raise DataError(f"task {name!r}: {train} train and {test} test images asked for, at least 1 of each needed")
    recipe = _recipe(name)
    return RenderedTask(
        name,
        recipe.family,
        recipe.classes,
        *_render(recipe, "train", train, stream(seed, name, "train")),
        *_render(recipe, "test", test, stream(seed, name, "test")),
    )


def more_tasks(count: int) -> tuple[str, ...]:
    """Return `count` names of further tasks, kinds in turn, for tests of scale.

    Each has 6 to 12 of its kind's classes, with images of its own.
    """
    kinds = tuple(_POOLS)
    return tuple(f"{kinds[number % len(kinds)]}-{number}" for number in range(count))


def _recipe(name: str) -> _Recipe:
    if name in _DEMO:
        return _DEMO[name]
    further = re.fullmatch(r"([a-z]+)-(\d+)", name)
    if further is None or further[1] not in _POOLS:
        raise DataError(
            f"unknown task {name!r}: the demo suite has {', '.join(_DEMO)}, "
            f"and further tasks named {', '.join(f'{kind}-<number>' for kind in _POOLS)}"
        )
    classes, models = _POOLS[further[1]]
    rng = stream(0, name, "recipe")
    size = int(rng.integers(6, min(len(classes), 12) + 1))
    chosen = np.sort(rng.choice(len(classes), size, replace=False))
    return _DEMO[models[rng.integers(len(models))]]._replace(classes=tuple(classes[i] for i in chosen))


def _render(
    recipe: _Recipe, split: str, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if recipe.per_class is not None:
        count = min(count, recipe.per_class[split == "test"] * len(recipe.classes))
    order = rng.permutation(count)  # example i is number i // classes of class i % classes
    grounds = backdrops(rng, count, recipe.ground)
    images = np.empty_like(grounds)
    for place, example in enumerate(order.tolist()):
        nth, label = divmod(example, len(recipe.classes))
        scene = Scene(grounds[place], rng, nth if split == "train" else -1 - nth)
        recipe.paint(scene, recipe.classes[label])
        images[place] = scene.finish()
    return photograph(rng, images), order % len(recipe.classes)
