"""Tables of a comparison: what they say, and what they say while it is not finished."""

import re

import numpy as np
import pytest

from matu.bench.names import LABELS, label
from matu.bench.report import latex, markdown

TASKS = ("mnist", "fashion_mnist", "cifar10", "svhn", "gtsrb", "eurosat", "pets", "dtd")


def compared(
    methods=tuple(LABELS),
    tasks=TASKS,
    settings=(("single", {"zeta_t": 0.0}), ("many", {"zeta_t": 0.5})),
    seeds=(0, 1, 2),
    axis=None,
):
    """A comparison with made-up numbers, in the form of results.json."""
    random = np.random.default_rng(0)
    alone = dict(zip(tasks, np.sort(random.uniform(0.35, 0.98, len(tasks)))[:: (-1) ** len(tasks)], strict=True))
    results = {
        "format": 1, "name": "real8", "settings": dict(settings), "axis": axis, "methods": list(methods),
        "seeds": list(seeds), "tasks": {t: {"classes": 10, "chance": 0.1, "train": 4000, "test": 500} for t in tasks},
        "tuning": None, "target": 0.5, "baseline": "matu", "cells": [], "summary": {},
        "diverged": [], "wire": {},
    }  # fmt: skip
    for setting, _ in settings:
        results["summary"][setting] = {m: _summary(results, setting, m, alone, random) for m in methods}
    return results


def _summary(results, setting, method, alone, random):
    silent, several, seeds = method in ("individual", "local"), len(results["seeds"]) > 1, len(results["seeds"])
    level = 1.0 if method == "individual" else random.uniform(0.6, 0.95)
    share = {t: a if level == 1 else min(0.99, a * level * random.uniform(0.85, 1.1)) for t, a in alone.items()}
    average = float(np.mean(list(share.values())))
    rounds = 0 if silent else 300 if "rounds=300" in method else 100
    for seed in results["seeds"]:
        steps = [] if silent else np.linspace(rounds / 10, rounds, 10).astype(int).tolist()
        end = average * random.uniform(0.98, 1.02)
        curve = [[r, end * (1 - 0.8 * float(np.exp(-r / 25))) * random.uniform(0.99, 1.01)] for r in steps]
        cell = {"setting": setting, "method": method, "seed": seed, "curve": curve, "precision": "float32",
                "learning_rate": 1e-3}  # fmt: skip
        results["cells"].append(cell)
    spread = {"mean": average, "std": 0.012 if several else None}
    held = results["settings"][setting].get("tasks_per_client", 2)
    size = None if silent else 0.45e6 * (1 if method == "matu" else held)
    return {
        "seeds": results["seeds"], "rounds": rounds,
        "accuracy": {t: {"mean": a, "std": 0.01 if several else None} for t, a in share.items()}, "average": spread,
        "normalised": {"mean_of_ratios": spread | {"mean": level}, "ratio_of_means": spread | {"mean": level - 0.01}},
        "worst_client": spread | {"mean": 0.7 * average}, "uplink_bytes": size, "downlink_bytes": size,
        "round_bytes": size and 60 * size, "paper_mbits": size and size * 8e-6,
        "rounds_to_target": None if silent else {"mean": 40.0, "reached": seeds, "of": seeds},
        "difference": None if method == "matu" else {
            "mean": -0.0204, "low": -0.0311, "high": 0.0123, "kind": "seeds" if several else "test images",
        },
    }  # fmt: skip


@pytest.fixture
def few():
    """Four methods, two tasks and one setting, with the numbers that the tests set."""
    results = compared(
        ("individual", "fedavg", "mat_fl rounds=300", "matu"), ("dtd", "cars_a"), (("many", {"zeta_t": 0.5}),)
    )
    for method, share in zip(results["methods"], (0.9, 0.5, 0.7, 0.6), strict=True):
        results["summary"]["many"][method]["accuracy"]["dtd"] = {"mean": share, "std": 0.01}
    return results


