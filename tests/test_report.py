"""What a person sees of a result."""

from pathlib import Path
from typing import Any

import pytest

from matu.report import Display, print_result


def result(tasks: int, **changes: Any) -> dict[str, Any]:
    names = [f"task-{i}" for i in range(tasks)]
    half = {"delivered": 0.5, "server": 0.5, "artifact": 0.5, "individual": None}
    return {
        "method": "matu", "rounds": tasks, "failures": tasks, "paper_mbits": 1.624, "images_per_second": None,
        "tasks": {name: {"classes": 2, "chance": 0.5} for name in names},
        "clients": {f"client-{i}": names for i in range(tasks)},
        "accuracy": dict.fromkeys(names, half), "mean_accuracy": half,
        "normalised": {"mean_of_ratios": None, "ratio_of_means": None},
        "worst_client": {"client": "client-0", "tasks": names, "accuracy": 0.715},
        "bytes": {"uplink_per_client_round": 4e5, "downlink_per_client_round": 4e5},
        "seconds": {"total": 1.0, "training": 1.0, "evaluation": 0.0, "aggregation": 0.0, "reference": None},
        **changes,
    }  # fmt: skip


def test_the_footer_says_what_its_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result(2), Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert "worst client: client-0, 71.5 % (delivered, mean of its 2 tasks: task-0, task-1)" in lines
    assert "per client and round: 400 kB up, 400 kB down" in lines
    counted = "uplink as the paper counts it: 1.62 Mbit (32 bits a number, 1 a mask entry, times participation)"
    assert counted in lines
    assert max(map(len, lines)) <= 100


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    shown = result(1)
    for part in ("tasks", "accuracy"):
        shown[part] = {"left [/right] [bold]": shown[part]["task-0"]}
    print_result(shown, Path("out"))
    assert "left [/right] [bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (1, ["matu: 1 task, 1 client, 1 round; test", "mean of its 1 task:", "failures: 1 client round left out"]),
        (2, ["matu: 2 tasks, 2 clients, 2 rounds; test", "mean of its 2 tasks:", "failures: 2 client rounds left out"]),
    ],
)
def test_one_is_singular(capsys: pytest.CaptureFixture[str], tasks: int, said: list[str]) -> None:
    print_result(result(tasks), Path("out"))
    shown = capsys.readouterr().out
    for words in said:
        assert words in shown


def test_a_round_of_one_task(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.start_rounds(0, 2)
    display.round({"round": 1, "tasks": ["one"], "loss": 0.5, "failures": {}}, 2, 10.0)
    assert "round 1/2  1 task  loss 0.500" in capsys.readouterr().err
