"""Whole runs in one process on the small world."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import matu.simulate as simulate_module
from matu.artifact import load_artifact
from matu.config import (
    EvaluationConfig,
    FederationConfig,
    MachineConfig,
    MatuConfig,
    ModelConfig,
    RunConfig,
    TasksConfig,
    TrainingConfig,
    read_config,
)
from matu.errors import ConfigError, DataError
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from matu.tasks import load_tasks

QUIET = Display(quiet=True)


def small(vit: Path, **changes: Any) -> RunConfig:
    config = RunConfig(
        tasks=TasksConfig(tasks=("left", "middle", "right"), image_size=8),
        model=ModelConfig(backbone=str(vit), rank=4, alpha=4.0),
        federation=FederationConfig(clients=4, participation=0.5, rounds=4, zeta_c=1.0, zeta_t=0.5, min_samples=4),
        training=TrainingConfig(batch_size=8, learning_rate=1e-2),
        matu=MatuConfig(),
        evaluation=EvaluationConfig(evaluate_every=2, evaluate_images=10),
        machine=MachineConfig(precision="float32", threads=1),
    )
    for name, value in changes.items():
        section = next(s.name for s in dataclasses.fields(config) if hasattr(getattr(config, s.name), name))
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{name: value})}
        )
    return config


@pytest.fixture
def roots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(data=tiny_data, models=None, cache=tmp_path_factory.getbasetemp() / "cache")


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in result.items() if k not in ("seconds", "images_per_second")}
    kept["individual"] = {t: i and {**i, "seconds": None} for t, i in kept["individual"].items()}
    return kept


def test_a_run_leaves_what_it_promises(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = simulate(small(tiny_vit, reference=True, rounds=12), out, roots, QUIET)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["rounds"] == 12
    assert list(result["accuracy"]) == ["left", "middle", "right"]
    for task, found in result["accuracy"].items():
        assert set(found) == {"delivered", "server", "artifact", "individual"}
        assert found["individual"] > 1.5 * result["tasks"][task]["chance"]
    means = result["mean_accuracy"]
    assert means["delivered"] == pytest.approx(sum(a["delivered"] for a in result["accuracy"].values()) / 3)
    assert means["delivered"] > 0.6, "it learns"
    assert result["normalised"]["ratio_of_means"] == pytest.approx(means["delivered"] / means["individual"])
    assert result["worst_client"]["accuracy"] <= means["delivered"] + 1e-9
    assert result["bytes"]["uplink_total"] == 24 * result["bytes"]["uplink_per_client_round"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 13))
    assert ["accuracy" in line for line in lines] == [False, True] * 5 + [False, False]
    assert sum(line["uplink_bytes"] for line in lines) == result["bytes"]["uplink_total"]
    text = (out / "result.json").read_text()
    assert str(tiny_vit.parent) not in text
    assert str(roots.data) not in text


def test_the_config_left_behind_runs_again_to_the_same_numbers(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    first = simulate(small(tiny_vit, precision="auto", threads=1), tmp_path / "a", roots, QUIET)
    written = read_config(tmp_path / "a" / "config.toml")
    assert written.machine.precision in ("float32", "bfloat16")
    again = simulate(written, tmp_path / "b", roots, QUIET)
    assert without_times(again) == without_times(first)
    assert (tmp_path / "a/artifact/artifact.safetensors").read_bytes() == (
        tmp_path / "b/artifact/artifact.safetensors"
    ).read_bytes()


def test_the_number_of_threads_does_not_depend_on_the_jobs(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matu.training.machine._images_per_second", lambda *_: [1.0, 2.0])
    monkeypatch.setattr("matu.training.machine.cores", lambda: 8)
    threads = set()
    for jobs in (0, 1, 2, 5):
        simulate(small(tiny_vit, threads=0, rounds=1), tmp_path / str(jobs), roots, QUIET, jobs=jobs)
        threads.add(read_config(tmp_path / str(jobs) / "config.toml").machine.threads)
    assert len(threads) == 1


def test_another_seed_is_another_run(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    first = simulate(small(tiny_vit), tmp_path / "a", roots, QUIET)
    second = simulate(small(tiny_vit, seed=1), tmp_path / "b", roots, QUIET)
    assert first["clients"] != second["clients"] or first["accuracy"] != second["accuracy"]


@pytest.mark.parametrize(("method", "form"), [("matu", "unified"), ("matu_plus", "separate")])
def test_the_artifact_on_disk_gives_the_artifact_accuracy(
    tiny_vit: Path, roots: Roots, tmp_path: Path, method: str, form: str
) -> None:
    config = small(tiny_vit, method=method)
    result = simulate(config, tmp_path / "run", roots, QUIET)
    artifact = load_artifact(tmp_path / "run")
    assert artifact.note["form"] == form
    trainer = artifact.trainer(models_root=tiny_vit.parent)
    tasks = load_tasks(config.tasks.tasks, image_size=8, data_root=roots.data, cache_dir=roots.cache)
    assert artifact.tasks == tuple(task.name for task in tasks)
    for task in tasks:
        assert artifact.classes(task.name) == task.classes
        accuracy = result["accuracy"][task.name]
        assert trainer.accuracy(artifact.weights(task.name), task.test) == accuracy["artifact"]
        stated = artifact.note["tasks"][task.name]["accuracy"]
        assert stated == {kind: share for kind, share in accuracy.items() if share is not None}


def test_a_client_with_one_task_is_delivered_the_servers_model(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    result = simulate(small(tiny_vit, zeta_t=0.0), tmp_path / "run", roots, QUIET)
    assert all(len(held) == 1 for held in result["clients"].values())
    for found in result["accuracy"].values():
        assert found["delivered"] == found["server"]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_numbers(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config = small(tiny_vit)
    whole = simulate(config, tmp_path / "whole", roots, QUIET)
    out, save = tmp_path / "cut", simulate_module.save_checkpoint

    def stop(folder: Path, progress: Any, identity: str) -> None:
        if progress.round == stop_at:
            raise StoppedError  # after the round was recorded, before it was saved
        save(folder, progress, identity)

    monkeypatch.setattr("matu.simulate.save_checkpoint", stop)
    with pytest.raises(StoppedError):
        simulate(config, out, roots, QUIET)
    monkeypatch.undo()
    with open(out / "metrics.jsonl", "ab") as file:
        file.write(b'{"round": 9, "torn')
    resumed = simulate(read_config(out / "config.toml"), out, roots, QUIET, resume=True)
    assert without_times(resumed) == without_times(whole)
    rounds = [json.loads(line)["round"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]


def test_a_complete_run_is_not_run_again(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    config, out = small(tiny_vit), tmp_path / "run"
    first = simulate(config, out, roots, QUIET)
    assert simulate(config, out, roots, QUIET, resume=True) == first


def test_a_checkpoint_of_another_config_or_other_data_is_refused(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    config, out = small(tiny_vit), tmp_path / "run"
    simulate(config, out, roots, QUIET)
    (out / "result.json").unlink()
    for other in (small(tiny_vit, seed=1), small(tiny_vit, max_train=30), small(tiny_vit, tasks=("left", "right"))):
        with pytest.raises(ConfigError, match="another configuration"):
            simulate(other, out, roots, QUIET, resume=True)


def test_a_folder_that_is_not_empty_is_left_alone(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        simulate(small(tiny_vit), tmp_path, roots, QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("nowhere",)}, "nowhere"),
        ({"image_size": 10}, "4 px patches"),
        ({"targets": ("qkv",)}, "no layer 'qkv'"),
        ({"backbone": "./nothing"}, "no such bundled model"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"min_samples": 50}, "middle|left|right"),
        ({"rounds": 0}, "rounds 0"),
        ({"task_groups": ("left+elsewhere",)}, "elsewhere"),
        ({"tasks_per_client": 9}, "tasks_per_client"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    tiny_vit: Path, roots: Roots, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        simulate(small(tiny_vit, **changes), tmp_path / "run", roots, QUIET)
    assert not (tmp_path / "run").exists()


def test_bad_images_are_skipped_only_when_asked_and_are_counted(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data/left/train/bar-0/000.png").write_bytes(b"not an image")
    roots = Roots(tmp_path / "data", None, tmp_path / "cache")
    with pytest.raises(DataError, match=r"left.*000\.png"):
        simulate(small(tiny_vit), tmp_path / "a", roots, QUIET)
    result = simulate(small(tiny_vit, skip_bad_images=True), tmp_path / "b", roots, QUIET)
    assert result["tasks"]["left"]["skipped"] == 1
    assert result["tasks"]["left"]["train"] == 59
