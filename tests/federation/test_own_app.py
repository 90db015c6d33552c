"""Somebody's own Flower app, moved to matu: the mod, the strategy, and the example in examples/peft-flower."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from flower_grid import LocalGrid, app_node
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from matu.config import WireConfig
from matu.errors import ConfigError, DataError
from matu.federation.flower.mod import matu_mod
from matu.federation.flower.strategy import MatuStrategy
from matu.methods.matu import Matu
from matu.training import Weights
from matu.wire import MAX_TASKS

EXAMPLE = Path(__file__).parents[2] / "examples" / "peft-flower"
IDS = ((1 << 63) + 5, 17, (1 << 64) - 2)
START = {"layer.0.lora_A": torch.arange(6.0).view(2, 3), "layer.1.lora_A": torch.ones(3)}
HOLDS: tuple[dict[str, int], ...] = ({"left": 10, "right": 30}, {"right": 10}, {"left": 5})
EXACT = WireConfig("float32", "float32", "float32", "float32", uplink_change=False, coded_masks=False)
HEADS = {"left": 2, "right": 3}


def moved(node: int, task: str, message: Message) -> dict[str, torch.Tensor]:
    """What "training" does: a step that depends on node and task, from where it starts."""
    step = torch.Generator().manual_seed(node * 10 + len(task))
    arrays = message.content["arrays"].to_torch_state_dict()
    return {name: tensor + torch.randn(tensor.shape, generator=step) for name, tensor in arrays.items()}


def held(context: Context) -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
    mine = HOLDS[int(context.node_config["partition-id"])]
    return {task: (count, START | {"head.weight": torch.full((HEADS[task],), 0.5)}) for task, count in mine.items()}


def an_app(seen: list[tuple[int, str, dict[str, torch.Tensor]]], **flaws: Any) -> ClientApp:
    app = ClientApp(mods=[] if flaws.get("bare") else [matu_mod(flaws.get("held", held))])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node, task = int(context.node_config["partition-id"]), str(message.content["config"]["task"])
        seen.append((node, task, message.content["arrays"].to_torch_state_dict()))
        arrays = moved(node, task, message)
        if flaws.get("node") == node and "change" in flaws:
            arrays = flaws["change"](arrays)
        metrics = MetricRecord({"loss": float(node), "num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(t.sum()) for t in message.content["arrays"].to_torch_state_dict().values())
        return Message(RecordDict({"metrics": MetricRecord({"sum": total})}), reply_to=message)

    return app


def grid_of(app: ClientApp) -> LocalGrid:
    return LocalGrid({one: app_node(app, one, partition_id=i) for i, one in enumerate(IDS)})


def run(strategy: MatuStrategy, grid: LocalGrid, rounds: int = 1) -> Any:
    return strategy.start(grid, ArrayRecord(dict(START)), num_rounds=rounds)


def step_of(node: int, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The task vector and head after one round from the start."""
    draw = torch.Generator().manual_seed(node * 10 + len(task))
    names = [*START, "head.weight"]
    sizes = {**{name: tensor.shape for name, tensor in START.items()}, "head.weight": (HEADS[task],)}
    steps = {name: torch.randn(sizes[name], generator=draw) for name in names}
    start = {**START, "head.weight": torch.full((HEADS[task],), 0.5)}
    vector = torch.cat([((start[n] + steps[n]) - start[n]).reshape(-1) for n in sorted(START)])
    return vector, start["head.weight"] + steps["head.weight"]


def test_per_task_means_are_those_of_the_definition() -> None:
    strategy = MatuStrategy("per_task_fedavg", min_nodes=3, wire=EXACT)
    result = run(strategy, grid_of(an_app([])))
    (a, _), (b, _) = step_of(0, "right"), step_of(1, "right")
    expected = (30 * a + 10 * b) / 40
    got = strategy.arrays_of("right").to_torch_state_dict()
    assert set(got) == set(START)
    vector = torch.cat([(got[name] - START[name]).reshape(-1) for name in sorted(START)])
    assert torch.allclose(vector, expected, atol=1e-6)
    assert result.train_metrics_clientapp[1]["loss/right"] == pytest.approx(0.5)


