"""Links of the Markdown files lead somewhere, the mathematics names functions that say so, the citation is whole."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

from commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page}: {target}"
        assert there.is_relative_to(ROOT), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}#{anchor}"


def test_every_page_is_in_the_site() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("**/*.md")}
    assert set(re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", settings, re.MULTILINE)) == {
        page for page in pages if not page.endswith("/table.md")
    }


def test_links_that_leave_the_pages_are_paths_in_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from site_links import site_markdown

    page = ROOT / "docs/results/README.md"
    shown, pictures = site_markdown(
        "[a](../../README.md), [`benchmarks/records/`](../../benchmarks/records), [b](demo/result.json), [c](real8),\n"
        "[d](../wire.md#layout), [e](https://example.org/x), [f](nowhere.md), "
        "![g](../../benchmarks/records/2026-11-22-scale/scale.png)",
        page, ROOT / "docs",
    )  # fmt: skip
    assert shown.replace("\n", " ").split(", ") == [
        "a (`README.md`)",
        "`benchmarks/records/`",
        "[b](demo/result.json)",
        "c (`docs/results/real8/`)",
        "[d](../wire.md#layout)",
        "[e](https://example.org/x)",
        "[f](nowhere.md)",
        "![g](../benchmarks/records/2026-11-22-scale/scale.png)",
    ]
    assert pictures == {Path("benchmarks/records/2026-11-22-scale/scale.png")}


def test_every_configuration_is_said_to_be_run_or_not() -> None:
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    assert all(f"configs/{config.name}" in page for config in ROOT.glob("configs/*.toml"))


def numbers(text: str) -> set[int]:
    """The equations that a text names: Eq. 2; Eq. 3 and 4; Eq. 6, 7; Eq. 3 to 7; Eq. 5-7."""
    found = set()
    for listed in re.findall(r"Eq\. (\d(?:(?:, | and | to |-)\d)*)", text):
        first, last = int(listed[0]), int(listed[-1])
        found |= set(range(first, last + 1)) if re.search(r"to|-", listed) else {int(n) for n in listed if n.isdigit()}
    return found


MATHEMATICS = (ROOT / "docs/mathematics.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(matu(?:\.\w+)+)`(?: \((Eq\. [^)]+)\))?", MATHEMATICS)


@pytest.mark.parametrize(("name", "equations"), NAMED)
def test_functions_of_the_mathematics_exist_and_name_their_equations(name: str, equations: str) -> None:
    parts = name.split(".")
    at = max(i for i in range(1, len(parts)) if _imported(".".join(parts[:i])))
    thing = sys.modules[".".join(parts[:at])]
    for part in parts[at:]:
        thing = getattr(thing, part)
    assert inspect.isfunction(thing) or inspect.isclass(thing)
    assert thing.__doc__
    assert numbers(equations) <= numbers(inspect.getdoc(thing) or "")


def _imported(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def test_every_equation_of_the_method_has_its_function() -> None:
    ours = MATHEMATICS.partition("## MaTU+")[0]
    printed = [int(n) for n in re.findall(r"\(Eq\. (\d)\)$", ours, re.MULTILINE)]
    computed = set().union(*(numbers(equations) for _, equations in re.findall(r"`(matu[\w.]+)` \((Eq[^)]+)\)", ours)))
    assert printed == sorted(computed) == [2, 3, 4, 5, 6, 7]


def test_the_citation_is_whole() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "type", "version", "license", "authors", "references"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert cited["authors"] == [{"name": "The matu developers"}]
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Tsouvalas", "Ozcelebi", "Meratnia"]
    assert (paper["type"], paper["year"]) == ("article", 2025)
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2502.06376"}]


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\S+)\]", text, re.MULTILINE) == ["0.1.0"]
