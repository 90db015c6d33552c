"""The command line as a person types it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from matu.cli import run_command
from matu.cli.common import named_after
from matu.config import RunConfig, TasksConfig
from matu.errors import ConfigError, DataError, DivergedError, MatuError, RangeError
from test_simulate import without_times

CONFIG = """
[tasks]
tasks = ["left", "middle", "right"]
image_size = 8
[model]
backbone = "tiny-vit"
rank = 4
[federation]
clients = 4
participation = 0.5
rounds = 3
zeta_c = 1.0
min_samples = 4
[training]
batch_size = 8
learning_rate = 1e-2
[evaluation]
evaluate_every = 2
[machine]
precision = "float32"
threads = 1
"""


@pytest.fixture
def home(place: Path) -> Path:
    (place / "small.toml").write_text(CONFIG)
    return place


def call(*words: str) -> int:
    """The exit code; wrong options end in SystemExit, as argparse does it."""
    try:
        return run_command(list(words))
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("x"), 2), (DataError("x"), 2), (MatuError("x"), 1), (DivergedError("x"), 1), (RangeError("x"), 1)],
)
def test_numbers_out_of_range_are_no_wrong_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("matu.cli.run.run", fail)
    assert run_command(["run"]) == code
    assert capsys.readouterr().err == "matu: x\n"


def test_run_prints_the_table_and_where_things_lie(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", "small.toml", "--out", "out", "--reference", "--rounds", "2") == 0
    shown = capsys.readouterr()
    for word in ("left", "middle", "right", "chance", "individual", "server", "delivered", "artifact", "mean"):
        assert word in shown.out
    assert "run folder: out" in shown.out
    assert re.search(r"round 1/2  3 tasks  loss \d.* images/s  .* left", shown.err)
    for name in ("config.toml", "metrics.jsonl", "result.json", "checkpoint/checkpoint.json", "artifact/artifact.json"):
        assert (home / "out" / name).is_file()


def test_json_is_alone_on_stdout(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", "small.toml", "--out", "out", "--json", "--zeta-t", "0") == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result == json.loads((home / "out/result.json").read_text())
    assert shown.err == ""
    assert result["config"]["federation"]["zeta_t"] == 0
    assert result["accuracy"]["left"]["individual"] is None
    assert result["normalised"] == {"mean_of_ratios": None, "ratio_of_means": None}


def test_without_out_a_folder_is_made_under_runs(home: Path) -> None:
    assert call("run", "--config", "small.toml", "--rounds", "1", "--json") == 0
    (found,) = (home / "runs").iterdir()
    assert found.name.endswith("-left-middle-right")


def test_compare_prints_the_tables_and_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--config", "small.toml", "--rounds", "2", "--learning-rates", "1e-2", "--settings", "many"]
    assert call(*words, "--methods", "individual,matu,matu rule=off", "--jobs", "1") == 0
    shown = capsys.readouterr()
    for word in ("| MaTU ", "| MaTU (rule=off) ", "| Individual ", "Average", "Difference to MaTU"):
        assert word in shown.out
    assert "3 to run, 1 at a time" in shown.err
    results = home / "comparisons/small/results.json"
    assert call(*words, "--methods", "fedavg", "--json", "--jobs", "1") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads(results.read_text())
    assert json.loads(shown.out)["methods"] == ["individual", "matu", "matu rule=off", "fedavg"]
    assert shown.err == ""


def test_methods_and_bits_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods") == call("bits") == 0
    shown = capsys.readouterr().out
    assert "mat_fl           an adapter per client and task" in shown
    assert "options: grouping=hard, clusters=3" in shown
    assert "20.43" in shown


def test_tasks_lists_and_draws(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tasks", "left", "right", "--image-size", "8", "--sheet", "sheet.png") == 0
    shown = capsys.readouterr().out
    assert "left" in shown
    assert "middle" not in shown
    assert "contact sheet: sheet.png" in shown
    with Image.open(home / "sheet.png") as image:
        assert image.width > 100
    assert call("tasks", "right", "--image-size", "8", "--json") == 0
    (right,) = json.loads(capsys.readouterr().out)
    assert right["classes"] == ["bar-0", "bar-1", "bar-2", "bar-3"]
    assert right["train_class_counts"] == [20] * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--config", "small.toml", "--roundz", "3"], "--roundz"),
        (["run", "--config", "small.toml", "--rounds", "three"], "three"),
        (["run", "--config", "small.toml", "--rule", "mean"], "mean"),
        (["run", "--config", "small.toml", "--participation", "2"], "participation 2.0: expected more than 0"),
        (["run", "--config", "nowhere.toml"], "nowhere.toml: no such configuration file"),
        (["run", "--config", "small.toml", "--config", "b.toml"], "--config: given 2 times (small.toml, b.toml)"),
        (["run", "--config", "small.toml", "--tasks", "nowhere"], "nowhere"),
        (["run", "--config", "small.toml", "--image-size", "9"], "4 px patches"),
        (["run", "--config", "small.toml", "--backbone", "nonsense", "--tasks", "nowhere"], "no such bundled model"),
        (
            ["compare", "--config", "small.toml", "--backbone", "nonsense", "--tasks", "nowhere"],
            "no such bundled model",
        ),
        (["run", "--config", "small.toml", "--device", "cuda:77"], "no such GPU"),
        (["run", "--config", "small.toml", "--data-root", "/nowhere"], "--data-root: /nowhere is no folder"),
        (["run", "--config", "small.toml", "--out", "."], "not empty"),
        (["run", "--config", "small.toml", "--out", "small.toml/run"], "cannot be made"),
        (["run", "--resume", "nowhere"], "holds no run"),
        (["run", "--resume", "nowhere", "--config", "small.toml"], "give only --resume"),
        (["run", "--config", "small.toml", "--method", "fedsgd"], "method 'fedsgd': unknown; expected one of fedavg"),
        (
            ["run", "--config", "small.toml", "--method", "matu_plus evidence=false top_k=2 step=1"],
            "of a single run: --method matu_plus --options evidence=false step=1 --top-k 2",
        ),
        (
            ["run", "--config", "small.toml", "--method", "matu_plus", "--trim", "0.2", "--tasks", "nowhere"],
            "trim 0.2: refused with method matu_plus",
        ),
        (["run", "--config", "small.toml", "--method", "fedprox", "--options", "nu=1"], "FedProx takes mu=0.01"),
        (["run", "./left", "./right"], "expected options; tasks are named by --tasks ./left ./right"),
        (["compare", "--config", "small.toml", "--methods", "matu,fedsgd"], "method 'fedsgd': unknown"),
        (["compare", "--config", "small.toml", "--method", "fedavg"], "expected --methods"),
        (["compare", "--config", "small.toml", "--learning_rate=0.5"], "expected --learning-rates"),
        (["compare", "--config", "small.toml", "--settings", "few"], "settings few: expected some of single, many"),
        (["compare", "--config", "small.toml", "--seeds", "a"], "--seeds 'a': expected numbers by comma"),
        (["compare", "--config", "small.toml", "--tasks", "left", "nowhere"], "nowhere"),
        (["compare", "--config", "small.toml", "--out", "."], "no comparison"),
        (["methods", "fedavg"], "takes no options"),
        (["tasks", "nowhere"], "nowhere"),
        (["fly"], "unknown command 'fly'; expected one of run, simulate, compare, "),
        (["reprot"], "unknown command 'reprot'; did you mean report?"),
        (["--hlep"], "--hlep: a command comes first, then its options; matu --help lists"),
        ([], ""),
    ],
)
def test_wrong_input_is_told_in_a_line_and_exits_with_2(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert call(*words) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (("demo:signs",), "demo-signs"),
        (("./flowers", "./beetles", "./birds", "./bees"), "flowers-beetles-birds-bees"),
        (("a", "b", "c", "d", "e"), "a-b-c-and-2-more"),
    ],
)
def test_a_folder_is_named_after_all_tasks(tasks: tuple[str, ...], name: str) -> None:
    assert named_after(RunConfig(tasks=TasksConfig(tasks))) == name


def test_help_and_version(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    assert "matu run" in capsys.readouterr().out
    assert call("--version") == 0
    assert re.fullmatch(r"matu \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert call("run", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--zeta-t", "--zeta-c", "--participation", "--rounds", "--reference", "--resume", "--rule"):
        assert option in shown


def test_booleans_go_both_ways(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "small.toml").write_text(CONFIG.replace("evaluate_every = 2", "reference = true"))
    for flag, there in (("--reference", True), ("--no-reference", False)):
        assert call("run", "--config", "small.toml", "--rounds", "1", "--json", flag, "--out", flag[2:]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["mean_accuracy"]["individual"] is not None) == there


def test_folders_by_path_are_kept_whole_and_results_name_none(
    home: Path, tiny_data: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MATU_DATA")
    monkeypatch.chdir(tiny_data)
    words = ("--config", str(home / "small.toml"), "--tasks", "./left", "./right", "--backbone", str(tiny_vit))
    assert call("run", *words, "--rounds", "1", "--json", "--out", str(home / "out")) == 0
    said = capsys.readouterr().out
    assert str(tiny_data) not in said
    assert str(tiny_vit.parent) not in said
    (home / "links").mkdir()
    for name in ("left", "right"):
        (home / "links" / f"my-{name}").symlink_to(tiny_data / name)
    monkeypatch.chdir(home)
    linked = ("--tasks", "links/my-left", "./links/my-right", "--backbone", str(tiny_vit))
    assert call("run", *words[:2], *linked, "--rounds", "1", "--json", "--out", "linked") == 0
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == {"my-left", "my-right"}, "a link keeps its name"
    assert f'"{home}/links/my-left"' in (home / "linked/config.toml").read_text()
    assert call("run", "--config", "out/config.toml", "--json", "--out", "again") == 0
    assert without_times(json.loads(capsys.readouterr().out)) == without_times(json.loads(said))


def test_two_processes_do_not_go_on_with_one_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(home, "--config", "small.toml", "--rounds", "500", "--out", "cut")
    wait_for_round(home / "cut", 1, process)
    assert call("run", "--resume", "cut") == 2
    assert "another process is at work on this run" in capsys.readouterr().err
    process.kill()
    process.communicate()


def test_resume_takes_no_other_settings(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", "small.toml", "--out", "out", "--json") == 0
    (home / "out/result.json").unlink()
    capsys.readouterr()
    assert call("run", "--resume", "out", "--rounds", "9") == 2
    assert "rounds 3 -> 9" in capsys.readouterr().err
    assert call("run", "--resume", "out", "--json") == 0


def start(home: Path, *words: str, command: str = "run") -> subprocess.Popen[bytes]:
    """`matu run` in a process of its own, with a cache of its own: what it says, it has worked out itself."""
    line = [sys.executable, "-m", "matu", command, *words, "--json"]
    environment = os.environ | {"MATU_CACHE": str(home / "own-cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_round(out: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.005)
    raise AssertionError(f"round {number} was not reached: {process.communicate()}")


def kill_and_resume(home: Path, moments: int, rounds: int) -> None:
    """Kill -9 at random moments, the last of them after the rounds; compare with a run that nobody disturbed."""
    draw = random.Random(moments)
    settings = ("--config", "small.toml", "--rounds", str(rounds), "--reference")
    assert call("run", *settings, "--out", "whole", "--json") == 0
    process = start(home, *settings, "--out", "cut")
    for moment in range(1, moments + 1):
        wait_for_round(home / "cut", rounds if moment == moments else moment * rounds // (moments + 1), process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
        with open(home / "cut" / "metrics.jsonl", "ab") as file:
            file.write(b'{"round": 1, "cli')  # the torn line that a dying machine may leave
        process = start(home, "--resume", "cut")
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    whole, cut = (json.loads((home / name / "result.json").read_text()) for name in ("whole", "cut"))
    assert without_times(cut) == without_times(whole)
    assert json.loads(said) == cut
    for name in ("artifact/artifact.safetensors", "artifact/artifact.json", "config.toml"):
        assert (home / "cut" / name).read_bytes() == (home / "whole" / name).read_bytes()

    def lines(name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found]

    assert lines("cut") == lines("whole")


def test_kill_9_and_resume(home: Path) -> None:
    kill_and_resume(home, moments=2, rounds=45)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kill_9_at_ten_random_moments(home: Path) -> None:
    kill_and_resume(home, moments=10, rounds=200)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_ctrl_c_says_how_to_go_on(home: Path, jobs: str) -> None:
    process = start(home, "--config", "small.toml", "--rounds", "500", "--out", "cut", "--jobs", jobs)
    wait_for_round(home / "cut", 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: matu run --resume cut" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert (home / "cut" / "checkpoint" / "checkpoint.json").is_file()


def test_a_comparison_that_is_stopped_takes_its_workers_along_and_goes_on(home: Path) -> None:
    words = ["--config", "small.toml", "--methods", "fedavg,matu", "--settings", "many", "--learning-rates", "1e-2"]
    words += ["--rounds", "80", "--out", "cut"]
    for sign, code, rounds in ((signal.SIGKILL, -signal.SIGKILL, 3), (signal.SIGINT, 130, 12)):
        process = start(home, *words, "--jobs", "2", command="compare")
        deadline = time.monotonic() + 120
        while sum(p.read_bytes().count(b"\n") >= rounds for p in (home / "cut").rglob("metrics.jsonl")) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)  # the workers hold its pipes: this ends when they have
        assert process.returncode == code
        assert len(list((home / "cut").rglob("checkpoint.json"))) == 2
        assert not list((home / "cut/cells").rglob("result.json"))
    assert "the same command goes on" in errors.decode()
    assert call("compare", *words, "--jobs", "1", "--json") == 0
    assert call("compare", *words[:-1], "whole", "--jobs", "1", "--json") == 0
    cut, whole = (json.loads((home / name / "results.json").read_text())["cells"] for name in ("cut", "whole"))
    assert [c["accuracy"] for c in cut] == [c["accuracy"] for c in whole]


@pytest.mark.skipif(os.name != "posix", reason="needs file size limits")
def test_a_full_disk_is_told_and_the_run_goes_on_later(home: Path) -> None:
    assert call("tasks", "left", "middle", "right", "--image-size", "8", "--json") == 0  # fills the cache
    limited = "ulimit -f 12; trap '' XFSZ; exec " + " ".join(
        [sys.executable, "-m", "matu", "run", "--config", "small.toml", "--out", "cut", "--json"]
    )
    process = subprocess.run(["bash", "-c", limited], cwd=home, capture_output=True, timeout=120)
    assert process.returncode == 1, process.stderr
    assert b"no room" in process.stderr
    assert b"Traceback" not in process.stderr
    assert call("run", "--resume", "cut", "--json") == 0