def test_matu_folds_what_its_method_would() -> None:
    seen: list[Any] = []
    strategy = MatuStrategy("matu", min_nodes=3, wire=EXACT)
    run(strategy, grid_of(an_app(seen)))
    assert strategy.federation is not None
    method = strategy.federation.method
    assert isinstance(method, Matu)
    gathering = method.begin_round({})
    for node, mine in enumerate(HOLDS):
        pairs = {task: step_of(node, task) for task in mine}
        tensors = method._pack({task: Weights(v, h[:, None]) for task, (v, h) in pairs.items()})
        gathering.add(str(IDS[node]), tuple(mine), tuple(mine.values()), tensors)
    expected = gathering.finish()
    assert expected.keys() == strategy.state.keys()
    assert all(torch.allclose(strategy.state[name].float(), expected[name].float(), atol=1e-6) for name in expected)
    assert sorted((node, task) for node, task, _ in seen) == [(0, "left"), (0, "right"), (1, "right"), (2, "left")]
    assert all(torch.equal(arrays["layer.1.lora_A"], START["layer.1.lora_A"]) for _, _, arrays in seen)
    assert all((arrays["head.weight"] == 0.5).all() for _, _, arrays in seen), "an untrained head is the app's own"


def test_the_second_round_starts_where_the_first_ended_and_is_measured() -> None:
    seen: list[Any] = []
    strategy = MatuStrategy("per_task_fedavg", min_nodes=3, wire=EXACT)
    result = run(strategy, grid_of(an_app(seen)), rounds=2)
    again = next(arrays for node, task, arrays in seen[4:] if (node, task) == (1, "right"))
    (a, ha), (b, hb) = step_of(0, "right"), step_of(1, "right")
    vector = torch.cat([(again[name] - START[name]).reshape(-1) for name in sorted(START)])
    assert torch.allclose(vector, (30 * a + 10 * b) / 40, atol=1e-5)
    assert torch.allclose(again["head.weight"], (30 * ha + 10 * hb) / 40, atol=1e-5)
    assert set(result.evaluate_metrics_clientapp[2]) == {"sum/left", "sum/right"}


def test_what_stays_at_a_node_comes_back_next_round() -> None:
    seen: list[Any] = []
    strategy = MatuStrategy("fedper", min_nodes=3, wire=EXACT)
    run(strategy, grid_of(an_app(seen)), rounds=2)
    first = {(node, task): arrays for node, task, arrays in seen[:4]}
    second = {(node, task): arrays for node, task, arrays in seen[4:]}
    (vector, head) = step_of(1, "right")
    assert torch.allclose(second[1, "right"]["head.weight"], head, atol=1e-6), "its own head"
    assert torch.allclose(second[1, "right"]["layer.1.lora_A"] - 1, vector[6:], atol=1e-5), "its own last block"
    assert not torch.equal(second[1, "right"]["layer.0.lora_A"], first[1, "right"]["layer.0.lora_A"])


def test_what_stays_at_a_node_is_of_one_run() -> None:
    seen: list[Any] = []
    grid = grid_of(an_app(seen))
    for _ in range(2):
        run(MatuStrategy("fedper", min_nodes=3, wire=EXACT), grid)
    assert all(torch.equal(arrays["layer.0.lora_A"], START["layer.0.lora_A"]) for _, _, arrays in seen[4:])
    assert all((arrays["head.weight"] == 0.5).all() for _, _, arrays in seen[4:])


def test_a_node_that_starts_anew_is_told_the_start_again_and_others_keep_what_they_have() -> None:
    seen: list[Any] = []
    app = an_app(seen)
    grid, strategy = grid_of(app), MatuStrategy("fedper", min_nodes=2, wire=EXACT)
    run(strategy, grid)
    grid.nodes[IDS[1]] = app_node(app, IDS[1], partition_id=1)  # its context was in memory
    seen.clear()
    run(strategy, grid)
    assert {node for node, _, _ in seen} == {0, 2}
    seen.clear()
    run(strategy, grid)
    assert {node for node, _, _ in seen} == {0, 1, 2}
    heads = {(node, task): arrays["head.weight"] for node, task, arrays in seen}
    failing = app_node(an_app([], held=lambda _: 1 / 0), IDS[1], partition_id=1)
    working, grid.nodes[IDS[1]] = grid.nodes[IDS[1]], app_node(app, IDS[1], partition_id=1)
    run(strategy, grid)  # it has started anew,
    grid.nodes[IDS[1]] = failing
    run(strategy, grid)  # cannot say what it holds when it is asked,
    grid.nodes[IDS[1]] = working
    seen.clear()
    run(strategy, grid)  # and is not shut out for it
    assert {node for node, _, _ in seen} == {0, 1, 2}
    assert (heads[1, "right"] == 0.5).all()
    assert not (heads[0, "right"] == 0.5).any(), "of others nothing is forgotten"


