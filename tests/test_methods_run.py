"""Every federated method: what holds whatever it does, and whole runs of it."""

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import matu.simulate as simulate_module
from matu.config import (
    EvaluationConfig,
    FederationConfig,
    MachineConfig,
    ModelConfig,
    RunConfig,
    TasksConfig,
    TrainingConfig,
    read_config,
)
from matu.errors import ConfigError, DataError
from matu.methods import Method, State, find_method, method_names
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from matu.training import Weights
from matu.wire import Codecs, Envelope, Header, Part, encode
from playing import Player, block_problem, build, equal, random_ends

QUIET = Display(quiet=True)
FEDERATED = [name for name in method_names() if issubclass(find_method(name), Method)]
ALONE = [name for name in method_names() if name not in FEDERATED]
PROBLEM = block_problem({"a": 2, "b": 3, "c": 2}, ("0", "1", "2"), features=2, width=2)
HELD = {"client-0": ("a", "b"), "client-1": ("b",), "client-2": ("a", "b", "c"), "client-3": ("a", "c")}

every_method = pytest.mark.parametrize("name", FEDERATED)


def players() -> list[Player]:
    return [Player(name, {task: 2 + 3 * i + len(name) for i, task in enumerate(tasks)}) for name, tasks in HELD.items()]


def updates(method: Method, state: State, sites: list[Player], seed: int) -> list[tuple[Player, dict[str, Tensor]]]:
    """What the sites send that train somewhere."""
    return [
        (site, site.answer(method, state, random_ends(PROBLEM, site.tasks, 10 * seed + i)))
        for i, site in enumerate(sites)
    ]  # fmt: skip


def fold_in(gathering: Any, sent: list[tuple[Player, dict[str, Tensor]]]) -> State:
    for site, tensors in sent:
        gathering.add(site.name, site.tasks, tuple(site.samples.values()), tensors)
    return gathering.finish()


def after_a_round(name: str) -> tuple[Method, State, list[Player]]:
    method, sites = build(name, PROBLEM), players()
    return method, fold_in(method.begin_round(method.start()), updates(method, method.start(), sites, 0)), sites


def wild(weights: Weights, seed: int) -> Weights:
    """The same signs, magnitudes from 1e-18 to 1e18: their sums in float64 depend on the order."""
    draw = torch.Generator().manual_seed(seed)
    return Weights(*(part * 10 ** (torch.rand(part.shape, generator=draw) * 36 - 18) for part in weights))


@every_method
def test_the_order_of_arrival_changes_no_bit(name: str) -> None:
    method, state, sites = after_a_round(name)
    tame = updates(method, state, sites, 1)
    sent = [
        (site, site.answer(method, state, {t: wild(w, i) for t, w in random_ends(PROBLEM, site.tasks, i).items()}))
        for i, site in enumerate(sites)
    ]
    for round_of in (tame, sent):
        first = fold_in(method.begin_round(state), round_of)
        assert not equal(first, state)
        for order in itertools.permutations(round_of):
            assert equal(fold_in(method.begin_round(state), list(order)), first)


@every_method
def test_a_round_without_updates_changes_nothing(name: str) -> None:
    method, state, _ = after_a_round(name)
    assert method.begin_round(state).finish() is state


@every_method
def test_a_round_leaves_the_state_before_it_and_the_messages_as_they_were(name: str) -> None:
    method, state, sites = after_a_round(name)
    kept = {key: tensor.clone() for key, tensor in state.items()}
    sent = updates(method, state, sites, 1)
    copies = [{key: tensor.clone() for key, tensor in tensors.items()} for _, tensors in sent]
    fold_in(method.begin_round(state), sent)
    assert equal(state, kept)
    for (_, tensors), copy in zip(sent, copies, strict=True):
        assert equal(tensors, copy)


