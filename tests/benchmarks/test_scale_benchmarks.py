"""The benchmarks of scale and simulation: what they measure with, and that the rivals do what ours does."""

from __future__ import annotations

import importlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from matu.training import Weights
from world import tiny_task, tiny_trainer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark or a rival by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


GROW = "kept = bytearray(60_000_000); kept[::4096] = b'x' * len(kept[::4096])"
CHILD = f"""
import subprocess, sys, time
{GROW}
child = subprocess.Popen([sys.executable, "-c", sys.argv[3]], stdin=subprocess.PIPE)
time.sleep(0.5)
for _ in range(2):
    print("a round", file=open(sys.argv[1], "a"))
    time.sleep(0.3)
child.communicate(b"go on\\n")
sys.exit(int(sys.argv[2]))
"""


def test_a_command_is_watched_with_the_processes_it_starts(script: Any, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    words = [sys.executable, "-c", CHILD, str(lines), "0", f"{GROW}; input()"]
    found = script("watch").watch(words, lines, tmp_path / "log")
    assert len(found.line_s) == len(found.line_rss_mb) == len(found.line_processor_s) == 2
    assert 0.5 < found.line_s[0] < found.line_s[1] < found.wall_s
    assert found.peak_rss_mb > 120
    assert 0 < found.line_processor_s[0] <= found.line_processor_s[1] <= found.processor_s


def test_a_command_that_fails_is_told_with_what_it_said(script: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(SystemExit, match="exit code 1\nno such thing"):
        script("watch").watch(words, tmp_path / "lines", tmp_path / "log")


def test_constants_of_the_cost_model_are_found_again(script: Any) -> None:
    model = script("cost_model")
    truth = {"seconds": [0.2, 0.05, 1e-4, 3.0], "grew_mb": [30.0, 17.0, 1.0, 190.0]}
    points = model.FIT + model.MANY_HOLDERS
    for cost, constants in truth.items():
        found = [{cost: float(np.dot(model.row(point, cost), constants))} for point in points]
        assert model.fit(points, found, cost) == pytest.approx(constants, rel=1e-6)


def test_the_cost_model_measures_the_real_server(script: Any) -> None:
    model = script("cost_model")
    point = model.Point(2000, 4, 2, 3)
    found = model.measure(point)
    head = model.CLASSES * (model.FEATURES + 1)
    assert 1e6 * found["disk_mb"] == pytest.approx(5 * point.T * point.d + 4 * point.T * head, rel=0.05)
    assert 3 / 8 < 1e3 * found["up_kb"] / point.d < 1 + 2 * head / point.d  # bits of the vector, masks, heads
    assert found["seconds"] > 0


def test_the_tree_of_four_processes_agrees_with_one(script: Any) -> None:
    found = script("cost_model").tree(clients=8, tasks=3, dim=1000)
    assert found["equal_to_the_last_bit"]
    assert found["bytes_of_sums_a_task_and_coordinate"] == pytest.approx(21, rel=0.1)


def test_the_tree_runs_as_the_documentation_shows_it() -> None:
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["whole"].means().tasks == ()


def test_every_point_of_the_scale_benchmark_can_be_dealt(script: Any) -> None:
    """Configurations are right, and every task has a holder: what `matu run` would refuse only after rendering."""
    scale = script("scale")
    from matu.config import config_of
    from matu.simulate import deal

    labels = np.arange(600) % 10

    class Dealt:
        train = type("Split", (), {"labels": labels})

    for curves in (scale.LARGE, scale.SMALL):
        for name, (others, values) in curves.items():
            for value in (values[0], values[-1]):
                point = {**others, name: value}
                config = config_of(scale.config(**point, rounds=2, method="matu"), "here")
                config.check()
                tasks = [task.removeprefix("demo:") for task in config.tasks.tasks]
                shares = deal(dict.fromkeys(tasks, Dealt), config.federation, 0)
                assert {task for share in shares.values() for task in share} == set(tasks)
                assert round(config.federation.participation * len(shares)) == point["sampled"]


def reply_of(tasks: dict[str, tuple[int, float]]) -> Message:
    """A client's update: by task, its images and the value of all its numbers."""
    content = RecordDict({"examples": MetricRecord({task: count for task, (count, _) in tasks.items()})})
    for task, (_, value) in tasks.items():
        state = {"layer.lora_A.weight": torch.full((2,), value), "classifier.weight": torch.full((3,), value)}
        content[task] = ArrayRecord(state)
    return Message(content, dst_node_id=1, message_type="train")


def test_the_rival_averages_adapters_over_all_and_heads_over_holders(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    strategy = script("rivals.flower_ray").PerTaskHeads([["a"]])
    strategy.arrays = ArrayRecord({"c|classifier.weight": torch.full((3,), 9.0)})
    arrays, metrics = strategy.aggregate_train(
        1, [reply_of({"a": (10, 1.0), "b": (30, 2.0)}), reply_of({"a": (40, 6.0)})]
    )
    found = {name: float(value[0]) for name, value in arrays.to_torch_state_dict().items()}
    assert found == {
        "layer.lora_A.weight": pytest.approx((10 + 60 + 240) / 80), "a|classifier.weight": pytest.approx(5.0),
        "b|classifier.weight": 2.0, "c|classifier.weight": 9.0,
    }  # fmt: skip
    assert metrics["images"] == 80
    assert json.loads((tmp_path / "rounds.jsonl").read_text()) == {"round": 1, "images": 80}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft, of transformers
def test_the_rivals_train_as_we_do(script: Any, tiny_vit: Path, tmp_path: Path) -> None:
    """From the same start, on the same images in whole batches: the same adapter and head."""
    plain, task = script("rivals.plain_peft"), tiny_task("left")
    trainer = tiny_trainer(tiny_vit, batch_size=1000)
    ours = trainer.model
    np.save(tmp_path / "left-train-images.npy", task.train.images)
    np.save(tmp_path / "left-train-labels.npy", task.train.labels)
    world = {
        "backbone": str(tiny_vit), "mean": ours.backbone.mean, "std": ours.backbone.std, "rank": 4, "alpha": 4.0,
        "learning_rate": trainer.config.learning_rate, "batch_size": 1000, "epochs": 4, "classes": {"left": 3},
        "gradient_clip": trainer.config.gradient_clip,
    }  # fmt: skip
    model = plain.get_model(world, "left")
    theirs = {name.partition("vit.")[2]: p for name, p in model.named_parameters() if "lora_" in name}
    start = ours.layout.unflatten(ours.start)
    assert set(theirs) == set(start)
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(start[name])
    plain.train(model, plain.Images(tmp_path, world, "left", "train"), world, bf16=False)
    begin = Weights(torch.zeros(ours.dim), torch.zeros(3, ours.backbone.features + 1))
    indices = np.arange(len(task.train.labels))
    trained, _ = trainer.train(begin, task.train, indices, np.random.default_rng(0), epochs=4)
    assert trained.vector.abs().max() > 0.01
    moved = ours.layout.flatten({name: (theirs[name] - start[name]).detach() for name in theirs})
    last = model.base_model.model.classifier.modules_to_save["default"]
    head = torch.column_stack([last.weight, last.bias]).detach()
    for one, other in ((moved, trained.vector), (head, trained.head)):  # AdamW makes whole steps of rounding errors
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.998


def test_equal_work_is_checked_by_what_a_rival_says(script: Any, tmp_path: Path) -> None:
    simulation = script("simulation")
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "images": 10}\n')
    simulation.check("rival", tmp_path, [10])
    with pytest.raises(SystemExit, match=r"trained on \[10\] images a round, \[12\] were asked for"):
        simulation.check("rival", tmp_path, [12])


def test_the_server_at_toy_sizes(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = script("server_sizes")
    monkeypatch.setattr(sys, "argv", ["server_sizes.py", "--small", "--out", str(tmp_path / "sizes.json")])
    sizes.main()
    rows = json.loads((tmp_path / "sizes.json").read_text())["rows"]
    assert [row["d"] for row in rows] == [point.d for point in sizes.SMALL]
    assert all(spent["wall_s"] > 0 for row in rows for spent in row["phases"].values())
    assert all(point.T * point.d <= 5e8 and point.N * point.k >= point.T for point in sizes.SIZES)


def test_the_floor_of_a_round_is_the_same_bytes_on_any_number_of_threads(script: Any) -> None:
    part, copy, result = np.arange(10.0).reshape(2, 5), np.zeros((2, 5)), np.zeros(7)
    with ThreadPoolExecutor(3) as pool:
        script("server_round").touch_by_threads(pool, 3, [part], [copy], [result])
    assert np.array_equal(copy, part)
    assert result.tolist() == [1.0] * 7
