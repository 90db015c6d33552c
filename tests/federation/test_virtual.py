"""Virtual sites on Ray: the result of one process, through Ctrl-C and a resume."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from matu.cli import run_command
from matu.config import write_config
from matu.federation.flower.virtual import join, part
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from playing import equal
from test_simulate import small, without_times


def test_memory_and_message_come_apart_as_they_were_joined() -> None:
    memory = {"block": torch.arange(3.0), "head/a": torch.zeros(0)}
    assert part(join({}, b"message")) == ({}, b"message")
    kept, message = part(join(memory, b""))
    assert message == b""
    assert equal(kept, memory)


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command(["simulate", "--tasks", "demo:digits"]) == 2
    assert (
        "needs Ray; in matu's folder: pip install --constraint constraints.txt -e '.[ray]'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "individual"], "method 'individual' sends no messages; matu run runs it"),
        (["--jobs", "-1"], "--jobs -1: expected 1 or more"),
        (["--sites", "-3"], "clients -3: expected 1 or more"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["simulate", "--tasks", "demo:digits", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.flower
@pytest.mark.xdist_group("flower")
@pytest.mark.parametrize("method", ["fedper", *(pytest.param(m, marks=pytest.mark.long) for m in ("matu", "mat_fl"))])
def test_thirty_sites_on_ray_end_as_in_one_process(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, method: str
) -> None:
    """Interrupted after its first round and resumed; what sites keep to themselves (FedPer) goes with them."""
    config = small(tiny_vit, method=method, clients=30, participation=0.2, rounds=3, min_samples=2)
    roots = Roots(tiny_data, None, tmp_path / "cache")
    here = simulate(config, tmp_path / "here", roots, Display(quiet=True))
    (tmp_path / "run.toml").write_bytes(write_config(config))
    folder = tmp_path / "there"
    matu = [sys.executable, "-m", "matu", "simulate", "--data-root", str(tiny_data), "--cache", str(roots.cache)]
    first = subprocess.Popen(
        [*matu, "--config", str(tmp_path / "run.toml"), "--sites", "30", "--jobs", "2", "--out", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while first.poll() is None and not (folder / "checkpoint" / "checkpoint.json").is_file():
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130, said
    assert f"go on with: matu simulate --resume {folder}" in said
    assert "round 3/3" not in said
    assert subprocess.run([*matu, "--resume", str(folder), "--json"], check=False, capture_output=True).returncode == 0
    there = json.loads((folder / "result.json").read_text())
    assert without_times(there) == without_times(here)
    for name in ("checkpoint/state-000003.safetensors",):
        assert equal(load_file(tmp_path / "here" / name), load_file(folder / name))
