"""A picture of tasks: names, counts, and examples of every class."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from matu.errors import ConfigError
from matu.tasks.task import Task
from matu.words import counted

THUMB, GAP, CELL_GAP, COLUMNS, MARGIN = 48, 2, 28, 4, 36  # pixels, but for the columns
CLASS_LINE, TITLE_LINE, TASK_GAP = 20, 34, 30
INK, SOFT, RULE, PAPER = (28, 32, 38), (120, 126, 135), (222, 225, 230), (255, 255, 255)


def contact_sheet(tasks: Sequence[Task], path: Path, *, per_class: int = 6, max_classes: int = 12) -> None:
    """Write a PNG with a block a task: its counts, and `per_class` training images of each class.

    Of a task with more than `max_classes` classes the first are shown, and the sheet says so. The examples
    lie evenly spread over the training split.

    Raises
    ------
    ConfigError : no tasks, or a count below 1
    """
    if not tasks or per_class < 1 or max_classes < 1:
        raise ConfigError(
            f"a contact sheet of {len(tasks)} tasks, {max_classes} classes a task and {per_class} images a "
            "class: each must be 1 or more"
        )
    cell = _cell_width(per_class)
    width = 2 * MARGIN + COLUMNS * cell + (COLUMNS - 1) * CELL_GAP
    blocks = [_block(task, width, per_class, max_classes) for task in tasks]
    heading = MARGIN + TITLE_LINE + TASK_GAP
    sheet = Image.new("RGB", (width, heading + sum(block.height for block in blocks) + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), counted(len(tasks), "task"), INK, _font(24))
    note = "the number above a row of examples counts the class's training images"
    pen.text((width - MARGIN, MARGIN + 22), note, SOFT, _font(12), anchor="rs")
    top = heading
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def _cell_width(per_class: int) -> int:
    # Wide enough for a class's name even where few examples are asked for.
    return max(per_class * (THUMB + GAP) - GAP, 160)


def _block(task: Task, width: int, per_class: int, max_classes: int) -> Image.Image:
    """One task: title, counts, and a grid of classes."""
    shown = min(len(task.classes), max_classes)
    rows = -(-shown // COLUMNS)
    row_height = CLASS_LINE + THUMB + 12
    block = Image.new("RGB", (width, 12 + TITLE_LINE + rows * row_height + TASK_GAP), PAPER)
    pen = ImageDraw.Draw(block)
    pen.line((MARGIN, 0, width - MARGIN, 0), RULE)
    title, counts = _font(18), _font(12)
    name = _shortened(_drawable(task.name), pen, title, width / 2)
    end = MARGIN + pen.textlength(name, title) + 14
    pen.text((MARGIN, 32), name, INK, title, anchor="ls")
    pen.text((end, 32), _counts(task, shown), SOFT, counts, anchor="ls")
    room = width - MARGIN - end - pen.textlength(_counts(task, shown), counts) - 20
    source = _shortened(_drawable(task.source), pen, counts, room)
    pen.text((width - MARGIN, 32), source, SOFT, counts, anchor="rs")
    cell = _cell_width(per_class)
    for label in range(shown):
        row, column = divmod(label, COLUMNS)
        corner = (MARGIN + column * (cell + CELL_GAP), 12 + TITLE_LINE + row * row_height)
        _class_row(block, pen, corner, task, label, per_class)
    return block


def _class_row(
    block: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    task: Task,
    label: int,
    per_class: int,
) -> None:
    """One class: its name, its count, and its examples in a row."""
    left, top = corner
    members = np.flatnonzero(task.train.labels == label)
    font = _font(12)
    count = f"{len(members):,}"
    right = left + _cell_width(per_class)
    room = right - left - pen.textlength(count, font) - 10
    name = _shortened(_drawable(task.classes[label]), pen, font, room)
    pen.text((left, top + 14), name, INK, font, anchor="ls")
    pen.text((right, top + 14), count, SOFT, font, anchor="rs")
    places = np.linspace(0, len(members) - 1, min(per_class, len(members))).round().astype(int)
    for position, index in enumerate(members[places]):
        thumb = _thumb(task.train.images[index])
        block.paste(thumb, (left + position * (THUMB + GAP), top + CLASS_LINE))


def _thumb(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array(pixels)).resize((THUMB, THUMB), Image.Resampling.LANCZOS)


def _counts(task: Task, shown: int) -> str:
    parts = [
        f"{len(task.classes)} classes" + (f", the first {shown} here" if shown < len(task.classes) else ""),
        f"{len(task.train.labels):,} train",
        f"{len(task.test.labels):,} test",
    ]
    if task.skipped:
        parts.append(f"{task.skipped} bad left out")
    return "  ·  ".join(parts)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no letter beyond ASCII; matplotlib ships one with some 5,900 characters.
    return ImageFont.truetype(_font_file(), size)


@cache
def _font_file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _characters() -> frozenset[str]:
    """What the font can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(_font_file()).get_charmap()))


def _drawable(text: str) -> str:
    """The text in characters that the font has: others by their plain form (Ａ: A) or escaped (日: \\u65e5)."""
    # Composed first: file systems may store ü as u and a mark, which would be drawn apart.
    return "".join(map(_drawable_character, unicodedata.normalize("NFC", text)))


def _drawable_character(character: str) -> str:
    for form in (character, unicodedata.normalize("NFKD", character)):
        if form.isprintable() and _characters().issuperset(form):
            return form
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, room: float) -> str:
    if pen.textlength(text, font) <= room:
        return text
    while text and pen.textlength(text + "…", font) > room:
        text = text[:-1]
    return text.rstrip() + "…"
