import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from matu.bench.plan import Cell, Comparison
from matu.bench.summary import difference, on_common_seeds, summarise, to_draw
from matu.config import RunConfig

TESTS = {"a": 400, "b": 100}


def result(
    method: str, a: float, b: float, *, rounds: int = 10, curve: tuple[tuple[int, float], ...] = ()
) -> dict[str, Any]:
    return {
        "method": method, "rounds": rounds, "failures": 0, "paper_mbits": 2.0, "seconds": {"total": 5.0},
        "tasks": {t: {"classes": 2, "chance": 0.5, "train": 9, "test": n, "sha256": "x"} for t, n in TESTS.items()},
        "accuracy": {t: {"delivered": x, "server": None, "artifact": None} for t, x in (("a", a), ("b", b))},
        "mean_accuracy": {"delivered": (a + b) / 2}, "worst_client": {"accuracy": min(a, b) - 0.1},
        "bytes": {"uplink_total": 1000, "downlink_total": 500, "uplink_per_client_round": 50.0,
                  "downlink_per_client_round": 25.0},
        "curve": [list(point) for point in curve], "geometry": {"similarity": [[4, 0.9]]},
        "config": {"machine": {"precision": "float32"}},
    }  # fmt: skip


def finished(comparison: Comparison, found: dict[tuple[str, int], dict[str, Any]]) -> dict[Cell, dict[str, Any]]:
    cells = comparison.cells(dict.fromkeys(comparison.tuned(), 1e-3))
    return {c: found[c.method, c.seed] for c in cells if (c.method, c.seed) in found}


def test_means_spreads_and_normalised_are_those_computed_by_hand() -> None:
    comparison = Comparison(
        RunConfig(), {"many": {"zeta_t": 0.5}}, ("individual", "fedavg", "matu"), (0, 1), target=0.75
    )  # fmt: skip
    found = {
        ("individual", 0): result("individual", 0.8, 0.4, rounds=0),
        ("individual", 1): result("individual", 1.0, 0.6, rounds=0),
        ("fedavg", 0): result("fedavg", 0.45, 0.5, curve=((4, 0.3), (8, 0.6))),
        ("fedavg", 1): result("fedavg", 0.9, 0.25, curve=((4, 0.2),)),
        ("matu", 0): result("matu", 0.5, 0.5),
    }  # fmt: skip
    results = summarise(comparison, finished(comparison, found), None, "x")
    mine = results["summary"]["many"]["fedavg"]
    assert mine["accuracy"]["a"] == {"mean": pytest.approx(0.675), "std": pytest.approx(0.45 / math.sqrt(2))}
    # individual, mean over its seeds: a 0.9, b 0.5
    ratios = [(0.45 / 0.9 + 0.5 / 0.5) / 2, (0.9 / 0.9 + 0.25 / 0.5) / 2]
    assert mine["normalised"]["mean_of_ratios"]["mean"] == pytest.approx(np.mean(ratios))
    assert mine["normalised"]["ratio_of_means"]["mean"] == pytest.approx((0.475 + 0.575) / 2 / 0.7)
    assert mine["round_bytes"] == 150
    assert mine["worst_client"]["mean"] == pytest.approx((0.35 + 0.15) / 2)
    # the target is 0.75 · 0.7 = 0.525: seed 0 has it at round 8, seed 1 only at the end
    assert mine["rounds_to_target"] == {"mean": 9.0, "reached": 2, "of": 2}
    assert results["summary"]["many"]["matu"]["rounds_to_target"] == {"mean": None, "reached": 0, "of": 1}
    assert results["summary"]["many"]["matu"]["difference"] is None
    assert mine["difference"]["kind"] == "test images", "one seed in common"
    assert mine["difference"]["mean"] == pytest.approx(0.475 - 0.5)
    individual = results["summary"]["many"]["individual"]
    assert individual["worst_client"] is individual["uplink_bytes"] is individual["rounds_to_target"] is None
    assert len(results["cells"]) == 5
    curve = next(c["curve"] for c in results["cells"] if (c["method"], c["seed"]) == ("fedavg", 0))
    assert curve == [[4, 0.3], [8, 0.6], [10, 0.475]]
    assert all(cell["geometry"] == {"similarity": [[4, 0.9]]} for cell in results["cells"])


def test_the_interval_over_seeds_is_students_over_paired_differences() -> None:
    mine = {s: result("fedavg", x, x) for s, x in enumerate((0.5, 0.6, 0.7))}
    ours = {s: result("matu", x, x) for s, x in enumerate((0.4, 0.6, 0.5))}
    found = difference(mine, ours)
    expected = stats.ttest_rel([0.5, 0.6, 0.7], [0.4, 0.6, 0.5]).confidence_interval()
    assert found is not None
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.1, expected.low, expected.high))
    assert found["kind"] == "seeds"


def test_with_one_seed_the_interval_is_that_of_the_test_images() -> None:
    found = difference({0: result("fedavg", 0.9, 0.5)}, {0: result("matu", 0.8, 0.5)})
    variance = (0.09 / 400 + 0.25 / 100 + 0.16 / 400 + 0.25 / 100) / 4
    assert found is not None
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert difference({0: result("fedavg", 1, 1)}, {1: result("matu", 1, 1)}) is None, "no seed in common"


def test_without_individual_nothing_is_normalised_and_an_empty_comparison_is_one() -> None:
    comparison = Comparison(RunConfig(), {"many": {"zeta_t": 0.5}}, ("fedavg", "matu"))
    results = summarise(comparison, finished(comparison, {("fedavg", 0): result("fedavg", 1, 1)}), None, "x")
    mine = results["summary"]["many"]["fedavg"]
    assert mine["normalised"] == {"mean_of_ratios": None, "ratio_of_means": None}
    assert mine["rounds_to_target"] is None
    assert mine["difference"] is None
    assert summarise(comparison, {}, None, "x")["summary"] == {"many": {}}


def test_each_setting_has_its_own_individual() -> None:
    settings = {"short": {"local_steps": 2}, "long": {"local_steps": 9}}
    comparison = Comparison(RunConfig(), settings, ("individual", "matu"))
    cells = comparison.cells(dict.fromkeys(comparison.tuned(), 1e-3))
    level = {"short": 0.5, "long": 0.9}
    found = {
        c: result(c.method, level[c.setting], level[c.setting], rounds=0 if c.method == "individual" else 9)
        for c in cells
    }
    results = summarise(comparison, found, None, "x")
    for setting in settings:
        assert results["summary"][setting]["matu"]["normalised"]["mean_of_ratios"]["mean"] == pytest.approx(1)


def test_differences_are_to_the_baseline_that_was_named() -> None:
    methods = ("fedavg", "matu rule=off", "matu")
    found = {
        ("fedavg", 0): result("fedavg", 0.4, 0.6),
        ("matu rule=off", 0): result("matu", 0.5, 0.7),
        ("matu", 0): result("matu", 0.8, 0.8),
    }
    by_default = summarise(Comparison(RunConfig(), methods=methods), {}, None, "x")
    assert by_default["baseline"] == "matu"
    for baseline, expected in (("fedavg", 0.1), ("matu", -0.2), ("matu  rule=off", None), ("ties", None)):
        comparison = Comparison(RunConfig(), {"many": {"zeta_t": 0.5}}, methods, baseline=baseline)
        mine = summarise(comparison, finished(comparison, found), None, "x")["summary"]["many"]["matu rule=off"]
        if expected is None:
            assert mine["difference"] is None
        else:
            assert mine["difference"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        ({"fedavg": (0, 1, 2), "matu": (1, 2)}, {"fedavg": (1, 2), "matu": (1, 2)}),
        ({"fedavg": (0, 1), "matu": (0, 1)}, {"fedavg": (0, 1), "matu": (0, 1)}),
        ({"fedavg": (0,), "matu": (1, 2)}, {"fedavg": (0,), "matu": (1, 2)}),  # nothing in common: all
        ({"individual": (0,), "fedavg": (0, 1), "matu": (1,)}, {"individual": (0,), "fedavg": (1,), "matu": (1,)}),
        ({"individual": (0, 1)}, {"individual": (0, 1)}),
        ({"local": (0,), "matu": (0, 1)}, {"local": (0,), "matu": (0,)}),  # it has a partition too
    ],
)
def test_what_is_drawn_side_by_side_has_the_same_seeds(
    there: dict[str, tuple[int, ...]], kept: dict[str, tuple[int, ...]]
) -> None:
    comparison = Comparison(RunConfig(), {"many": {"zeta_t": 0.5}}, tuple(there), (0, 1, 2))
    found = {(m, s): result(m, 0.5, 0.5, rounds=0 if m == "individual" else 10) for m in there for s in there[m]}
    whole = finished(comparison, found)
    paired = on_common_seeds(whole)
    assert {(c.method, c.seed) for c in paired} == {(m, s) for m in kept for s in kept[m]}
    drawn = to_draw(summarise(comparison, whole, None, "x"), summarise(comparison, paired, None, "x"))
    further = {(c["method"], c["seed"]) for c in drawn["further"]}
    assert further == found.keys() - {(m, s) for m in kept for s in kept[m]}
    assert {m: tuple(about["seeds"]) for m, about in drawn["summary"]["many"].items()} == kept


def test_settings_are_paired_each_by_itself() -> None:
    comparison = Comparison(
        RunConfig(), {"single": {"zeta_t": 0.0}, "many": {"zeta_t": 0.5}}, ("fedavg", "matu"), (0, 1)
    )  # fmt: skip
    cells = comparison.cells(dict.fromkeys(comparison.tuned(), 1e-3))
    whole = {c: result(c.method, 0.5, 0.5) for c in cells if (c.setting, c.method, c.seed) != ("many", "matu", 1)}
    assert set(whole) - set(on_common_seeds(whole)) == {
        c for c in cells if (c.setting, c.method, c.seed) == ("many", "fedavg", 1)
    }
