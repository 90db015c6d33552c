"""Sinks: each round once, and nothing that a sink does ends a run. Those marked `sinks` talk to the real libraries."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pages import made_up_run

import matu.report.sinks as sinks_module
from matu.cli import run_command
from matu.config import write_config
from matu.errors import ConfigError
from matu.report import Display
from matu.report.sinks import Sinks, check_sinks, values_of
from matu.roots import Roots
from matu.simulate import simulate
from test_simulate import small

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


class Kept:
    """A sink that keeps what it is told, for all that are opened; it may raise."""

    def __init__(self, raises_at: int = 0) -> None:
        self.told: list[tuple[int, Mapping[str, float]]] = []
        self.keys: list[str] = []
        self.closed, self.tried, self.raises_at = 0, 0, raises_at

    def open(self, folder: Path, key: str) -> "Kept":
        self.keys.append(key)
        return self

    def round(self, number: int, values: Mapping[str, float]) -> None:
        self.tried += 1
        if number == self.raises_at:
            raise ConnectionError("nobody\nthere")
        self.told.append((number, values))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Kept, Kept]]:
    """Two fresh sinks in the places of mlflow, which raises in round 2, and wandb."""

    def make() -> tuple[Kept, Kept]:
        bad, good = Kept(raises_at=2), Kept()
        monkeypatch.setattr(sinks_module, "OPENED", {"mlflow": bad.open, "wandb": good.open})
        return bad, good

    return make


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_numbers_of_a_line_have_names(tmp_path: Path) -> None:
    lines = lines_of(made_up_run(tmp_path / "run"))
    assert values_of(lines[0]) == {
        "loss": 2.0, "seconds": 2.0, "bytes/up": 2000, "bytes/down": 3000, "clients/asked": 2, "clients/left_out": 0
    }  # fmt: skip
    assert values_of(lines[5])["clients/left_out"] == 1
    shown = values_of(lines[1] | {"similarity": 0.5})
    assert shown["accuracy/delivered/task-2"] == lines[1]["accuracy"]["delivered"]["task-2"]
    assert shown["mean_accuracy/server"] == lines[1]["mean_accuracy"]["server"]
    assert shown["similarity"] == 0.5
    assert "loss" not in values_of({**lines[0], "loss": None})


def test_over_a_resume_every_round_is_told_once(tmp_path: Path, fakes: Callable[[], tuple[Kept, Kept]]) -> None:
    lines = lines_of(made_up_run(tmp_path / "run"))
    _, first = fakes()
    sinks = Sinks(("wandb",), tmp_path, pytest.fail)
    for line in lines[:4]:
        sinks(line)  # killed here: round 4 was told, and is done again
    _, second = fakes()
    sinks = Sinks(("wandb", "wandb"), tmp_path, pytest.fail)
    for line in lines[3:]:
        sinks(line)
    sinks.close()
    assert [number for number, _ in first.told] == [1, 2, 3, 4]
    assert [number for number, _ in second.told] == [5, 6]
    assert first.keys == second.keys
    assert (first.closed, second.closed) == (0, 1)


def test_a_sink_that_raises_is_told_about_once(tmp_path: Path, fakes: Callable[[], tuple[Kept, Kept]]) -> None:
    bad, good = fakes()
    said: list[str] = []
    sinks = Sinks(("mlflow", "wandb"), tmp_path, said.append)
    for line in lines_of(made_up_run(tmp_path / "run")):
        sinks(line)
    sinks.close()
    assert said == ["--sinks mlflow: left out from here on (ConnectionError: nobody there)"]
    assert bad.tried == 2
    assert bad.closed == 0
    assert [number for number, _ in good.told] == [1, 2, 3, 4, 5, 6]


def test_a_run_ends_the_same_with_a_broken_sink(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, fakes: Callable[[], tuple[Kept, Kept]]
) -> None:
    roots = Roots(tiny_data, None, tmp_path / "cache")
    _, good = fakes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.hidden").write_text("a folder that holds nothing else is empty")
    said: list[str] = []
    sinks = Sinks(("mlflow", "wandb"), tmp_path / "a", said.append)
    with_sinks = simulate(small(tiny_vit), tmp_path / "a", roots, Display(quiet=True), on_round=sinks)
    without = simulate(small(tiny_vit), tmp_path / "b", roots, Display(quiet=True))
    assert with_sinks["accuracy"] == without["accuracy"]
    assert len(said) == 1
    assert [dict(values) for _, values in good.told] == [values_of(line) for line in lines_of(tmp_path / "a")]


def test_a_sink_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sinks_module.MODULES, "mlflow", "matu.no_such_module")
    assert run_command(["run", "--tasks", "demo:digits", "--out", "out", "--sinks", "mlflow"]) == 2
    assert "--sinks mlflow: not installed (No module named 'matu.no_such_module'); in matu's folder: pip install" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--sinks nowhere: unknown; expected some of tensorboard, mlflow, wandb"):
        check_sinks(["nowhere"])


def test_the_function_of_the_documentation_is_told(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "configs").mkdir()
    tasks = tuple(str(tiny_data / name) for name in ("left", "right"))
    (tmp_path / "configs/demo.toml").write_bytes(write_config(small(tiny_vit, rounds=2, tasks=tasks)))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert told == [["ROUND", "1"], ["ROUND", "2"]]


def tell_all(name: str, folder: Path) -> list[dict[str, Any]]:
    """Six rounds, with a stop after the fourth, which is told twice."""
    lines = lines_of(made_up_run(folder.parent / "run"))
    lines[1]["accuracy"]["delivered"]["odd: (name)?"] = 0.5
    folder.mkdir()
    for some in (lines[:4], lines[3:]):
        sinks = Sinks((name,), folder, pytest.fail)
        for line in some:
            sinks(line)
        sinks.close()
    return lines


@pytest.mark.sinks
def test_tensorboard_has_every_round(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = tell_all("tensorboard", tmp_path / "out")
    found = EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(line["round"], pytest.approx(line["loss"])) for line in lines]
    assert [event.step for event in found.Scalars("accuracy/delivered/task-0")] == [2, 4, 6]


@pytest.mark.sinks
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_mlflow_has_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lines = tell_all("mlflow", tmp_path / "out")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("matu")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == [(line["round"], line["loss"]) for line in lines]
    assert run.data.metrics["accuracy/delivered/odd_ _name__"] == 0.5
    assert run.info.status == "FINISHED"


@pytest.mark.sinks
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_wandb_keeps_every_round_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell_all("wandb", tmp_path / "out")
    kept = b"".join(file.read_bytes() for file in sorted((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")))
    assert kept.count(b"accuracy/delivered/task-0") >= 3
    assert kept.count(b"clients/left_out") >= 6
