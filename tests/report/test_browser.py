"""The report in a real browser, on its own mark: `make test-browser`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Page, browser
from pages import made_up_run

from matu.report.page import write_report

pytestmark = pytest.mark.browser
LOOKS = {"desktop": (DESKTOP, False), "phone": (PHONE, False), "dark": (DESKTOP, True)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The comparison of two runs, and the page of either."""
    home = tmp_path_factory.mktemp("pages")
    save_similar(first := made_up_run(home / "first", tasks=8, clients=10, rounds=20))
    return write_report([first, made_up_run(home / "second", tasks=8, clients=10, rounds=12)], home / "page")


def save_similar(folder: Path) -> None:
    """A checkpoint with a vector a task."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    (folder / "checkpoint").mkdir()
    vectors = {f"server|mean/task-{i}": torch.randn(999, generator=draw) + i % 3 for i in range(8)}
    save_file(vectors, folder / "checkpoint/state.safetensors")
    (folder / "checkpoint/checkpoint.json").write_text(json.dumps({"state": "state.safetensors"}))


def column(page: Page, number: int) -> list[str]:
    """The texts of a column of the first table."""
    found: list[str] = page.run(
        f"[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[{number}].textContent)"
    )
    return found


@pytest.mark.parametrize("look", LOOKS)
def test_it_loads_whole_and_without_a_complaint(page: Page, pages: list[Path], look: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("MATU_SCREENSHOTS", tmp_path))
    for file in pages[:2]:
        page.open(file, *LOOKS[look][:1], dark=LOOKS[look][1])
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        empty = page.run(
            "[...document.querySelectorAll('svg, table')].filter(e => e.checkVisibility())"
            ".filter(e => { const b = e.getBoundingClientRect(); return b.width < 20 || b.height < 8 }).length"
        )
        assert empty == 0
        assert page.troubles == []
        page.picture(shots / f"{file.stem}-{look}.png")
        assert (shots / f"{file.stem}-{look}.png").stat().st_size > 20_000


def test_all_figures_are_there(page: Page, pages: list[Path]) -> None:
    page.open(pages[1])
    count = "document.querySelectorAll('{}').length".format
    assert page.run(count(".panels svg")) == 9
    assert page.run(count(".cell")) == 56
    assert page.run(count(".tree")) == 7
    assert page.run(count(".took")) == 10
    assert page.run(count(".lost")) >= 1
    assert page.run(count(".track span")) >= 6
    page.open(pages[0])
    assert page.run(count(".panels svg")) == 8
    assert page.run(count(".broad svg")) == 2


def test_a_click_sorts_and_another_turns_it(page: Page, pages: list[Path]) -> None:
    page.open(pages[1])
    before = column(page, 5)
    head = "document.querySelectorAll('thead button')[5]"
    page.run(f"{head}.click()")
    assert column(page, 5) == sorted(before, key=float, reverse=True) != before
    assert page.run(f"{head}.parentElement.getAttribute('aria-sort')") == "descending"
    page.run(f"{head}.click()")
    assert column(page, 5) == sorted(before, key=float)
    page.run("document.querySelectorAll('thead button')[0].click()")
    assert column(page, 0) == [f"task-{i}" for i in range(8)]
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_the_keyboard_reaches_and_does_it_all(page: Page, pages: list[Path]) -> None:
    page.open(pages[1])
    seen = []
    for _ in range(60):
        page.press("Tab")
        seen.append(page.run("document.activeElement.textContent.trim().slice(0, 20)"))
        if seen[-1] == "delivered":
            break
    assert seen[0] == "Skip to the content"
    assert "Similarity" in seen
    page.press("Enter")
    assert column(page, 5) == sorted(column(page, 5), key=float, reverse=True)
    page.run("document.querySelector('summary').focus()")
    page.press(" ")
    assert page.run("document.querySelector('details').open")


def test_colours_follow_the_system_and_the_switch(page: Page, pages: list[Path]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.open(pages[1])
    light = page.run(ground)
    page.open(pages[1], dark=True)
    dark = page.run(ground)
    assert light != dark
    page.run("document.getElementById('colours-auto').focus()")
    page.press("ArrowRight")
    assert page.run(ground) == light, "the switch says light"
    page.open(pages[0], dark=True)
    assert page.run(ground) == light, "and it is kept"
    page.run("document.getElementById('colours-auto').click()")
    assert page.run(ground) == dark


def test_a_hostile_page_does_nothing(page: Page, tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", tasks=2)
    for name in ("result.json", "metrics.jsonl"):
        text = (folder / name).read_text()
        evil = json.dumps("</title></style></script><script>document.title='owned'</script><img src=x>")[1:-1]
        (folder / name).write_text(text.replace("task-0", evil).replace("out of memory", evil))
    page.open(write_report([folder], tmp_path / "page")[0])
    assert page.run("document.title") == "run – matu report"
    assert page.run("document.scripts.length") == 1
    assert page.run("document.images.length") == 0
    assert page.troubles == []
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title=1'}))")
    assert page.run("document.title") == "run – matu report", "the policy lets no other script run"


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing(page: Page, pages: list[Path], look: str) -> None:
    axe = Path(os.environ["MATU_AXE"]).read_text(encoding="utf-8")
    for file in pages[:2]:
        page.open(file, *LOOKS[look][:1], dark=LOOKS[look][1])
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        page.run(f"{axe}; 0")
        found: list[dict[str, Any]] = json.loads(page.run("axe.run().then(all => JSON.stringify(all.violations))"))
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []
