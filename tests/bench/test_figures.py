"""Figures of a comparison: which are drawn, from what, and that they repeat to the byte."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_bench_report import compared

from matu.bench import figures, looks

METHODS = ("individual", "local", "fedavg", "ties", "ties keep=0.1", "my_own", "matu")
AXIS = {"settings": (("two", {"tasks_per_client": 2}), ("four", {"tasks_per_client": 4})), "axis": "tasks_per_client"}


@pytest.fixture
def drawn(monkeypatch):
    """The figures themselves, in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or [path])
    return kept


def lines(axes):
    """Points by label of the colour that a method has."""
    return {line.get_color(): np.column_stack(line.get_data()) for line in axes.lines}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_what_applies_is_drawn(tmp_path):
    names = [path.name for path in figures.draw_all(compared(METHODS, **AXIS), tmp_path / "figures")]
    kinds = (
        "accuracy_over_rounds", "normalised_by_task", "accuracy_over_bytes", "against_axis", "normalised_by_setting",
    )  # fmt: skip
    assert names == [f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "svg")]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "figures").iterdir())


def test_one_setting_without_axis_has_three_figures(drawn, tmp_path):
    figures.draw_all(compared(METHODS, settings=(("only", {}),)), tmp_path)
    assert len(drawn) == 3


def test_accuracy_stands_over_all_bytes_of_a_client_and_round(drawn, tmp_path):
    results = compared(METHODS, **AXIS)
    figures.accuracy_over_bytes(results, tmp_path / "a")
    for axes, setting in zip(drawn[0].axes, ("two", "four"), strict=True):
        summary = results["summary"][setting]
        federated = [m for m in METHODS if summary[m]["uplink_bytes"]]
        expected = [
            (1e-6 * (summary[m]["uplink_bytes"] + summary[m]["downlink_bytes"]), 100 * summary[m]["average"]["mean"])
            for m in federated
        ]
        ends = [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]
        found = list(dict.fromkeys(ends))  # an error bar stands on its point
        np.testing.assert_allclose(found, expected)
    assert "Individual" not in legend(drawn[0])


def test_files_repeat_to_the_byte(tmp_path):
    results = compared(METHODS, ("dtd", "cars"))
    one, two = (figures.normalised_by_task(results, tmp_path / name / "a.b") for name in ("one", "two"))
    assert [path.name for path in one] == ["a.b.png", "a.b.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_nothing_finished_draws_nothing(tmp_path):
    results = compared(METHODS, **AXIS) | {"summary": {}, "cells": []}
    assert figures.draw_all(results, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_unfinished_is_left_out(drawn, tmp_path):
    results = compared(METHODS, **AXIS)
    del results["summary"]["four"]
    del results["summary"]["two"]["ties"]
    results["cells"] = [c for c in results["cells"] if c["setting"] == "two" and c["method"] != "ties"]
    figures.draw_all(results, tmp_path)
    assert [len(figure.axes) for figure in drawn] == [1, 1, 1, 2, 1]
    for figure in drawn:
        assert "MaTU" in legend(figure)
        assert "TIES" not in legend(figure)
        assert "TIES (keep=0.1)" in legend(figure)


def test_curves_are_the_mean_over_seeds_at_the_rounds_they_share(drawn, tmp_path):
    results = compared(("individual", "matu"), settings=(("many", {}),), seeds=(0, 1))
    curves = iter([[[20, 0.4], [40, 0.6]], [[20, 0.2], [30, 0.9], [40, 0.4]]])
    for cell in results["cells"]:
        cell["curve"] = next(curves) if cell["method"] == "matu" else []
    results["summary"]["many"]["individual"]["average"] = {"mean": 0.8, "std": None}
    figures.accuracy_over_rounds(results, tmp_path / "a")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(lines(axes)["#D55E00"], [[20, 30], [40, 50]])
    np.testing.assert_allclose(lines(axes)["#555555"][:, 1], 80)
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [20, 60])


def test_other_seeds_are_faint_and_the_title_says_which_are_not(drawn, tmp_path):
    results = compared(("fedavg", "matu"), settings=(("single", {}), ("many", {})), seeds=(1,))
    aside = {"setting": "many", "seed": 0, "average": 0.33, "curve": [[20, 0.2], [40, 0.33]]}
    aside["bytes"] = {"uplink_per_client_round": 1e6, "downlink_per_client_round": 2e6}
    results["further"] = [aside | {"method": "matu"}]
    figures.draw_all(results, tmp_path)
    rounds, bytes_, bars = drawn
    for figure in (rounds, bytes_):
        assert [axes.get_title("left") for axes in figure.axes] == ["single", "many, seed 1 (faint: others)"]
    (faint,) = [line for line in rounds.axes[1].lines if line.get_alpha() == figures.FAINT["alpha"]]
    np.testing.assert_allclose(faint.get_xydata(), [[20, 20], [40, 33]])
    assert faint.get_color() == looks.look_of(results, "matu")["color"]
    (point,) = [line for line in bytes_.axes[1].lines if line.get_alpha() == figures.FAINT["alpha"]]
    np.testing.assert_allclose(point.get_xydata(), [[3, 33]])
    assert [text.get_text() for text in bars.axes[0].get_xticklabels()] == ["single", "many, seed 1"]


def test_geometry_has_a_panel_a_setting_and_number_of_tasks(drawn, tmp_path):
    results = compared(("individual", "matu"), settings=(("many", {}),), seeds=(0, 1))
    for cell, s, cosine in zip(results["cells"][-2:], (0.8, 0.6), (0.7, 0.9), strict=True):
        assert cell["method"] == "matu"
        cell["geometry"] = {"similarity": [[4, s]], "cosine 1": [[4, 1.0]], "cosine 10": [[4, cosine], [8, 0.5]]}
    figures.draw_all(results, tmp_path)
    similarity, reconstruction = drawn[1:3]
    np.testing.assert_allclose(lines(similarity.axes[0])["#D55E00"], [[4, 0.7]])
    assert [axes.get_title("left") for axes in reconstruction.axes] == ["many: clients of 10 tasks"]
    np.testing.assert_allclose(lines(reconstruction.axes[0])["#D55E00"], [[4, 0.8], [8, 0.5]])


def test_tasks_are_sorted_by_what_individual_finds_hard(drawn, tmp_path):
    results = compared(("individual", "matu"), ("a", "b", "c"), (("many", {}),))
    found = results["summary"]["many"]
    found["individual"]["accuracy"] = {t: {"mean": m, "std": None} for t, m in zip("abc", (0.8, 0.4, 0.5), strict=True)}
    found["matu"]["accuracy"] = {t: {"mean": 0.4, "std": None} for t in "abc"}
    figures.normalised_by_task(results, tmp_path / "a")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "c", "a"]
    points = lines(axes)["#D55E00"]
    np.testing.assert_allclose(points[np.argsort(points[:, 1])], [[100, 0], [80, 1], [50, 2]])


