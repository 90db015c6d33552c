"""Whole comparisons on the small world."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import matu.bench.runner as compare_module
from matu.bench import Bench, Comparison, compare
from matu.bench.runner import run_cell
from matu.errors import ConfigError, DataError, MatuError
from matu.federation.site import Site
from matu.methods.fedavg import FedAvg
from matu.roots import Roots
from matu.simulate import simulate
from test_simulate import small


@pytest.fixture
def roots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(data=tiny_data, models=None, cache=tmp_path_factory.getbasetemp() / "cache")


def tiny(vit: Path, **changes: Any) -> Comparison:
    base = small(vit, **{"rounds": 2, "evaluate_every": 1, "evaluate_images": 5} | changes.pop("base_changes", {}))
    fields = {"methods": ("individual", "fedavg", "matu"), "learning_rates": (1e-2,)} | changes
    return Comparison(base, **fields)


def bench(out: Path, roots: Roots, jobs: int = 1, said: list[str] | None = None) -> Bench:
    return Bench(out, roots, jobs, (said if said is not None else []).append)


def test_it_tunes_runs_and_writes_everything(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    comparison = tiny(tiny_vit, learning_rates=(1e-4, 1e-2), tune_rounds=3)
    results = compare(comparison, bench(tmp_path / "out", roots))
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    assert results["tuning"]["setting"] == "many"
    assert set(results["tuning"]["accuracy"]["fedavg"]) == {"0.0001", "0.01"}
    for method, rate in results["tuning"]["chosen"].items():
        found = results["tuning"]["accuracy"][method]
        assert found[repr(rate)] == max(found.values())
    assert {(c["setting"], c["method"]) for c in results["cells"]} == {
        (s, m) for s in ("single", "many") for m in ("individual", "fedavg", "matu")
    }
    for setting in ("single", "many"):
        assert results["summary"][setting]["individual"]["normalised"]["mean_of_ratios"]["mean"] == pytest.approx(1)
    made = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    for name in ("table.md", "table.tex", "compare.toml", "figures/accuracy_over_rounds.png"):
        assert name in made
    assert not list((tmp_path / "out").rglob("checkpoint")), "of no use once a cell is done"
    text = (tmp_path / "out/results.json").read_text() + (tmp_path / "out/table.md").read_text()
    assert str(tmp_path) not in text


def test_finished_cells_are_reused_and_a_folder_grows(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def counting(config: Any, folder: Path, where: Roots, jobs: int) -> None:
        ran.append(folder.name)
        run_cell(config, folder, where, jobs)

    monkeypatch.setattr(compare_module, "run_cell", counting)
    first = compare(tiny(tiny_vit), bench(tmp_path / "out", roots))
    assert len(ran) == 5, "individual has one cell for both settings"
    ran.clear()
    assert compare(tiny(tiny_vit), bench(tmp_path / "out", roots)) == first
    assert ran == []
    grown = compare(tiny(tiny_vit, methods=("ties",), seeds=(1,)), bench(tmp_path / "out", roots))
    assert len(ran) == 2
    assert grown["methods"] == ["individual", "fedavg", "matu", "ties"], "what the folder held stays in its tables"
    assert grown["summary"]["many"]["matu"] == first["summary"]["many"]["matu"]


def test_a_cell_that_was_stopped_goes_on_from_its_checkpoint(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(tiny(tiny_vit), bench(tmp_path / "whole", roots))

    class StoppedError(Exception):
        pass

    import matu.simulate as simulate_module

    save = simulate_module.save_checkpoint

    def stop(folder: Path, progress: Any, identity: str) -> None:
        save(folder, progress, identity)
        raise StoppedError

    monkeypatch.setattr(simulate_module, "save_checkpoint", stop)
    with pytest.raises(MatuError, match="StoppedError"):
        compare(tiny(tiny_vit), bench(tmp_path / "cut", roots))
    assert list((tmp_path / "cut/cells").rglob("traceback.txt")), "an error that nobody foresaw is told in full"
    monkeypatch.undo()
    assert list((tmp_path / "cut/cells").rglob("checkpoint.json"))
    results = compare(tiny(tiny_vit), bench(tmp_path / "cut", roots))
    assert [c["accuracy"] for c in results["cells"]] == [c["accuracy"] for c in whole["cells"]]


def test_side_by_side_in_processes_gives_the_same_numbers(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    one = compare(tiny(tiny_vit, methods=("fedavg", "matu")), bench(tmp_path / "one", roots))
    two = compare(tiny(tiny_vit, methods=("fedavg", "matu")), bench(tmp_path / "two", roots, jobs=2))
    assert [c["accuracy"] for c in one["cells"]] == [c["accuracy"] for c in two["cells"]]


def test_a_cell_that_fails_is_told_and_the_others_are_done(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, folder: Path, where: Roots, jobs: int) -> None:
        if config.federation.method == "fedavg":
            raise DataError("the disk is gone")
        run_cell(config, folder, where, jobs)

    monkeypatch.setattr(compare_module, "run_cell", broken)
    said: list[str] = []
    with pytest.raises(MatuError, match=r"single, fedavg.*the disk is gone.*the same command tries again"):
        compare(tiny(tiny_vit), bench(tmp_path / "out", roots, said=said))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["summary"]["many"]) == {"individual", "matu"}
    assert any("failed: the disk is gone" in line for line in said)


def test_results_of_another_configuration_are_refused_before_work(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    compare(tiny(tiny_vit, methods=("fedavg",)), bench(tmp_path / "out", roots))
    before = (tmp_path / "out/compare.toml").read_bytes()
    other = tiny(tiny_vit, methods=("fedavg",))
    other = dataclasses.replace(other, base=small(tiny_vit, rounds=3))
    with pytest.raises(ConfigError, match=r"results of another configuration \(.*rounds: 2 there, 3 here"):
        compare(other, bench(tmp_path / "out", roots))
    assert (tmp_path / "out/compare.toml").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no comparison"):
        compare(other, bench(tmp_path / "mine", roots))


def test_cells_of_other_data_are_refused(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    compare(tiny(tiny_vit, methods=("fedavg",)), bench(tmp_path / "out", roots))
    for path in (tmp_path / "out/cells").rglob("result.json"):
        result = json.loads(path.read_text())
        result["tasks"]["left"]["sha256"] = "0"
        path.write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="another content of task 'left'"):
        compare(tiny(tiny_vit, methods=("fedavg",)), bench(tmp_path / "out", roots))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("fedsgd",)}, "unknown; expected one of"),
        ({"settings": {"k9": {"tasks_per_client": 9}}}, "k9, "),
        ({"methods": ("matu tasks=left",)}, "takes no lists"),
        ({"base_changes": {"held_out": True}}, "holds images out for tuning by itself"),
        ({"base_changes": {"backbone": "nonsense"}}, "no such bundled model"),
        ({"base_changes": {"device": "cuda:77"}}, "no such GPU"),
        ({"methods": ("fedavg", "fedavg clients=500")}, "fedavg clients=500"),
        ({"settings": {"a": {"seed": 3}}}, "'seed' is shared by all"),
        # 60 training images are enough for one client, and its 54 that are not held out are; not so for many clients
        (
            {"methods": ("individual", "fedavg"), "learning_rates": (1e-3, 1e-2), "base_changes": {"min_samples": 15}},
            "54 training samples",
        ),
    ],
)
def test_what_cannot_work_is_told_before_a_folder_is_made(
    tiny_vit: Path, roots: Roots, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        compare(tiny(tiny_vit, **changes), bench(tmp_path / "out", roots))
    assert not (tmp_path / "out").exists()


def test_a_number_of_jobs_below_zero_is_refused(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs -1"):
        compare(tiny(tiny_vit), bench(tmp_path / "out", roots, jobs=-1))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_grows_keeps_how_it_was_tuned(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    rates = {"learning_rates": (1e-4, 1e-2), "tune_rounds": 2}
    compare(tiny(tiny_vit, methods=("matu",), **rates), bench(tmp_path / "out", roots))
    grown = compare(tiny(tiny_vit, methods=("ties",), only=("single",), **rates), bench(tmp_path / "out", roots))
    assert grown["tuning"]["setting"] == "many"
    assert set(grown["tuning"]["chosen"]) == {"matu", "ties"}
    assert set(grown["summary"]["single"]) == {"matu", "ties"}
    assert set(grown["summary"]["many"]) == {"matu"}
    with pytest.raises(ConfigError, match=r"learning_rates: \[0.0001, 0.01\] there, which \[0.01\] leaves out"):
        compare(tiny(tiny_vit), bench(tmp_path / "out", roots))


def test_a_method_whose_tuning_was_stopped_has_no_rate(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    rates = {"learning_rates": (1e-4, 1e-2), "tune_rounds": 1, "only": ("many",)}
    compare(tiny(tiny_vit, methods=("matu", "ties"), **rates), bench(tmp_path / "out", roots))
    next((tmp_path / "out/tuning").glob("many-ties-*/result.json")).unlink()
    results = compare(tiny(tiny_vit, methods=("matu",), **rates), bench(tmp_path / "out", roots))
    assert set(results["tuning"]["chosen"]) == {"matu"}
    assert set(results["summary"]["many"]) == {"matu"}
    assert "not tuned" in (tmp_path / "out/table.md").read_text()


def test_a_grid_that_grows_for_one_method_leaves_the_others_their_rates(
    tiny_vit: Path, roots: Roots, tmp_path: Path
) -> None:
    rates = {"learning_rates": (1e-4, 1e-2), "tune_rounds": 1, "only": ("many",)}
    before = compare(tiny(tiny_vit, methods=("matu", "ties"), **rates), bench(tmp_path / "out", roots))
    rates["learning_rates"] = (1e-4, 1e-3, 1e-2)
    after = compare(tiny(tiny_vit, methods=("matu",), **rates), bench(tmp_path / "out", roots))
    assert after["tuning"]["chosen"]["ties"] == before["tuning"]["chosen"]["ties"]
    assert after["summary"]["many"]["ties"] == before["summary"]["many"]["ties"]
    assert set(after["tuning"]["accuracy"]["ties"]) == {"0.0001", "0.01"}


def test_a_cell_that_diverged_is_told_and_not_run_again(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def counting(config: Any, folder: Path, *rest: Any, **more: Any) -> dict[str, Any]:
        ran.append(folder)
        return simulate(config, folder, *rest, **more)

    monkeypatch.setattr("matu.bench.runner.simulate", counting)
    wild = {"methods": ("fedavg",), "base_changes": {"rounds": 6}}
    for _ in range(2):
        results = compare(tiny(tiny_vit, learning_rates=(1e30,), **wild), bench(tmp_path / "out", roots))
    assert len(ran) == 2, "one run a setting"
    why = (tmp_path / "out/cells").glob("single-*/diverged.txt")
    assert re.search(r"nobody answered.*diverged: ", next(why).read_text())
    assert "diverged" in (tmp_path / "out/table.md").read_text()
    assert [(c["setting"], c["method"]) for c in results["diverged"]] == [("single", "fedavg"), ("many", "fedavg")]
    with pytest.raises(MatuError, match="fedavg diverged at every rate"):
        compare(
            tiny(tiny_vit, learning_rates=(1e30, 2e30), tune_rounds=6, **wild), bench(tmp_path / "other", roots)
        )  # fmt: skip


def test_a_stopped_cell_whose_data_moved_begins_anew(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is of tasks at another place; the cell's name, which tells tasks by their names, is the same."""
    import matu.simulate as simulate_module

    def at(place: Path) -> Comparison:
        tasks = tuple(str(place / name) for name in ("left", "middle", "right"))
        return tiny(tiny_vit, methods=("fedavg",), only=("many",), base_changes={"tasks": tasks})

    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_data, here)
    where = Roots(data=None, models=None, cache=tmp_path / "cache")
    save = simulate_module.save_checkpoint

    def stop(folder: Path, progress: Any, identity: str) -> None:
        save(folder, progress, identity)
        raise DataError("stopped")

    monkeypatch.setattr(simulate_module, "save_checkpoint", stop)
    with pytest.raises(MatuError, match="stopped"):
        compare(at(here), bench(tmp_path / "out", where))
    monkeypatch.undo()
    here.rename(there)
    results = compare(at(there), bench(tmp_path / "out", where))
    assert len(results["cells"]) == 1


@pytest.mark.parametrize("text", ["[compare", "[machine]\nthreads = 1\n"])
def test_a_folder_with_a_broken_note_is_refused(tiny_vit: Path, roots: Roots, tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/compare.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"compare.toml: (cannot be read as TOML|not what a comparison keeps)"):
        compare(tiny(tiny_vit), bench(tmp_path / "out", roots))


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ((Site, "answer"), DataError("its disk is gone"), r"many, fedavg.*nobody answered.*site: its disk is gone"),
        ((Site, "answer"), ValueError("operands of two shapes"), r"many, fedavg.*ValueError: operands.*traceback.txt"),
        ((FedAvg, "downlink"), ValueError("operands of two shapes"), r"many, fedavg.*ValueError.*traceback.txt"),
    ],
)
def test_what_fails_for_another_reason_is_no_divergence(
    tiny_vit: Path,
    roots: Roots,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    error: Exception,
    told: str,
) -> None:
    """As by a mistake in a method's own file: it would be mended, and the cell run again."""

    def mistaken(*rest: Any) -> Any:
        raise error

    monkeypatch.setattr(*where, mistaken)
    comparison = tiny(tiny_vit, methods=("fedavg",), only=("many",), base_changes={"rounds": 6})
    with pytest.raises(MatuError, match=told):
        compare(comparison, bench(tmp_path / "out", roots))
    assert json.loads((tmp_path / "out/results.json").read_text())["diverged"] == []
    monkeypatch.undo()
    assert len(compare(comparison, bench(tmp_path / "out", roots))["cells"]) == 1


def test_a_tuning_run_that_fails_otherwise_stops_before_the_cells(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, folder: Path, *rest: Any, **more: Any) -> None:
        raise DataError("the disk is gone")

    monkeypatch.setattr("matu.bench.runner.simulate", broken)
    with pytest.raises(MatuError, match=r"tuning: .*the disk is gone"):
        compare(tiny(tiny_vit, learning_rates=(1.0, 2.0)), bench(tmp_path / "out", roots))
    assert not (tmp_path / "out/cells").exists()
