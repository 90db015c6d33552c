"""The live view: every round once, however the file grows, until the run ends."""

import io
import json
import threading
import time
from pathlib import Path

import pytest
from pages import made_up_run
from rich.console import Console

from matu.cli import run_command
from matu.files import is_held, only_one, write_atomic
from matu.report.watch import time_left, watch_run

FAST = 0.02


def rounds_of(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


def write_lines(folder: Path, lines: str) -> None:
    write_atomic(folder / "metrics.jsonl", lines.encode())


class Watched:
    """A folder that is watched in another thread, while this one plays the run."""

    def __init__(self, folder: Path, *, terminal: bool = False) -> None:
        self.folder, self.out = folder, io.StringIO()
        self.finished: bool | None = None
        console = Console(file=self.out, force_terminal=terminal, width=120, highlight=False)
        self._thread = threading.Thread(target=self._watch, args=(console,), daemon=True)
        self._thread.start()

    def _watch(self, console: Console) -> None:
        self.finished = watch_run(self.folder, console, FAST)

    def said(self, words: str) -> None:
        """Wait until something was said."""
        until = time.monotonic() + 20
        while words not in self.out.getvalue():
            assert time.monotonic() < until, self.out.getvalue()
            time.sleep(FAST)

    def ended(self) -> str:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.out.getvalue()


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", rounds=3)
    lines, result = rounds_of(folder), (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()
    (folder / "config.toml").write_text("[federation]\nrounds = 3\n")
    write_lines(folder, "")
    with only_one(folder):
        watched = Watched(folder)
        write_lines(folder, lines[0])
        watched.said("round 1/3")
        write_lines(folder, lines[0] + lines[1] + lines[2][:40])  # a line being written
        watched.said("round 2/3")
        write_lines(folder, "".join(lines))
        watched.said("round 3/3")
        write_atomic(folder / "result.json", result)
        said = watched.ended()
    assert watched.finished
    assert [line.split("  ")[0] for line in said.splitlines()[:3]] == ["round 1/3", "round 2/3", "round 3/3"]
    second, third = said.splitlines()[1:3]
    assert second == "round 2/3  loss 1.000  delivered 40.0 %  server 40.0 %  2.0 kB up, 3.0 kB down  2 answered"
    assert third.endswith("1 answered  1 left out: client-000")
    assert said.splitlines()[3:] == [f"{folder}: finished, delivered 51.0 % in the mean"]


def test_what_a_resumed_run_takes_back_is_said_again(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", rounds=3, finished=False)
    lines = rounds_of(folder)
    with only_one(folder):
        watched = Watched(folder)
        watched.said("round 3/6")
        write_lines(folder, "".join(lines[:2]))
        time.sleep(10 * FAST)
        write_lines(folder, "".join(lines).replace("0.666", "7.777"))
        watched.said("loss 7.778")
    said = watched.ended()
    assert watched.finished is False
    assert [said.count(f"round {number}/6") for number in (1, 2, 3)] == [1, 1, 2]
    assert said.splitlines()[-1] == f"{folder}: not finished, and nothing is at work on it; round 3 of 6"


def test_a_terminal_gets_a_picture(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", finished=False)
    with only_one(folder):
        watched = Watched(folder, terminal=True)
        watched.said("round 6 of 12")
        watched.said("about 12 s left")
    said = watched.ended()
    assert "nothing is at work on it" in said


def test_once_shows_accuracies_changes_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_up_run(tmp_path / "run", finished=False)
    assert run_command(["watch", str(folder), "--once"]) == 0
    said = capsys.readouterr().out
    assert "after round 6" in said
    (row,) = [line for line in said.splitlines() if "task-2" in line]
    assert row.split("│")[1:3] == ["      94.7 ", "  +31.6 "]
    assert "2 answers left out" in said
    assert "round 6, client-001: error: out of memory" in said
    assert "nothing is at work on it" in said
    with only_one(folder):
        assert run_command(["watch", str(folder), "--once"]) == 0
    assert "at work  round 6 of 12  about 12 s left" in capsys.readouterr().out


def test_a_server_waits_with_its_folder_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"federation": {"method": "matu", "rounds": 5}}
    (tmp_path / "flower").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"run": "ab" * 16, "config": "", "settings": settings}))
    with only_one(tmp_path / "flower"):
        (tmp_path / "run.json").rename(tmp_path / "later")
        assert run_command(["watch", str(tmp_path), "--once"]) == 0
        assert "at work  no round done yet" in capsys.readouterr().out
        (tmp_path / "later").rename(tmp_path / "run.json")
        assert run_command(["watch", str(tmp_path), "--once"]) == 0
    assert "matu  at work  no round done yet" in capsys.readouterr().out


def test_the_code_tells_how_a_run_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["watch", str(made_up_run(tmp_path / "done"))]) == 0
    assert run_command(["watch", str(made_up_run(tmp_path / "cut", finished=False))]) == 1
    assert run_command(["watch", str(tmp_path / "none")]) == 2
    assert run_command(["watch", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_what_sites_sent_does_not_reach_the_terminal_s_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up_run(tmp_path / "run", finished=False)
    text = (folder / "metrics.jsonl").read_text()
    text = text.replace("out of memory", "\\u001b]0;owned\\u0007 [red]").replace("task-0", "\\u001b[2J[b]")
    (folder / "metrics.jsonl").write_text(text.replace("client-001", "\\u009b31m"))
    for words in ((), ("--once",)):
        run_command(["watch", str(folder), *words])
    said = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(said)
    assert "[red]" in said
    assert "[2J[b]" in said


def test_a_look_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    looking = threading.Event()

    def look() -> None:
        while not looking.is_set():
            is_held(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with only_one(tmp_path):
                assert is_held(tmp_path)
    finally:
        looking.set()
        thread.join()
    assert not is_held(tmp_path)


def test_time_left_is_judged_by_the_latest_rounds() -> None:
    lines = [{"seconds": 100.0}] * 5 + [{"seconds": 2.0}] * 10
    assert time_left(lines, 25) == 20.0
    assert time_left(lines, None) is None
    assert time_left([], 25) is None
    assert time_left(lines, 3) == 0