def test_against_the_axis_in_its_order(drawn, tmp_path):
    results = compared(("individual", "fedavg", "ties", "matu"), **AXIS)
    results["settings"] = dict(reversed(results["settings"].items()))
    figures.against_axis(results, tmp_path / "a")
    size, share = drawn[0].axes
    np.testing.assert_allclose(lines(size)["#D55E00"], [[2, 27], [4, 27]])
    np.testing.assert_allclose(lines(size)["#0072B2"], [[2, 54], [4, 108]])
    assert sorted(lines(share)) == sorted(["#D55E00", "#0072B2", "#882255", "#555555"])
    # FedAvg and TIES cost the same: dashes show both.
    assert [line.is_dashed() for line in size.lines] == [True, True, False]


def test_without_individual_accuracy_itself_stands_against_the_axis(drawn, tmp_path):
    results = compared(("fedavg", "matu"), **AXIS)
    for summary in results["summary"].values():
        for method in summary.values():
            method["normalised"] = None
    figures.against_axis(results, tmp_path / "a")
    accuracy = drawn[0].axes[1]
    assert accuracy.get_title(loc="left") == "mean test accuracy in %"
    means = [100 * results["summary"][setting]["matu"]["average"]["mean"] for setting in ("two", "four")]
    np.testing.assert_allclose(lines(accuracy)["#D55E00"], np.column_stack(([2, 4], means)))
    assert len(accuracy.lines) == 2


def test_settings_without_the_axis_are_left_out_of_its_figure(drawn, tmp_path):
    results = compared(("individual", "matu"), **AXIS)
    results["settings"]["single"] = {"zeta_t": 0.0}
    figures.against_axis(results, tmp_path / "a")
    assert [list(line.get_xdata()) for line in drawn[0].axes[0].lines] == [[2, 4]]


def test_bars_by_setting(drawn, tmp_path):
    results = compared(METHODS)
    figures.normalised_by_setting(results, tmp_path / "a")
    axes = drawn[0].axes[0]
    assert len(axes.patches) == 2 * (len(METHODS) - 1)
    expected = [100 * results["summary"][s]["matu"]["normalised"]["mean_of_ratios"]["mean"] for s in ("single", "many")]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches[-2:]], expected)
    assert len(axes.containers) == 4 * (len(METHODS) - 1)  # a bar and its error bar each


def test_a_method_of_many_options_leaves_room_for_the_panels(drawn, tmp_path):
    results = compared(
        ("matu coded_masks=true uplink=3bit downlink=5bit uplink_heads=4bit downlink_heads=8bit", "ties")
    )
    figures.accuracy_over_bytes(results, tmp_path / "a")
    figure = drawn[0]
    figure.canvas.draw()
    (legend,) = figure.legends
    assert max(len(line) for text in legend.get_texts() for line in text.get_text().splitlines()) <= looks.NARROW
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert boxes[0].x1 < boxes[1].x0, "no panel's words run into another's"


def test_twelve_variants_of_a_method_can_be_told_apart_and_the_plain_one_stands_out():
    results = compared(("matu", *(f"matu top_k={k}" for k in range(11))))
    lines = [looks.line_of(results, method) for method in results["methods"]]
    assert len({(line["color"], line["linestyle"]) for line in lines}) == 12
    assert [line["linewidth"] for line in lines] == [3] + 11 * [1.5]


def test_twelve_variants_of_a_method_can_be_told_apart_as_points():
    results = compared(("fedavg", *(f"fedavg balanced={k}" for k in range(11))))
    dots = [looks.dots_of(results, method) for method in results["methods"]]
    kinds = {(d["color"], d.get("markerfacecolor"), d.get("fillstyle"), d["markeredgecolor"]) for d in dots}
    assert len(kinds) == 12


def test_colours_do_not_depend_on_who_else_is_drawn():
    many, one = compared(METHODS), compared(("matu",))
    assert looks.look_of(many, "matu") == looks.look_of(one, "matu")
    colours = [looks.look_of(many, method)["color"] for method in METHODS]
    assert len(set(colours)) == len(METHODS) - 1
    assert looks.line_of(many, "ties")["linestyle"] != looks.line_of(many, "ties keep=0.1")["linestyle"]
