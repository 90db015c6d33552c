"""The contact sheet shows what it says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from matu.errors import ConfigError
from matu.tasks.contact_sheet import THUMB, _font, contact_sheet
from matu.tasks.task import BadImage, Split, Task

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250]], np.uint8)


def coloured(name: str = "flags", classes: int = 5, each: int = 3) -> Task:
    """A task whose class c is of COLOURS[c]."""
    labels = np.tile(np.arange(classes), each)
    split = Split(np.broadcast_to(COLOURS[labels % 5][:, None, None], (len(labels), 8, 8, 3)), labels)
    return Task(name, tuple(f"class {c}" for c in range(classes)), split, split, f"demo:{name}", "0" * 64)


def areas(path: Path) -> list[float]:
    """How many thumbnails' worth of each colour a sheet holds."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    return [round(float((pixels == colour).all(-1).sum()) / THUMB**2, 2) for colour in COLOURS]


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All text drawn from now on."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, at: tuple[float, float], words: str, *rest: object, **more: object) -> None:
        texts.append(words)
        draw(self, at, words, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def test_every_class_has_its_examples(tmp_path: Path) -> None:
    contact_sheet([coloured()], tmp_path / "new" / "sheet.png", per_class=3)
    assert areas(tmp_path / "new" / "sheet.png") == [3, 3, 3, 3, 3]


def test_fewer_images_than_asked_for(tmp_path: Path) -> None:
    contact_sheet([coloured(each=2), coloured("other", each=1)], tmp_path / "sheet.png", per_class=4)
    assert areas(tmp_path / "sheet.png") == [3, 3, 3, 3, 3]


def test_many_classes_are_cut_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    contact_sheet([coloured(classes=5, each=400)], tmp_path / "sheet.png", per_class=2, max_classes=3)
    assert areas(tmp_path / "sheet.png") == [2, 2, 2, 0, 0]
    assert "5 classes, the first 3 here  ·  2,000 train  ·  2,000 test" in texts
    assert {"flags", "class 2", "400", "demo:flags", "1 task"} <= set(texts)
    assert "class 3" not in texts


def test_long_names_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    task = coloured(classes=2)
    bad = (BadImage("test", "y/1.png", "no image"),) * 4
    long = Task("flags", ("x" * 300, "y"), task.train, task.test, "hub:" + "o" * 300, "0" * 64, bad)
    contact_sheet([long], tmp_path / "sheet.png")
    assert max(len(text) for text in texts) < 150
    assert any(text.startswith("xxx") and text.endswith("…") for text in texts)
    assert any("4 bad left out" in text for text in texts)


def test_names_beyond_ascii_are_drawn_or_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = written(monkeypatch)
    task = coloured(classes=5)
    names = ("Grüner Tee", "Gru\u0308ner Tee 2", "日本 茶", "Ａ\nZ", "чай \udcff")
    contact_sheet([Task("thé", names, task.train, task.test, "folder:thé", "0" * 64)], tmp_path / "sheet.png")
    drawn = {"thé", "folder:thé", "Grüner Tee", "Grüner Tee 2", r"\u65e5\u672c \u8336", r"A\nZ", r"чай \udcff"}
    assert drawn <= set(texts)
    box = _font(12).getmask("\uffff")  # no character, so the font's sign for a missing one
    for character in set("".join(drawn)) - {" "}:
        assert bytes(_font(12).getmask(character)) != bytes(box), character


@pytest.mark.parametrize("settings", [{"per_class": 0}, {"max_classes": 0}])
def test_counts_below_one(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        contact_sheet([coloured()], tmp_path / "sheet.png", **settings)
    with pytest.raises(ConfigError, match="0 tasks"):
        contact_sheet([], tmp_path / "sheet.png")
