"""matu merge on the command line."""

import json
import resource
import signal
from pathlib import Path

import pytest
from adapter_files import draw_adapter, write_adapter

from matu.cli import run_command


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("birds", "cars", "run/adapter")):
        write_adapter(tmp_path / name, draw_adapter(seed))
    return tmp_path


def test_a_table_of_likeness_and_size(adapters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["merge", "birds", "./cars/", "signs=run/adapter", "--to", "out"]) == 0
    told = capsys.readouterr().out
    for words in ("birds", "cars", "signs", "weight cosine", "size: 0.00 MB before", "--rank", "written to out"):
        assert words in told
    assert {path.name for path in (adapters / "out").iterdir()} == {"artifact.json", "unified.safetensors", "README.md"}


def test_folders_with_a_sign_and_links_are_called_as_they_are(
    adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(adapters / "sweep/lr=0.1/signs", draw_adapter(5))
    (adapters / "linked").symlink_to(adapters / "cars")
    words = ["sweep/lr=0.1/signs", "./sweep/lr=0.1/signs/../signs/", "linked", "more=sweep/lr=0.1/signs"]
    assert run_command(["merge", words[0], *words[2:], "--to", "out", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == {"signs", "linked", "more"}
    assert run_command(["merge", *words[:2], "--to", "other"]) == 2
    assert "two adapters are called 'signs'" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "empty", "linked"])
def test_what_comes_out_may_go_into_an_empty_folder(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    empty = adapters / "empty"
    empty.mkdir()
    (adapters / "linked").symlink_to(empty)
    before = empty.stat().st_ino
    (empty / ".matu-killed.part").mkdir()
    (empty / ".matu-killed.part/half").write_bytes(b"of a process that was killed")
    if place == ".":
        monkeypatch.chdir(empty)
    assert run_command(["merge", str(adapters / "birds"), str(adapters / "cars"), "--to", place]) == 0
    assert {path.name for path in empty.iterdir()} == {"artifact.json", "unified.safetensors", "README.md"}
    assert empty.stat().st_ino == before, "it may be a mount, or where somebody's shell is"


def test_a_full_disk_is_no_wrong_input(adapters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(adapters / "large", draw_adapter(7, rank=64, sizes={"q": (300, 300)}), r=64)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        assert run_command(["merge", "large", "--to", "out"]) == 1
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "out: no room for it" in capsys.readouterr().err
    assert not (adapters / "out").exists()


def test_json_is_the_note_and_nothing_else(adapters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["merge", "birds", "cars", "--to", "out", "--method", "ties", "--keep", "0.5", "--rank", "1", "--json"]
    assert run_command(words) == 0
    note = json.loads(capsys.readouterr().out)
    assert note == json.loads((adapters / "out" / "artifact.json").read_text())
    assert (note["method"], note["adapter_config"]["r"]) == ("ties", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["birds"], "--to DIR is missing"),
        (["--to", "out"], "no adapters"),
        (["birds", "run/../birds", "--to", "out"], "two adapters are called 'birds'"),
        (["nowhere", "--to", "out"], "nowhere: no such folder"),
        (["a/b=birds", "--to", "out"], "task name 'b=birds'"),
        (["a b=birds", "--to", "out"], "task name 'a b'"),
        (["birds", "--to", "cars"], "cars: there already"),
        (["birds", "--to", "out", "--assume-shared-start", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_input_is_told(adapters: Path, capsys: pytest.CaptureFixture[str], words, message: str) -> None:
    assert run_command(["merge", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (adapters / "out").exists()
