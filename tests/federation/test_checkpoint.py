import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from matu.errors import ConfigError, DataError
from matu.federation.checkpoint import Progress, Totals, load_checkpoint, save_checkpoint
from matu.files import DiskFullError, append_line, finish_before_interrupt, keep_lines, write_atomic


def progress(number: int) -> Progress:
    memories = {"north": {"head/a": torch.ones(2) * number}, "süd 2": {"block": torch.zeros(1)}}
    totals = Totals(uplink={"heads": number}, training_s=0.5)
    return Progress(number, {"vector/a": torch.arange(5.0) * number}, totals, memories)


def test_what_is_saved_is_loaded_and_older_states_go(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, progress(number), "run")
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert (found.round, found.totals) == (3, progress(3).totals)
    assert torch.equal(found.state["vector/a"], progress(3).state["vector/a"])
    assert {site: list(memory) for site, memory in found.memories.items()} == {"north": ["head/a"], "süd 2": ["block"]}
    assert torch.equal(found.memories["north"]["head/a"], torch.ones(2) * 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "state-000003.safetensors"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere", "run") is None


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_kill_between_any_two_writes_leaves_a_whole_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    save_checkpoint(tmp_path, progress(1), "run")
    replace, calls = os.replace, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == cut:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if cut < 3:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, progress(2), "run")
    else:
        monkeypatch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, progress(2), "run")
    monkeypatch.undo()
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found.round == (1 if cut < 3 else 2)
    save_checkpoint(tmp_path, progress(3), "run")
    assert len(list(tmp_path.glob("state-*"))) == 1


def test_what_a_kill_left_in_a_save_goes_with_the_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), "run")
    for name in (".state-000002.safetensors.77.part", ".tmpLibrary"):
        (tmp_path / name).write_bytes(b"half a ")
    save_checkpoint(tmp_path, progress(2), "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "state-000002.safetensors"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), "run")
    with pytest.raises(ConfigError, match="another configuration"):
        load_checkpoint(tmp_path, "other")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), "run")
    state = tmp_path / "state-000001.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(tmp_path, "run")
    state.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path, "run")
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path, "run")
    (tmp_path / "checkpoint.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="format 1"):
        load_checkpoint(tmp_path, "run")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_the_last_round_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, progress(1), "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"state-000002.*no room for it.*then resume"):
        save_checkpoint(tmp_path, progress(2), "run")
    with pytest.raises(DiskFullError, match="no room for another line"):
        append_line(tmp_path / "metrics.jsonl", "{}")
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*.part"))
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found.round == 1


def test_other_write_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"")


def test_ctrl_c_waits_for_the_end_of_a_save() -> None:
    written: list[str] = []

    def save() -> None:
        with finish_before_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            written.append("whole")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert written == ["whole"]


def lines(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in path.read_text().splitlines()]


def test_lines_that_were_recorded_and_not_saved_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2, 3):
        append_line(path, json.dumps({"round": number}))
    with open(path, "ab") as file:
        file.write(b'{"round": 4, "lo')
    keep_lines(path, 2)
    assert lines(path) == [1, 2]
    append_line(path, json.dumps({"round": 3}))
    assert lines(path) == [1, 2, 3]


def test_a_new_run_starts_with_no_lines(tmp_path: Path) -> None:
    keep_lines(tmp_path / "metrics.jsonl", 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_lines_that_are_missing_stop_the_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, json.dumps({"round": 1}))
    with pytest.raises(DataError, match="line 2 is not round 2"):
        keep_lines(path, 2)