def rows(text, table):
    """The cells of a Markdown document's table, by the first of them."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in blocks[table].splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_label():
    assert label("mat_fl rounds=300 rate=0.1") == "MaT-FL (rounds=300, rate=0.1)"
    assert label("per_task_fedavg") == "Per-task FedAvg"
    assert label("my_own") == "my_own"
    assert label("matu uplink=3bit downlink=5bit") == "MaTU (uplink=3bit, downlink=5bit)"
    codecs = "uplink=3bit downlink=5bit uplink_heads=4bit downlink_heads=8bit"
    assert label(f"matu coded_masks=true {codecs}") == "MaTU (coded masks, 3bit/4bit up, 5bit/8bit down)"
    assert label("matu unification=false rule=off") == "MaTU (no unification, rule=off)"
    assert label(f"matu rule=off {codecs}") == "MaTU (rule=off, 3bit/4bit up, 5bit/8bit down)"


def test_markdown_says_first_what_was_compared(few):
    assert markdown(few).splitlines()[0] == (
        "real8: 4 methods on 2 tasks (dtd, cars_a); seeds 0, 1, 2; setting many (zeta_t = 0.5). Test accuracy in %. "
        "Learning rate 0.001 for every method, not tuned."
    )


def test_means_over_different_seeds_are_not_ranked(few):
    few["summary"]["many"]["individual"]["seeds"] = [0]
    assert "No best" not in markdown(few), "it does not compete"
    few["summary"]["many"]["fedavg"]["seeds"] = [0]
    text = markdown(few)
    assert "**" not in text.split("## many")[1]
    assert "- No best in bold: methods have different seeds" in text
    found = rows(text, 1)
    assert [found[m][0] for m in ("Method", "FedAvg", "MaTU")] == ["Seeds", "0", "0, 1, 2"]
    assert r"\textbf" not in latex(few)


def test_the_best_is_bold_and_individual_does_not_compete(few):
    accuracy = rows(markdown(few), 0)
    assert [accuracy[m][0] for m in ("Individual", "FedAvg", "MaT-FL (rounds=300)", "MaTU")] == [
        "90.0 ± 1.0", "50.0 ± 1.0", "**70.0 ± 1.0**", "60.0 ± 1.0",
    ]  # fmt: skip


def test_equal_as_printed_is_equally_best(few):
    few["summary"]["many"]["matu"]["accuracy"]["dtd"]["mean"] = 0.70004
    accuracy = rows(markdown(few), 0)
    assert accuracy["MaTU"][0] == accuracy["MaT-FL (rounds=300)"][0] == "**70.0 ± 1.0**"


def test_costs_and_differences_are_the_second_table(few):
    found = rows(markdown(few), 1)
    assert found["Method"] == [
        "Normalised", "Ratio of means", "Worst client", "MB up", "MB down", "Paper Mbit", "Rounds to 50 %",
        "Difference to MaTU",
    ]  # fmt: skip
    assert found["FedAvg"][3:] == ["0.90", "0.90", "7.20", "40", "−2.0 [−3.1, +1.2]"]
    assert found["Individual"][3:7] == ["–"] * 4
    assert found["MaTU"][-1] == "–"


@pytest.mark.parametrize(
    ("reached", "mean", "text"), [(3, 40.0, "40"), (2, 40.0, "40 (2 of 3)"), (0, None, "not reached")]
)
def test_rounds_to_the_target(few, reached, mean, text):
    few["summary"]["many"]["fedavg"]["rounds_to_target"] = {"mean": mean, "reached": reached, "of": 3}
    assert rows(markdown(few), 1)["FedAvg"][6] == text


@pytest.mark.parametrize("form", [markdown, latex])
def test_the_interval_is_explained(form):
    three, one = form(compared(seeds=(0, 1, 2))), form(compared(seeds=(0,)))
    assert "interval: Student's t over seeds." in three
    assert "test images" not in three
    assert "normal approximation over test images, one seed, so it says nothing about other seeds." in one
    assert "Student" not in one


def test_intervals_of_both_kinds_name_their_methods(few):
    few["summary"]["many"]["fedavg"]["difference"]["kind"] = "test images"
    text = markdown(few)
    assert "interval (FedAvg): normal approximation" in text
    assert "interval (Individual, MaT-FL (rounds=300)): Student's t" in text


def test_one_seed_has_no_spread():
    text = markdown(compared(seeds=(4,)))
    assert "±" not in text
    assert "; seed 4; " in text


def test_a_method_that_is_not_finished(few):
    del few["summary"]["many"]["fedavg"]
    few["cells"] = [c for c in few["cells"] if c["method"] != "fedavg" and (c["method"], c["seed"]) != ("matu", 2)]
    text = markdown(few)
    assert rows(text, 0)["FedAvg"][0] == rows(text, 1)["FedAvg"][0] == "not finished"
    assert "- 8 of 12 cells are done (seeds: MaTU 2 of 3)." in text
    assert r"FedAvg & \multicolumn{11}{l}{not finished} \\" in latex(few)


def test_nothing_finished(few):
    few["summary"], few["cells"] = {}, []
    assert markdown(few).count("not finished") == 8
    assert "0 of 12 cells are done." in latex(few)


def test_a_finished_comparison_has_no_note_of_it(few):
    assert "cells are done" not in markdown(few)


def test_seeds_that_diverged_are_told_and_count_as_done(few):
    few["cells"] = [c for c in few["cells"] if (c["method"], c["seed"]) != ("matu", 2)]
    few["diverged"] = [{"setting": "many", "method": "matu", "seed": 2}]
    text = markdown(few)
    assert "- Diverged, so that a mean is of the seeds that did not: MaTU seed 2." in text
    assert "cells are done" not in text
    del few["summary"]["many"]["fedavg"]
    few["diverged"] = [{"setting": "many", "method": "fedavg", "seed": seed} for seed in few["seeds"]]
    assert rows(markdown(few), 0)["FedAvg"][0] == "diverged"
    assert r"FedAvg & \multicolumn{11}{l}{diverged} \\" in latex(few)


def test_cells_of_different_precision_are_told(few):
    assert "precision" not in markdown(few)
    few["cells"][0]["precision"] = "bfloat16"
    assert "- Computed in different precisions: bfloat16 Individual; float32 Individual, FedAvg" in markdown(few)


def test_messages_that_are_not_exact_are_told(few):
    assert "Messages" not in markdown(few)
    few["wire"] = {"uplink": "3bit", "coded_masks": True}
    assert "not tuned. Messages: uplink = 3bit, coded_masks = True.\n" in markdown(few)


def test_a_rate_at_an_end_of_the_grid_is_told(few):
    few["tuning"] = {
        "setting": "many", "rounds": 20, "seed": 0, "rates": [3e-4, 1e-3, 3e-3],
        "accuracy": {m: {"0.0003": 0.2, "0.001": 0.3, "0.003": 0.4} for m in few["methods"][1:]},
        "chosen": {"fedavg": 3e-3, "mat_fl rounds=300": 1e-3, "matu": 3e-3},
    }  # fmt: skip
    assert "beyond which more may be had: the largest rate is the best of FedAvg, MaTU.\n" in markdown(few)
    few["tuning"]["rates"].append(1e-2)
    few["tuning"]["accuracy"]["fedavg"]["0.01"] = 0.1
    assert "the largest rate is the best of MaTU.\n" in markdown(few), "of the rates that it was tried at"
    few["tuning"]["accuracy"]["matu"]["0.01"] = None
    assert "At an end" not in markdown(few), "beyond it diverges"
    del few["tuning"]["accuracy"]["matu"]["0.01"]
    few["tuning"]["chosen"] = dict.fromkeys(few["tuning"]["chosen"], 1e-3)
    assert "At an end" not in markdown(few)


def test_a_method_with_options_that_is_tuned_without_them_is_told(few):
    few["methods"][2] = "matu balanced=true top_k=1"
    few["tuning"] = {
        "setting": "many", "rounds": 20, "seed": 0, "rates": [1e-3, 3e-3],
        "accuracy": {"a/matu.py balanced=true": {"0.001": 0.3, "0.003": 0.4}, "fedavg": {"0.001": 0.3}},
        "chosen": {"a/matu.py balanced=true": 3e-3},
    }  # fmt: skip
    few["methods"] = [m.replace("matu ", "a/matu.py ") for m in few["methods"]]
    text = markdown(few)
    assert "the largest rate is the best of MaTU (balanced).\n" in text
    del few["summary"]["many"]["fedavg"]
    assert rows(markdown(few), 1)["FedAvg"][0] == "not tuned"


def test_without_individual_nothing_is_normalised(few):
    few["summary"]["many"]["matu"] |= {"normalised": {"mean_of_ratios": None, "ratio_of_means": None}}
    few["summary"]["many"]["matu"] |= {"worst_client": None}
    assert rows(markdown(few), 1)["MaTU"][:3] == ["–", "–", "–"]


def test_tuning(few):
    few["tuning"] = {
        "setting": "many", "rounds": 20, "seed": 0, "rates": [0.00001, 0.0003, 0.001], "chosen": {"fedavg": 0.001},
        "accuracy": {"matu": {"1e-05": 0.2}, "fedavg": {"1e-05": None, "0.0003": 0.31, "0.001": 0.4}},
    }  # fmt: skip
    text = markdown(few)
    assert "after 20 rounds of setting many with seed 0" in text
    found = rows(text, 0)
    assert found["Method"] == ["1e-05", "0.0003", "0.001"]
    assert found["FedAvg"] == ["–", "31.0", "**40.0**"]
    assert found["MaTU"] == ["20.0", "–", "–"]


def test_latex_is_a_booktabs_table_with_everything_escaped(few):
    text = latex(few)
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 1
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"\rotatebox{90}{cars\_a}" in text
    assert r"\caption{real8, many (zeta\_t = 0.5): test accuracy in \%.}" in text
    assert r"\textbf{70.0 $\pm$ 1.0}" in text
    assert r"$-$2.0 [$-$3.1, +1.2] \\" in text
    body = text.split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[_#]|[±−–]", body.replace(r"\_", ""))
    assert [line for line in body.splitlines() if re.search(r"(?<!\\)%", line)] == [r"\resizebox{\textwidth}{!}{%"]


def test_every_row_of_latex_is_as_wide_as_its_table(few):
    lines = [line for line in latex(few).splitlines() if line.endswith(r" \\")]
    assert {line.count(" & ") for line in lines} == {11}


def test_markdown_escapes_the_bar(few):
    few["methods"][1] = "a|b"
    assert "| a\\|b " in markdown(few)