def test_rounding_by_chance_is_drawn_and_repeats() -> None:
    def played(rounding: str) -> torch.Tensor:
        strategy = MatuStrategy("per_task_fedavg", min_nodes=3, wire=WireConfig(rounding=rounding))  # type: ignore[arg-type]
        run(strategy, grid_of(an_app([])))
        return torch.cat([t.reshape(-1) for t in strategy.arrays_of("left").to_torch_state_dict().values()])

    assert torch.equal(played("stochastic"), played("stochastic"))
    assert not torch.equal(played("stochastic"), played("nearest"))


@pytest.mark.parametrize(
    ("flaws", "said"),
    [
        ({"change": lambda arrays: {**arrays, "extra": torch.ones(1)}}, "not on both sides"),
        ({"change": lambda arrays: {**arrays, "layer.1.lora_A": torch.full((3,), torch.nan)}}, "finite"),
        ({"change": lambda arrays: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_a_node_that_fails_is_left_out_of_its_round(
    flaws: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = MatuStrategy("per_task_fedavg", min_nodes=3, wire=EXACT)
    run(strategy, grid_of(an_app([], node=0, **flaws)))
    got = strategy.arrays_of("right").to_torch_state_dict()
    vector = torch.cat([(got[name] - START[name]).reshape(-1) for name in sorted(START)])
    assert torch.allclose(vector, step_of(1, "right")[0], atol=1e-5)
    assert said in caplog.text


def test_who_does_not_fit_is_refused_and_the_others_go_on() -> None:
    grid = grid_of(an_app([]))
    grid.nodes[99] = app_node(an_app([], bare=True), 99, partition_id=0)
    other = {"right": (5, {"head.weight": torch.zeros(7)})}
    grid.nodes[98] = app_node(an_app([], held=lambda _: other), 98, partition_id=0)
    grid.nodes[97] = app_node(an_app([], held=lambda _: {"right": (0, {})}), 97, partition_id=0)
    grid.nodes[96] = app_node(an_app([], held=lambda _: {"left": (5, {})}), 96, partition_id=0)  # nothing of its own
    many = {f"task-{i}": (5, {"head.weight": torch.zeros(2)}) for i in range(MAX_TASKS + 1)}
    grid.nodes[95] = app_node(an_app([], held=lambda _: many), 95, partition_id=0)
    strategy = MatuStrategy("matu", min_nodes=3, wire=EXACT)
    run(strategy, grid)
    assert strategy.federation is not None
    assert set(strategy.federation.clients) == {str(one) for one in IDS}
    assert strategy._refused == {95, 96, 97, 98, 99}


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="method"):
        run(MatuStrategy("no_such", min_nodes=1), grid_of(an_app([])))
    with pytest.raises(DataError, match="a way to train, which here is the app's"):
        run(MatuStrategy("fedprox", min_nodes=1), grid_of(an_app([])))
    with pytest.raises(DataError, match="a way to train, which here is the app's"):
        run(MatuStrategy("matu_plus", min_nodes=1), grid_of(an_app([])))
    with pytest.raises(Exception, match="no round has begun"):
        MatuStrategy().arrays_of("left")
    strategy = MatuStrategy(min_nodes=3)
    run(strategy, grid_of(an_app([])))
    with pytest.raises(DataError, match="left, right"):
        strategy.arrays_of("up")


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    names = ("task", "client_app", "server_app")
    monkeypatch.syspath_prepend(str(EXAMPLE / request.param))
    for name in names:
        sys.modules.pop(name, None)
    threads = torch.get_num_threads()
    yield {name: importlib.import_module(name) for name in names}
    torch.set_num_threads(threads)
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("example", ["before", "after"], indirect=True)
def test_the_example_learns_before_and_after(
    example: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    grid = grid_of(example["client_app"].app)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    example["server_app"].app(grid, context)
    printed = capsys.readouterr().out
    last = ast.literal_eval(printed.strip().splitlines()[-1])[3]
    if "accuracy" in last:
        assert last["accuracy"] > 0.8
    else:
        assert last["accuracy/stripes"] > 0.8
        assert last["accuracy/colours"] > 0.5


def test_the_example_changes_less_than_twenty_lines() -> None:
    assert (EXAMPLE / "before/task.py").read_text() == (EXAMPLE / "after/task.py").read_text()
    changed = 0
    for name in ("client_app.py", "server_app.py", "pyproject.toml"):
        lines = [(EXAMPLE / form / name).read_text().splitlines() for form in ("before", "after")]
        changed += sum(line.startswith("+ ") for line in difflib.ndiff(*lines))
    assert 0 < changed < 20
