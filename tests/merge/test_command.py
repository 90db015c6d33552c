"""matu merge on the command line."""

import json
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
        (["a/b=birds", "--to", "out"], "task name 'a/b'"),
        (["birds", "--to", "cars"], "cars: there already"),
        (["birds", "--to", "out", "--assume-shared-start", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_input_is_told(adapters: Path, capsys: pytest.CaptureFixture[str], words, message: str) -> None:
    assert run_command(["merge", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (adapters / "out").exists()
