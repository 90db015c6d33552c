"""The table of `make bench` says what the records of its benchmarks say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS = {
    "server_round": "2026-11-29-server-round/record.json",
    "local_training": "2026-11-29-local-training/vit-tiny*.json",
    "serving": "2026-11-22-serving/vit-tiny-64px.json",
    "merge": "2026-11-22-merge/record.json",
    "simulation": "2026-11-29-simulation/ten-rounds.json",
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("table")


def test_rows_are_of_the_records(table: Any) -> None:
    assert set(table.PARTS) == set(RECORDS)
    rows = {}
    for script, (_, read) in table.PARTS.items():
        path = next((BENCHMARKS / "records").glob(RECORDS[script]))
        rows[script] = list(read(json.loads(path.read_text())))
        assert all(row.ours > 0 and row.rival > 0 for row in rows[script]), script
    (round_,) = rows["server_round"]
    assert round_.ratio == pytest.approx(round_.rival / round_.ours)
    assert round_.floor < round_.ours < round_.rival, "less is better"
    (training,) = rows["local_training"]
    assert training.ratio == pytest.approx(training.ours / training.rival), "more is better"
    assert training.floor > training.ours > training.rival, "no program trains faster than its products alone"
    assert {row.against for row in rows["simulation"]} >= {"flower on ray, float32"}
    assert next(row for row in rows["merge"] if row.unit == "MB" and "size" in row.what).ratio > 15


def test_a_benchmark_that_fails_is_told(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(table, "__file__", str(tmp_path / "table.py"))
    with pytest.raises(SystemExit, match=r"broken.py --small: exit code 1\nno such thing"):
        table.record_of("broken", ["--small"])


def test_it_prints_one_table_and_writes_it(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = BENCHMARKS / "records" / RECORDS["server_round"]
    monkeypatch.setattr(table, "record_of", lambda script, words: json.loads(path.read_text()))
    monkeypatch.setattr(sys, "argv", ["table.py", "--only", "server_round", "--out", str(tmp_path / "all.json")])
    table.main()
    assert "plain NumPy" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert row["what"].startswith("server: 30 updates")