def broken_versions(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Messages that cannot be, each broken in one place."""
    for name, tensor in tensors.items():
        yield f"{name} missing", {key: other for key, other in tensors.items() if key != name}
        yield f"{name} short", tensors | {name: tensor[:-1].clone()}
        yield f"{name} of another rank", tensors | {name: tensor[None].clone()}
        yield f"{name} double", tensors | {name: tensor.double()}
        if tensor.is_floating_point():
            for bad in (math.nan, math.inf, -math.inf):
                damaged = tensor.clone()
                damaged.view(-1)[-1] = bad
                yield f"{name} {bad}", tensors | {name: damaged}
    yield "one too many", tensors | {"more": torch.zeros(1)}
    yield "empty", {}


def message(parts: Sequence[Part], tensors: dict[str, Tensor]) -> bytes:
    header = Header("update", "0" * 32, 1, "any", "north", "0" * 64, ("a",))
    return encode(header, parts, tensors, Codecs())


@every_method
def test_what_is_sent_has_the_parts_that_the_method_states(name: str) -> None:
    method, state, sites = after_a_round(name)
    for site, update in updates(method, state, sites, 1):
        sent = [(method.uplink_parts(site.tasks), update)]
        sent.append((method.downlink_parts(site.tasks), method.downlink(state, site.name, site.tasks)))
        for parts, tensors in sent:
            opened = Envelope(message(parts, tensors)).tensors(parts)
            assert equal(opened, {part.name: tensors[part.name] for part in parts})
        down = {part.name: part for part in method.downlink_parts(site.tasks)}
        for part in method.uplink_parts(site.tasks):
            assert not part.against or down[part.against].shape == part.shape


@every_method
def test_what_does_not_fit_the_parts_is_not_sent(name: str) -> None:
    method, state, sites = after_a_round(name)
    site, good = updates(method, state, sites, 1)[2]
    parts = method.uplink_parts(site.tasks)
    for what, bad in broken_versions(good):
        try:
            message(parts, bad)
        except DataError:
            continue
        pytest.fail(f"{what}: sent")


@every_method
def test_a_message_with_other_parts_is_refused(name: str) -> None:
    method, state, sites = after_a_round(name)
    site, good = updates(method, state, sites, 1)[2]
    parts = method.uplink_parts(site.tasks)
    for i, part in enumerate(parts):
        fewer = [other for other in parts if other is not part and other.of != part.name]
        short = replace(part, shape=(part.shape[0] - 1, *part.shape[1:]))
        cut = good[part.name][:-1].clone()
        others = [(fewer, {other.name: good[other.name] for other in fewer})]
        if not any(other.of == part.name for other in parts):
            others.append(([*parts[:i], short, *parts[i + 1 :]], good | {part.name: cut}))
        for wrong, tensors in others:
            with pytest.raises(DataError, match="message"):
                Envelope(message(wrong, tensors)).tensors(parts)


@every_method
def test_what_clients_get_fits_and_is_what_they_train_from(name: str) -> None:
    method, state, sites = after_a_round(name)
    for site in sites:
        got = site.gets(method, state)
        assert tuple(got) == site.tasks
        updates(method, state, [site], 1)
        for task, one in got.items():
            assert one.vector.shape == (PROBLEM.dim,)
            assert one.head.shape == PROBLEM.head_shape(task)
            assert torch.equal(one.vector, site.starts[task].vector)
            assert torch.equal(one.head, site.starts[task].head)


@every_method
def test_only_personal_methods_give_clients_with_the_same_tasks_different_weights(name: str) -> None:
    method, state, sites = after_a_round(name)
    twin = Player("client-9", sites[0].samples)
    own, other = (site.gets(method, state) for site in (sites[0], twin))
    same = all(torch.equal(own[t].vector, other[t].vector) and torch.equal(own[t].head, other[t].head) for t in own)
    assert same != method.personal


def config_of(name: str, vit: Path, max_train: int = 40, **federation: Any) -> RunConfig:
    """A small run: four clients, three tasks."""
    return RunConfig(
        tasks=TasksConfig(tasks=("left", "middle", "right"), image_size=8, max_train=max_train),
        model=ModelConfig(backbone=str(vit), rank=4, alpha=4.0),
        federation=FederationConfig(
            **{"method": name, "clients": 4, "zeta_c": 1.0, "zeta_t": 0.5, "min_samples": 4} | federation
        ),
        training=TrainingConfig(batch_size=8, learning_rate=3e-2),
        evaluation=EvaluationConfig(evaluate_every=2, evaluate_images=10),
        machine=MachineConfig(precision="float32", threads=1),
    )


@pytest.fixture
def roots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(data=tiny_data, models=None, cache=tmp_path_factory.getbasetemp() / "cache")


@every_method
def test_it_learns(tiny_vit: Path, roots: Roots, tmp_path: Path, name: str) -> None:
    result = simulate(config_of(name, tiny_vit, 0, participation=1.0, rounds=6), tmp_path / "run", roots, QUIET)
    chance = sum(task["chance"] for task in result["tasks"].values()) / 3
    assert result["method"] == name
    assert result["failures"] == 0
    assert result["mean_accuracy"]["delivered"] > chance + 0.2


@every_method
def test_a_round_with_a_clients_tasks_trained_together_is_the_same_to_rounding(
    tiny_vit: Path, roots: Roots, tmp_path: Path, name: str
) -> None:
    config = config_of(name, tiny_vit, rounds=1, participation=1.0, tasks_per_client=3)
    ends = []
    for together in (1, 4):
        machine = dataclasses.replace(config.machine, together=together)
        out = tmp_path / str(together)
        simulate(dataclasses.replace(config, machine=machine), out, roots, QUIET)
        ends.append(load_file(out / "checkpoint/state-000001.safetensors"))
    one_by_one, at_once = ends
    assert one_by_one.keys() == at_once.keys()
    for key, expected in one_by_one.items():
        if expected.is_floating_point():
            close = torch.isclose(at_once[key], expected, rtol=1e-3, atol=1e-4)
            assert close.double().mean() > 0.99, key  # where a sign is a tie, rounding decides it


class StoppedError(Exception):
    pass


@every_method
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    tiny_vit: Path, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = config_of(name, tiny_vit, participation=0.5, rounds=5)
    whole = simulate(config, tmp_path / "whole", roots, QUIET)
    out, save, stop_at = tmp_path / "cut", simulate_module.save_checkpoint, random.Random(name).randint(2, 5)

    def stop(folder: Path, progress: Any, identity: str) -> None:
        if progress.round == stop_at:
            raise StoppedError  # after the round was recorded, before it was saved
        save(folder, progress, identity)

    monkeypatch.setattr("matu.simulate.save_checkpoint", stop)
    with pytest.raises(StoppedError):
        simulate(config, out, roots, QUIET)
    monkeypatch.undo()
    resumed = simulate(read_config(out / "config.toml"), out, roots, QUIET, resume=True, jobs=2)  # as many as it likes
    times = ("seconds", "images_per_second")
    assert {k: v for k, v in resumed.items() if k not in times} == {k: v for k, v in whole.items() if k not in times}
    last = "checkpoint/state-000005.safetensors"
    assert (out / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (out, tmp_path / "whole")
    ]
    for one, other in zip(*lines, strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}


def test_a_method_of_a_file_runs_and_a_changed_file_is_another_run(
    tiny_vit: Path, roots: Roots, tmp_path: Path
) -> None:
    path, content = tmp_path / "mine.py", "from matu.methods.fedavg import FedAvg\n\nclass Mine(FedAvg):\n    pass\n"
    path.write_text(content)
    config, out = config_of(str(path), tiny_vit, participation=0.5, rounds=2), tmp_path / "run"
    result = simulate(config, out, roots, QUIET)
    assert result["method"] == result["config"]["federation"]["method"] == "mine"
    assert str(tmp_path) not in (out / "result.json").read_text()
    fedavg = simulate(config_of("fedavg", tiny_vit, participation=0.5, rounds=2), tmp_path / "fedavg", roots, QUIET)
    assert result["accuracy"] == fedavg["accuracy"]
    (out / "result.json").unlink()
    path.write_text(content + "\n")
    with pytest.raises(ConfigError, match="another configuration"):
        simulate(config, out, roots, QUIET, resume=True)


@pytest.mark.parametrize("name", method_names())
def test_an_option_it_cannot_have_is_refused_before_a_folder_is_made(
    tiny_vit: Path, roots: Roots, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="options: 'colour=red'"):
        simulate(config_of(name, tiny_vit, options=("colour=red",)), tmp_path / "run", roots, QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ALONE)
def test_a_reference_runs_as_a_method_and_sends_nothing(
    tiny_vit: Path, roots: Roots, tmp_path: Path, name: str
) -> None:
    roots = dataclasses.replace(roots, cache=tmp_path / "cache")
    config = config_of(name, tiny_vit, participation=1.0, rounds=8)
    result = simulate(config, tmp_path / "run", roots, QUIET)
    chance = sum(task["chance"] for task in result["tasks"].values()) / 3
    assert result["mean_accuracy"]["delivered"] > chance + 0.2
    assert not any(result["bytes"].values())
    assert result["paper_mbits"] == 0
    alone = result["individual"]["left"]
    assert (alone is not None) == (name == "individual")
    if alone:
        assert result["accuracy"]["left"]["delivered"] == max(alone["budget"], alone["plateau"])
    again = simulate(config, tmp_path / "again", roots, QUIET)  # from what the cache remembers
    roots = dataclasses.replace(roots, cache=tmp_path / "another")
    beside = simulate(config, tmp_path / "beside", roots, QUIET, jobs=3)
    for other in (again, beside):
        assert (other["accuracy"], other["worst_client"]) == (result["accuracy"], result["worst_client"])


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images decoded once for all methods."""
    return tmp_path_factory.mktemp("demo-cache")


def refuse(constant: str) -> float:
    raise AssertionError(f"result.json holds {constant}")


@pytest.mark.parametrize("name", method_names())
def test_it_runs_on_the_bundled_tasks(
    demo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("matu.methods.individual.MOST_EPOCHS", 1)
    config = RunConfig(
        tasks=TasksConfig(tasks=("demo-8",), max_train=40, max_test=20),
        federation=FederationConfig(method=name, clients=4, participation=0.5, rounds=2),
        training=TrainingConfig(local_steps=1, batch_size=8),
        machine=MachineConfig(precision="float32", threads=1),
    )
    returned = simulate(config, tmp_path / "run", Roots(data=None, models=None, cache=demo_cache), QUIET)
    result = json.loads((tmp_path / "run/result.json").read_text(), parse_constant=refuse)
    assert result == returned
    assert len(result["accuracy"]) == 8
    assert all(0 <= found["delivered"] <= 1 for found in result["accuracy"].values())
    assert result["rounds"] == (2 if name in FEDERATED else 0)
    assert (result["bytes"]["uplink_total"] > 0) == (name in FEDERATED)
