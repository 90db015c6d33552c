"""The report: all that a run left is on its page, the page needs nothing else, and nothing in a file can act on it."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Reader, made_up_run
from safetensors.torch import save_file

import matu.report.page as page_module
from matu.cli import run_command
from matu.config import read_config
from matu.errors import ConfigError
from matu.report import Display
from matu.report.charts import ceiling, line_chart, sized, ticks
from matu.report.page import run_report, write_report
from matu.report.similar import similarity_of
from matu.roots import Roots
from matu.simulate import simulate
from test_simulate import small

SECTIONS = ("results", "rounds", "similarity", "clients", "bytes", "time", "failures", "settings", "reproduce")


@pytest.fixture(scope="module")
def run(tiny_vit: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run."""
    home = tmp_path_factory.mktemp("page")
    simulate(
        small(tiny_vit, reference=True), home / "garden", Roots(tiny_data, None, home / "cache"), Display(quiet=True)
    )
    return home / "garden"


def read(pages: list[Path]) -> Reader:
    """The first page, which is well-formed and alone in the world."""
    text = pages[0].read_text(encoding="utf-8")
    assert len(text.encode()) < 3e6
    return check(Reader(text), text, pages[0].parent)


def check(found: Reader, text: str, folder: Path) -> Reader:
    names = [about["id"] for _, about in found.elements if "id" in about]
    assert len(set(names)) == len(names)
    for _, about in found.elements:
        for name, value in about.items():
            if name in ("src", "srcset", "data", "action", "poster") or name.startswith("on"):
                pytest.fail(f"{name}={value}")
            if name in ("aria-labelledby", "for"):
                assert value in names
            if name == "href":
                assert value in [f"#{one}" for one in names] or (folder / str(value)).is_file()
    assert "url(" not in text
    assert "@import" not in text
    (script,) = found.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [about["content"] for about in found.all("meta") if "http-equiv" in about]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return found


def test_the_page_of_a_run_has_all_that_it_left(run: Path, tmp_path: Path) -> None:
    found, result = read(write_report([run], tmp_path)), json.loads((run / "result.json").read_text())
    assert [about["id"] for about in found.all("section")] == list(SECTIONS)
    table = found.tables[0]
    assert table[0] == ["task", "classes", "chance", "individual", "server", "delivered", "artifact", "normalised"]
    for row, (task, shares) in zip(table[1:], result["accuracy"].items(), strict=False):
        about = result["tasks"][task]
        ratio = shares["delivered"] / shares["individual"]
        wanted = [about["chance"], *(shares[kind] for kind in table[0][3:7]), ratio]
        assert row == [task, str(about["classes"]), *(f"{100 * share:.1f}" for share in wanted)]
    assert table[-1][5] == f"{100 * result['mean_accuracy']['delivered']:.1f}"
    panels = [about for about in found.all("svg") if str(about.get("aria-label", "")).startswith("Accuracy of")]
    assert len(panels) == 1 + len(result["tasks"])
    assert all(about.get("aria-label") or about.get("aria-hidden") for about in found.all("svg"))
    assert result["tasks"]["left"]["sha256"] in found.text
    assert f"torch {result['versions']['torch']}" in found.text


def test_the_settings_on_the_page_run_again(run: Path, tmp_path: Path) -> None:
    text = write_report([run], tmp_path)[0].read_text()
    (shown,) = re.findall(r'aria-label="config.toml">(.*?)</pre>', text, re.DOTALL)
    (tmp_path / "config.toml").write_text(shown.replace("&#34;", '"').replace("&#39;", "'"))
    again, first = read_config(tmp_path / "config.toml"), read_config(run / "config.toml")
    assert again.federation == first.federation
    assert again.training == first.training
    assert again.machine == first.machine
    assert again.tasks.tasks == first.tasks.tasks


