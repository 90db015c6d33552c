"""The benchmarks of serving, of attacks and of the paper's full size, tried out on toy models."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matu.errors import ConfigError
from matu.federation.site import SideBySide, Site
from matu.tasks.paper import EIGHT, PAPER
from matu.training import Weights
from matu.wire import Envelope
from world import ask, tiny_site

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def record_of(script: str, options: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [script, *options.split(), "--out", str(out)])
    importlib.import_module(script).main()
    return json.loads(out.read_text())


def test_table_2_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = f"--tiny --device cpu --threads 1 --rounds 2 --profile {tmp_path / 'profile'} --peak-tflops 0.05"
    found = record_of("full_size", options, tmp_path / "record.json", monkeypatch)
    parts = found["seconds_a_round"]
    assert set(parts) == {
        "training", "unification at sites", "aggregation and unification at the server", "messages"
    }  # fmt: skip
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(found["round_s"]) == pytest.approx(found["rounds"][1], abs=0.02)
    rate = found["images_a_round"] / parts["training"]
    assert found["share_of_peak"] == pytest.approx(rate * found["gflop_a_training_image"] * 1e9 / 0.05e12)
    # 5 tokens of 32 numbers, 2 layers: forward and back through 4 x 32² + 2 x 32 x 64 weights; the rest is LoRA,
    # attention and the patches, which have no way back
    body = 2 * 2 * 5 * 2 * (4 * 32**2 + 2 * 32 * 64)
    assert 1 < found["gflop_a_training_image"] * 1e9 / body < 2
    assert found["hundred_rounds_min"] * 60 > 50 * found["round_s"]
    assert len(found["largest"]) == 5
    assert (tmp_path / "profile" / "trace.json").stat().st_size > 1000


def test_the_made_up_tasks_have_the_sizes_of_the_papers(tmp_path: Path) -> None:
    made_up = importlib.import_module("full_size").made_up_tasks(8, 1)
    assert list(made_up) == list(EIGHT)
    for name, task in made_up.items():
        about = PAPER[name]
        assert (len(task.classes), len(task.train.labels), len(task.test.images)) == (
            about.classes, about.train, about.test
        )  # fmt: skip
        assert set(np.unique(task.train.labels)) == set(range(len(task.classes)))
        some = np.array([0, 5, about.train - 1])
        assert task.train.images[some].shape == (3, 8, 8, 3)
        assert np.array_equal(task.train.images[4:6][1], task.train.images[some][1])


def test_without_a_gpu_full_size_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        record_of("full_size", "", tmp_path / "record.json", monkeypatch)
    assert ended.value.code == 2
    assert "no such GPU" in (said := capsys.readouterr().err)
    assert "--tiny --device cpu" in said


def test_a_compiler_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> Any:
        def fails(*_: object, **__: object) -> Any:
            raise ConfigError("no compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    options = "--tiny --device cpu --threads 1 --rounds 2 --compile reduce-overhead"
    found = record_of("full_size", options, tmp_path / "record.json", monkeypatch)
    assert found["compile"].startswith("torch.compile failed, going on without (ConfigError: no compiler")
    assert found["images_a_round"] > 0


def test_serving_beside_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--backbones vit-toy --image-size 16 --tasks 9 --batch 10 --repeats 1"
    found = record_of("serving", options, tmp_path / "record.json", monkeypatch)
    rows = {row["what"]: row for row in found["rows"]}
    assert len(rows) == 8
    assert rows["switch"]["largest_difference_of_logits"] < 1e-4
    assert min(row["ours"] for row in rows.values()) > 0
    numbers = rows["switch"]["parameters"]
    disk = rows["disk of all tasks"]
    assert disk["ours"] * 1e6 == pytest.approx(4 * numbers + 9 * numbers / 8 + 4 * 9, abs=400)
    assert disk["ratio"] == disk["rival"] / disk["ours"] > 3
    for row in rows.values():
        better = row["ours"] > row["rival"] if row["unit"] == "images/s" else row["ours"] < row["rival"]
        assert (row["ratio"] > 1) == better


def test_adapters_that_differ_are_told_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serving = importlib.import_module("serving")
    monkeypatch.setattr(serving, "fill", lambda *_: None)
    with pytest.raises(AssertionError, match="logits differ"):
        record_of("serving", "--backbones vit-toy --image-size 16 --tasks 9 --batch 9", tmp_path / "r", monkeypatch)


@pytest.mark.parametrize("attack", ["none", "sign_flip", "times_1000", "huge", "samples", "backdoor"])
def test_a_hostile_site_sends_what_its_attack_says(tiny_vit: Path, attack: str) -> None:
    attacks = importlib.import_module("attacks")
    honest, hostile = tiny_site(tiny_vit), tiny_site(tiny_vit, attacks.Hostile)
    hostile.attack, hostile.target = attack, "left"
    own = hostile.tasks
    learnt, sent = (update(site) for site in (honest, hostile))
    moved = learnt["left"].vector
    assert hostile.tasks is own  # for the next round
    if attack == "none":
        assert torch.equal(sent["left"].vector, moved)
    elif attack == "huge":
        assert sent["left"].vector.max() > 1e3 > moved.max()
    elif attack == "backdoor":
        assert not torch.equal(sent["left"].vector, moved)
    else:
        factor = {"sign_flip": -10.0, "times_1000": 1000.0, "samples": -1.0}[attack]
        assert torch.allclose(sent["left"].vector, factor * moved, rtol=1e-3, atol=1e-6 * abs(factor))


def update(site: Site) -> dict[str, Weights]:
    """What a site that is the only one sends, as its server reads it."""
    ((_, reply),) = SideBySide({"north": site}, site.trainer).exchange({"north": ask(site)})
    assert isinstance(reply, bytes)
    header, method = Envelope(reply).header, site.method
    assert (header.samples == (2**32 - 1,) * 2) == (getattr(site, "attack", "") == "samples")
    tensors = Envelope(reply).tensors(method.uplink_parts(header.tasks), method.downlink({}, "north", header.tasks))
    return method.reported(header.tasks, tensors)
