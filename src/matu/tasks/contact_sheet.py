"""A picture of tasks: names, counts, and examples of every class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from matu.errors import ConfigError
from matu.tasks.task import Task

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
    plural = "s" if len(tasks) > 1 else ""
    pen.text((MARGIN, MARGIN), f"{len(tasks)} task{plural}", INK, ImageFont.load_default(26))
    note = "the number above a row of examples counts the class's training images"
    pen.text((width - MARGIN, MARGIN + 22), note, SOFT, ImageFont.load_default(13), anchor="rs")
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
    title = ImageFont.load_default(20)
    counts = ImageFont.load_default(13)
    name = _shortened(task.name, pen, title, width / 2)
    end = MARGIN + pen.textlength(name, title) + 14
    pen.text((MARGIN, 32), name, INK, title, anchor="ls")
    pen.text((end, 32), _counts(task, shown), SOFT, counts, anchor="ls")
    room = width - MARGIN - end - pen.textlength(_counts(task, shown), counts) - 20
    source = _shortened(task.source, pen, counts, room)
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
    font = ImageFont.load_default(13)
    count = f"{len(members):,}"
    right = left + _cell_width(per_class)
    room = right - left - pen.textlength(count, font) - 10
    pen.text((left, top + 14), _shortened(task.classes[label], pen, font, room), INK, font, anchor="ls")
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


def _shortened(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float
) -> str:
    if pen.textlength(text, font) <= room:
        return text
    while text and pen.textlength(text + "…", font) > room:
        text = text[:-1]
    return text.rstrip() + "…"