def test_tasks_in_tables_stand_in_the_settings_by_name(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    names = [source.replace("folder:", "parquet:") for source in result["config"]["tasks"]["tasks"]]
    result["config"]["tasks"]["tasks"] = names
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    text = write_report([tmp_path / "run"], tmp_path / "page")[0].read_text()
    (shown,) = re.findall(r'aria-label="config.toml">(.*?)</pre>', text, re.DOTALL)
    assert "parquet:" not in shown


def test_curves_strip_and_counts_are_those_of_the_lines(tmp_path: Path) -> None:
    text = write_report([made_up_run(tmp_path / "run", rounds=12)], tmp_path / "page")[0].read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    points = re.findall(r"<title>delivered, round (\d+): ([\d.]+) %", text)
    measured = [line for line in lines if "accuracy" in line]
    wanted = [(str(m["round"]), f"{100 * m['mean_accuracy']['delivered']:.1f}") for m in measured]
    assert points[: len(wanted)] == wanted
    assert points[len(wanted)] == ("12", "51.0"), "the end, on all test images"
    answered = sum(path.count("M") for path in re.findall(r'class="took" d="([^"]*)"', text))
    lost = sum(path.count("M") for path in re.findall(r'class="lost" d="([^"]*)"', text))
    assert lost == sum(len(line["failures"]) for line in lines) == 4
    assert answered == sum(len(line["clients"]) for line in lines) - lost
    found = Reader(text)
    (failures,) = [table for table in found.tables if table[0][-1] == "reason"]
    assert failures[1] == ["3", lines[2]["clients"][0], "error: out of memory"]
    (parts,) = [table for table in found.tables if table[0][0] == "direction"]
    assert parts[1] == ["up, from clients", "8.0 kB", "1.0 kB", "9.0 kB", "1.0 kB"]
    assert "the rest 2 s (10 %)" in found.text


def test_a_run_under_way_has_a_page_without_paths(tmp_path: Path) -> None:
    found = read(write_report([made_up_run(tmp_path / "run", finished=False)], tmp_path / "page"))
    assert "not finished: round 6 of 12" in found.text
    assert found.tables[0][0] == ["task", "server", "delivered"]
    assert found.tables[0][1] == ["task-0", "31.6", "31.6"]
    assert "/secret" not in (tmp_path / "page/index.html").read_text()


def test_a_folder_with_settings_alone_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text("[federation]\nrounds = 3\n")
    found = read(write_report([tmp_path / "run"], tmp_path / "page"))
    assert "not finished: round 0 of 3" in found.text


def test_a_server_s_run_has_a_page(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    held = {"task-0": {"train": 9, "test": 3}}
    for key in ("clients", "normalised", "worst_client", "backbone"):
        del result[key]
    result["sites"] = {"north": {"tasks": held, "accuracy": {}, "versions": {}}}
    result["accuracy"] = {task: {"delivered": one["delivered"]} for task, one in result["accuracy"].items()}
    result["seconds"] = {"total": 20.0, "waiting": 15.0, "aggregation": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "checkpoint").mkdir()
    totals = {"total_s": 20.0, "training_s": 15.0, "aggregation_s": 1.0, "evaluation_s": 2.0}
    (folder / "checkpoint/checkpoint.json").write_text(json.dumps({"totals": totals, "state": "none"}))
    found = read(write_report([folder], tmp_path / "page"))
    assert "waiting for sites 15 s (75 %)" in found.text
    assert "the rest 4 s (20 %)" in found.text
    assert found.tables[0][0] == ["task", "classes", "chance", "delivered"]
    assert ["north", "0", "0", "task-0"] in [row for table in found.tables for row in table]


EVIL = "<script>alert(1)</script>"
WORSE = "\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\ud800"


def test_names_in_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "<b>run</b>", tasks=2, clients=2)
    hostile = {
        "task-0": EVIL, "client-001": WORSE, "out of memory": EVIL + WORSE, "vit-mini": WORSE, "0.1.0": EVIL,
        "demo:task-1": WORSE, "vectors": EVIL, '"matu"': json.dumps(WORSE),
    }  # fmt: skip
    for name in ("result.json", "metrics.jsonl"):
        text = (folder / name).read_text()
        for old, new in hostile.items():
            text = text.replace(old, new if old.startswith('"') else json.dumps(new)[1:-1])
        (folder / name).write_text(text)
    other = made_up_run(tmp_path / "other")
    for pages in (write_report([folder], tmp_path / "one"), write_report([folder, other], tmp_path / "two")):
        for file in pages:
            text = file.read_text(encoding="utf-8")
            found = check(Reader(text), text, file.parent)
            assert not found.all("img")
            assert not found.all("b")
            assert "{{ 7 * 7 }}" in found.text or file.name.startswith("02")
            assert (EVIL in found.text) == (not file.name.startswith("02"))


ODD: list[Any] = [None, "x", 7, [1], {"a": {"b": []}}, -1e400, {"task-0": 10**400}]


@pytest.mark.parametrize("odd", ODD, ids=map(str, range(len(ODD))))
def test_a_result_of_any_shape_gives_a_page(tmp_path: Path, odd: Any) -> None:
    folder = made_up_run(tmp_path / "run", tasks=2, clients=2, rounds=2)
    whole = json.loads((folder / "result.json").read_text())
    for key in whole:
        (folder / "result.json").write_text(json.dumps(whole | {key: odd}))
        read(write_report([folder], tmp_path / "page"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("result.json", "{", "result.json: not JSON"),
        ("result.json", "[]", "result.json: list, expected an object"),
        ("result.json", "[" * 10**5, "result.json: not JSON"),
        ("metrics.jsonl", '{"round": 2}\n', "line 1 is not round 1"),
        ("metrics.jsonl", "nonsense\n", "line 1 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_told(
    tmp_path: Path, file: str, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up_run(tmp_path / "run")
    (folder / file).write_text(content)
    assert run_command(["report", str(folder), "--to", str(tmp_path / "page")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_page_of_somebody_else_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<title>my own</title>")
    with pytest.raises(ConfigError, match=r"an index\.html that is no report of matu's"):
        write_report([run], tmp_path / "site")
    write_report([run], tmp_path / "ours")
    write_report([run], tmp_path / "ours")


def test_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (([str(tmp_path / "none")], "no such folder"), ([str(tmp_path)], "holds no run")):
        assert run_command(["report", *words, "--to", str(tmp_path / "page")]) == 2
        assert said in capsys.readouterr().err


def test_the_largest_run_stays_small(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", tasks=30, clients=200, rounds=1000)
    found = read(write_report([folder], tmp_path / "page"))
    assert "The latest rounds are shown." in found.text
    assert "The first 200 are shown" in found.text


def test_runs_side_by_side(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = tmp_path / "compared" / "cells"
    made_up_run(cells / "many-matu-s0-0123456789ab")
    made_up_run(cells / "many-matu-s1-0123456789ab", rounds=8)
    assert run_command(["report", str(run), str(tmp_path / "compared"), "--to", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'page/index.html'} and 3 more, one a run"
    pages = [tmp_path / "page" / "index.html", *sorted((tmp_path / "page").glob("0*.html"))]
    found = read(pages)
    names = [row[0] for row in found.tables[0][1:]]
    assert names == ["garden", "many-matu-s0", "many-matu-s1"]
    linked = [str(about["href"]) for about in found.all("a") if not str(about["href"]).startswith("#")]
    assert linked == [page.name for page in pages[1:]]
    for page in pages[1:]:
        one = check(Reader(page.read_text()), page.read_text(), page.parent)
        assert {"href": "index.html"} in one.all("a")
    (differing,) = [table for table in found.tables if table[0][0] == "setting"]
    assert ["federation.rounds", "4", "6", "8"] in differing
    by_task = found.tables[1]
    assert by_task[0] == ["task", *names]
    assert ["task-1", "–", "51.0", "51.0"] in by_task
    marks = re.findall(r"<title>many-matu-s0: 2.5 kB a client and round, 51.0 %</title>", pages[0].read_text())
    assert len(marks) == 1


def test_names_leave_out_what_all_runs_share_and_are_not_cut(tmp_path: Path) -> None:
    ends = ("matu-s0", "matu_plus-coded_maskstrue-uplink3bit-downlink5bit-uplink_heads4bit-s0")
    for end in ends:
        made_up_run(tmp_path / "cells" / f"many-{end}-0123456789ab")
    text = write_report([tmp_path], tmp_path / "page")[0].read_text()
    names = [row[0] for row in Reader(text).tables[0][1:]]
    assert names == ["matu", "matu_plus-coded_maskstrue-uplink3bit-downlink5bit-uplink_heads4bit"]
    assert 'class="curve s0 d0"' in text
    assert 'class="curve s1 d1"' in text


def test_a_single_evaluation_is_said_and_not_drawn(tmp_path: Path) -> None:
    made_up_run(tmp_path / "a", rounds=1)
    made_up_run(tmp_path / "b", rounds=1)
    index, first, _ = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page")
    assert "Accuracy was measured once, after round 1" in first.read_text()
    assert "Accuracy was measured once a run, at the end" in index.read_text()
    assert "over rounds, a line a run" not in index.read_text()


def test_chance_is_drawn_where_classes_are_known_and_the_grid_reaches_the_top(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    for about in result["tasks"].values():
        del about["chance"]  # as a server's result is
    (folder / "result.json").write_text(json.dumps(result))
    text = write_report([folder], tmp_path / "page")[0].read_text()
    assert text.count('class="level chance"') == 1 + len(result["tasks"])
    chart = line_chart([("a", "a", [(1, 0.1), (2, 0.7)])], last=2, top=0.7)
    assert chart.yticks[-1] == (chart.top, "80")


def save_state(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    save_file(tensors, folder / "checkpoint" / "state.safetensors")
    (folder / "checkpoint/checkpoint.json").write_text(json.dumps({"state": "../../state.safetensors"}))


def test_tasks_that_agree_stand_together(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {letter: torch.randn(4000, generator=draw) for letter in "xy"}
    vectors = {}
    for i in range(6):  # x and y alternate; a tenth of the signs differs within each
        vector = base["xy"[i % 2]].clone()
        vector[i * 400 : (i + 1) * 400] *= -1
        vectors[f"server|mean/{'xy'[i % 2]}{i}"] = vector
    save_state(tmp_path, {**vectors, "server|vector/x0": torch.ones(4000), "server|mean/unseen": torch.zeros(4000)})
    found = similarity_of(tmp_path)
    assert found is not None
    assert "".join(task[0] for task in found.tasks) in ("xxxyyy", "yyyxxx")
    assert len(found.joins) == 5
    at = {task: i for i, task in enumerate(found.tasks)}
    assert found.values[at["x0"], at["x2"]] == pytest.approx(0.8)
    assert found.values[at["x0"], at["y1"]] == pytest.approx(0.5, abs=0.03)


def test_one_adapter_for_all_tasks_has_no_heat_map(tmp_path: Path) -> None:
    save_state(tmp_path / "run", {"server|adapter": torch.ones(9), "server|head/a": torch.ones(2, 2)})
    assert similarity_of(tmp_path / "run") is None
    made_up_run(tmp_path / "whole")
    (tmp_path / "run/checkpoint").rename(tmp_path / "whole/checkpoint")
    text = write_report([tmp_path / "whole"], tmp_path / "page")[0].read_text()
    assert "no checkpoint with a vector a task" in text
    (tmp_path / "whole/checkpoint/state.safetensors").write_bytes(b"nonsense")
    text = write_report([tmp_path / "whole"], tmp_path / "page")[0].read_text()
    assert "the checkpoint cannot be read" in text


def test_the_heat_map_is_drawn(run: Path, tmp_path: Path) -> None:
    text = write_report([run], tmp_path)[0].read_text()
    assert text.count('class="cell"') == 6
    assert text.count('class="tree"') == 2


def test_matu_run_leaves_a_page_and_never_fails_for_it(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "--tasks", "left", "right", "--image-size", "8", "--backbone", str(tiny_vit), "--rank", "4"]
    words += ["--clients", "2", "--rounds", "1", "--min-samples", "2", "--precision", "float32", "--threads", "1"]
    words += ["--zeta-c", "10", "--data-root", str(tiny_data), "--cache", "cache"]
    assert run_command([*words, "--out", "a"]) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "a/report.html").read_text()
    check(Reader(text), text, tmp_path)
    assert run_command([*words, "--out", "b", "--no-report"]) == 0
    assert "report.html" not in capsys.readouterr().out
    assert not (tmp_path / "b/report.html").exists()

    def broken(*_: Any) -> str:
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr(page_module, "run_page", broken)
    assert run_command([*words, "--out", "c"]) == 0
    assert "no report.html (ZeroDivisionError: of the page)" in capsys.readouterr().err
    assert (tmp_path / "c/result.json").is_file()


def test_a_page_in_the_run_folder_is_that_of_the_run(run: Path, tmp_path: Path) -> None:
    assert run_report(run).read_bytes() == write_report([run], tmp_path)[0].read_bytes()
    (run / "report.html").unlink()


@pytest.mark.parametrize(
    ("top", "count", "whole", "found"),
    [
        (20, 4, True, [0, 5, 10, 15, 20]),
        (3, 4, True, [0, 1, 2, 3]),
        (0.9, 4, False, [0, 0.25, 0.5, 0.75]),
        (2.2, 4, False, [0, 1, 2]),
        (0, 4, False, [0]),
    ],
)
def test_ticks_are_round(top: float, count: int, whole: bool, found: list[float]) -> None:
    assert ticks(top, count, whole=whole) == found


def test_charts_keep_to_their_field() -> None:
    curve = [(at, at / 1000) for at in range(1, 1001)]
    chart = line_chart([("a", "a", curve)], last=1000, top=ceiling(y for _, y in curve))
    places = [tuple(map(float, place.split())) for place in re.split("[ML]", chart.lines[0].path)[1:]]
    assert len(places) <= 401
    assert places[-1] == (chart.right, chart.top)
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in places)


def test_sizes_read_well() -> None:
    assert [sized(count) for count in (0, 999, 1000, 9960, 51018, 999_600, 1.2e6, 4.5e11)] == [
        "0 B", "999 B", "1.0 kB", "10 kB", "51 kB", "1.0 MB", "1.2 MB", "450 GB",
    ]  # fmt: skip
