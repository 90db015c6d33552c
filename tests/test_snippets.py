"""Every block and command of README and docs: run, or read by what would read it. A block without a rule fails."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from commands import ROOT, check_line, words_of
from matu.bench import read_comparison
from matu.cli import COMMANDS, run_command
from matu.config import read_config
from matu.federation.server_file import read_server
from matu.federation.site_file import read_site

pytestmark = pytest.mark.xdist_group("garden")

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CHECKED_ELSEWHERE = {
    ("docs/artifact.md", "python"): "test_docs.py, beside the accuracy that it should have",
    ("docs/artifact.md", ""): "test_docs.py, all five commands on a run",
    ("docs/methods.md", "python"): "test_docs.py, trained beside FedAvg",
    ("docs/serving.md", "python"): "test_docs.py, beside the artifact's accuracy",
    ("docs/report.md", "python"): "report/test_sinks.py, on a run",
    ("docs/scaling.md", "python"): "benchmarks/test_scale_benchmarks.py",
    ("docs/deploy.md", "python"): "federation/test_own_app.py: the lines of examples/peft-flower/after",
}
NOT_RUN = {
    "tensorboard --logdir runs": "TensorBoard's own command, an extra",
    "source <(matu completion bash)": "test_help.py",
}
DRAWINGS = {("docs/scaling.md", "clients ──►")}
STAND_INS = {"RUN": "runs/garden", "runs/first": "runs/garden", "runs/sign.png": "photo.jpg", "signs": "flowers"}
"""What the pages speak of, and what lies in the test's folder for it."""
QUICK = (
    "inspect",
    "predict",
    "evaluate",
    "export",
    "forget",
    "report",
    "watch",
    "certs",
    "methods",
    "merge",
    "completion",
)
"""Commands that are run. The others train, wait for others, or render the demo: their parser reads their words."""
PRELUDES = {
    "README.md": "import torch\nvectors = torch.randn(2, 8)\nd = 8",
    "docs/paper-data.md": "from pathlib import Path\nfor i in range(10):\n    file = Path(f'raw/leaf/{i}.png')\n"
    "    file.parent.mkdir(parents=True, exist_ok=True)\n    file.touch()",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def found() -> Iterator[Block]:
    for path in PAGES:
        text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(page, text[: block.start()].count("\n") + 1, block[1], block[2])


BLOCKS = list(found())


@pytest.fixture(scope="module")
def yard(garden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages' commands name."""
    home = tmp_path_factory.mktemp("yard")
    shutil.copytree(garden / "runs", home / "runs")
    for name in ("configs", "docs"):
        (home / name).symlink_to(ROOT / name)
    for name in ("birds", "flowers"):
        (home / name).symlink_to(garden / "data" / name)
    (home / "models").symlink_to(garden / "models")
    photo = garden / "data/flowers/test/bar-1/008.png"
    (home / "photos").mkdir()
    shutil.copy(photo, home / "photo.jpg")
    shutil.copy(photo, home / "photos")
    return home


@pytest.fixture
def here(yard: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(yard)
    monkeypatch.setenv("MATU_MODELS", str(yard / "models"))
    monkeypatch.setenv("MATU_CACHE", str(yard / "cache"))
    return yard


def adapters(home: Path) -> None:
    """PEFT adapters as docs/merge.md and the README name them."""
    if not (home / "drawer").exists():
        assert run_command(["export", "runs/garden", "--all", "--to", "drawer"]) == 0
        for source, name in (("birds", "adapters/birds"), ("flowers", "adapters/cars"), ("flowers", "runs/7/adapter")):
            shutil.copytree(home / "drawer" / source, home / name, dirs_exist_ok=True)


def run_line(line: str, home: Path) -> None:
    """Run a quick command with its stand-ins; what it writes goes to a new place."""
    words = [STAND_INS.get(word, word) for word in words_of(line)][1:]
    if words[0] not in QUICK or "--config" in words:
        return
    if words[0] == "merge":
        adapters(home)
    if words[1:2] == ["merged"] and not (home / "merged").exists():  # of another block, which may run elsewhere
        adapters(home)
        assert run_command(["merge", "adapters/birds", "adapters/cars", "--to", "merged"]) == 0
    for option in ("--to", "--out"):
        if option in words:
            shutil.rmtree(home / words[words.index(option) + 1], ignore_errors=True)
    with contextlib.suppress(SystemExit):
        assert run_command(words) == 0, line


def test_exceptions_are_all_needed() -> None:
    there = {(block.page, block.language) for block in BLOCKS}
    assert set(CHECKED_ELSEWHERE) <= there
    text = "\n".join(block.text for block in BLOCKS)
    assert all(line in text for line in (*NOT_RUN, *(drawing for _, drawing in DRAWINGS)))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == ""], ids=str)
def test_commands(block: Block, here: Path) -> None:
    if any(block.page == page and block.text.startswith(text) for page, text in DRAWINGS):
        return
    lines = [line for line in block.text.splitlines() if words_of(line) and line.strip() not in NOT_RUN]
    for line in lines:
        check_line(line)
        if (block.page, "") not in CHECKED_ELSEWHERE and words_of(line)[0].endswith("matu"):
            run_line(line, here)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language != ""], ids=str)
def test_snippets(block: Block, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "block.toml"
    file.write_text(block.text)
    if block.language == "toml" and "[server]" in block.text:
        read_server(file)
    elif block.language == "toml" and block.text.startswith("name ="):
        read_site(file)
    elif block.language == "toml":
        read_comparison(file).check() if "[compare]" in block.text else read_config(file).check()
    elif block.language == "ini":
        (line,) = re.findall(r"^ExecStart=\S*/\.venv/bin/(matu .*)$", block.text, re.MULTILINE)
        check_line(line)
    elif block.language == "python":
        if (block.page, "python") not in CHECKED_ELSEWHERE:
            run_python(block, tmp_path, monkeypatch)
    else:
        assert block.language == "text", f"{block}: no rule for a block of {block.language}"


def run_python(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it in a folder with an empty runs/; what a closing comment shows must be what it prints."""
    monkeypatch.chdir(folder)
    (folder / "runs").mkdir()
    torch.manual_seed(0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(f"{PRELUDES.get(block.page, '')}\n{block.text}", {})
    last = block.text.splitlines()[-1]
    assert not last.startswith("# ") or out.getvalue() == f"{last[2:]}\n"


PLACEHOLDERS = {"N": "3", "S": "0.5"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_the_text(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block.text for block in BLOCKS if (block.page, block.language) == ("docs/methods.md", "python")]
    Path("momentum.py").write_text(code)
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`((?:\.venv/bin/)?(?:matu|make|python|pip install) [^`]+)`", text):
        words = re.sub(r"(--\S+) …", r"\1 X", re.sub(r"\s+", " ", code)).replace("…", "").strip().split(" ")
        line = " ".join(PLACEHOLDERS.get(word, word) for word in words)
        if code.startswith("pip install ") and "matu" not in code:
            continue  # a library by its own name
        if line.endswith(" --config"):
            continue  # the option is meant
        named_alone = words[0].endswith("matu") and (words[1] not in COMMANDS or len(words) == 2)
        if not named_alone:
            check_line(line)
