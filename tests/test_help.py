"""Help and completion, as a person meets them."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import check_line
from matu.cli import COMMANDS, USAGE, run_command
from matu.cli.common import EXIT_CODES


def printed(*words: str) -> str:
    """What a command prints before it ends."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_command(list(words))
    return out.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_line_an_example_and_the_exit_codes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    usage, _, summary, *lines = printed(command, "--help").splitlines()
    assert usage.startswith(f"usage: matu {command} [-h]")
    assert re.fullmatch(r"[A-Z].{20,}[.:]", summary)
    assert EXIT_CODES in lines
    assert all(len(line) <= 80 for line in (summary, *lines))
    examples = lines[lines.index(next(line for line in lines if line in ("Example:", "Examples:"))) + 1 :]
    shown = [line.strip() for line in examples[: examples.index("")]]
    assert shown
    for line in shown if command != "completion" else []:
        assert line.split()[:2] == ["matu", command]
        check_line(line)


def test_the_list_of_commands_is_whole_and_narrow() -> None:
    assert sorted(re.findall(r"^  matu (\w+) ", USAGE, re.MULTILINE)) == sorted(COMMANDS)
    assert all(len(line) <= 80 for line in USAGE.splitlines())
    assert EXIT_CODES in USAGE
    (example,) = re.findall(r"^Example: (.*)$", USAGE, re.MULTILINE)
    check_line(example)


def test_help_waits_for_no_library() -> None:
    code = (
        "import contextlib, sys\nfrom matu.cli import COMMANDS, run_command\nfor name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n        run_command([name, '--help'])\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


TRY = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$(complete -p matu | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "matu.bash"
    path.write_text(printed("completion", "bash"))
    return path


def test_completions_are_scripts(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert printed("completion", "zsh").startswith("#compdef matu")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("matu ru", ["run"]),
        ("matu re", ["relate", "report"]),
        ("matu run --conf", ["--config"]),
        ("matu predict runs/garden --ta", ["--task"]),
        ("matu run --rule ", ["average", "half_sum", "literal", "off"]),
        ("matu inspect no", [""]),  # nothing: bash's own completion of files is next
    ],
)
def test_bash_completes(script: Path, typed: str, offered: list[str]) -> None:
    command = ["bash", "--norc", "-c", TRY, "bash", script, *typed.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == offered
