"""What hostile clients do to a round, with bounds and without."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matu.config import DefenceConfig, RunConfig
from matu.errors import DataError
from matu.federation.defence import Guard
from matu.methods import Method, State, find_method, method_names
from matu.methods.matu import Matu
from matu.methods.per_task_fedavg import PerTaskFedAvg
from matu.training import Weights
from playing import Player, block_problem, build, equal, random_ends
from world import tiny_problem

DIM = 400
PROBLEM = tiny_problem({"a": 2, "b": 3}, dim=DIM, features=3)
OFF = DefenceConfig(sample_limit=1 << 40)
"""A guard that cuts nothing."""
Updates = Mapping[str, tuple[Sequence[str], Sequence[int], dict[str, Tensor]]]


def truth(seed: int = 0) -> dict[str, Weights]:
    return random_ends(PROBLEM, ("a", "b"), seed)


def honest(
    method: Method, clients: int, noise: float = 0.3
) -> dict[str, tuple[Sequence[str], Sequence[int], dict[str, Tensor]]]:
    """Clients of both tasks that all found about the same."""
    found = {}
    for number in range(clients):
        draw = torch.Generator().manual_seed(100 + number)
        ends = {
            task: Weights(*(part + noise * torch.randn(part.shape, generator=draw) for part in one))
            for task, one in truth().items()
        }
        player = Player(f"client-{number}", {"a": 20 + number, "b": 30})
        found[player.name] = (player.tasks, tuple(player.samples.values()), player.answer(method, {}, ends))
    return found


def state_after(method: Method, updates: Updates, config: DefenceConfig | None) -> tuple[State, Guard | None]:
    guard = Guard(method, {}, config) if config else None
    gathering = guard or method.begin_round({})
    for site, (tasks, samples, tensors) in updates.items():
        gathering.add(site, tasks, samples, tensors)
    return gathering.finish(), guard


def damage(method: Method, updates: Updates, clean: Updates, config: DefenceConfig | None) -> float:
    """How far the server's task vectors are from those without the hostile, relative to these."""
    states = [state_after(method, one, config)[0] for one in (updates, clean)]
    found = [torch.cat([method.server_weights(state)[task].vector for task in ("a", "b")]) for state in states]  # type: ignore[index]
    return float((found[0] - found[1]).norm() / found[1].norm())


@pytest.mark.parametrize("name", [n for n in method_names() if issubclass(find_method(n), Method)])
def test_a_guard_that_cuts_nothing_changes_nothing(name: str) -> None:
    problem = block_problem({"a": 2, "b": 3}, ("0", "1"), features=2, width=3)
    method = build(name, problem)
    players = [Player("x", {"a": 3, "b": 4}), Player("y", {"b": 9}), Player("z", {"a": 5})]
    sent = [(one, one.answer(method, {}, random_ends(problem, one.tasks, i))) for i, one in enumerate(players)]
    states = []
    for gathering in (method.begin_round({}), Guard(method, {}, OFF)):
        for player, tensors in sent:
            gathering.add(player.name, player.tasks, tuple(player.samples.values()), tensors)
        states.append(gathering.finish())
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-5, atol=1e-6)


def test_an_empty_round_is_empty_behind_a_guard() -> None:
    state: State = {"head/a": torch.zeros(2, 4)}
    assert Guard(Matu(PROBLEM, RunConfig()), state, OFF).finish() is state


METHODS = [Matu(PROBLEM, RunConfig()), PerTaskFedAvg(PROBLEM, RunConfig())]
BOUNDS = DefenceConfig(norm_limit=2.0, rescaler_limit=10.0, sample_limit=100)


@pytest.mark.parametrize("method", METHODS, ids=["matu", "per_task_fedavg"])
class TestAttacks:
    def with_hostile(self, method: Method, change: str) -> tuple[Updates, Updates]:
        clean = honest(method, 4)
        bad = Player("hostile", {"a": 25, "b": 30})
        ends = {task: Weights(one.vector.clone(), one.head.clone()) for task, one in truth().items()}
        samples = [25, 30]
        for task, one in ends.items():
            if change == "sign flip":
                ends[task] = Weights(-one.vector, -one.head)
            elif change == "times 1000":
                ends[task] = Weights(1000 * one.vector, 1000 * one.head)
            elif change == "huge coordinate":
                one.vector[7] = 1e12
            elif change == "samples":
                ends[task], samples = Weights(-one.vector, one.head), [1 << 31, 1 << 31]
        return clean | {"hostile": (bad.tasks, samples, bad.answer(method, {}, ends))}, clean

    def test_scaling_by_1000_is_bounded(self, method: Method) -> None:
        hostile, clean = self.with_hostile(method, "times 1000")
        assert damage(method, hostile, clean, None) > 100
        assert damage(method, hostile, clean, BOUNDS) < 0.5
        _, guard = state_after(method, hostile, BOUNDS)
        assert guard is not None
        assert list(guard.bounded) == ["hostile"]
        assert any("a: vector" in said and "times the median" in said for said in guard.bounded["hostile"])
        assert any("b: head" in said for said in guard.bounded["hostile"])

    def test_one_huge_coordinate_is_bounded(self, method: Method) -> None:
        hostile, clean = self.with_hostile(method, "huge coordinate")
        assert damage(method, hostile, clean, None) > 1e9
        assert damage(method, hostile, clean, BOUNDS) < 0.9
        assert damage(method, hostile, clean, replace(BOUNDS, trim=0.2)) < 0.3

    def test_a_claim_of_samples_is_bounded(self, method: Method) -> None:
        hostile, clean = self.with_hostile(method, "samples")
        assert damage(method, hostile, clean, None) > 1.8
        assert damage(method, hostile, clean, BOUNDS) < 1.2
        assert damage(method, hostile, clean, replace(BOUNDS, sample_limit=25)) < 0.6

    def test_a_sign_flip_is_an_honest_length_and_only_trimming_helps(self, method: Method) -> None:
        hostile, clean = self.with_hostile(method, "sign flip")
        plain = damage(method, hostile, clean, None)
        assert damage(method, hostile, clean, BOUNDS) == pytest.approx(plain, rel=0.05)
        assert damage(method, hostile, clean, replace(BOUNDS, trim=0.2)) < 0.6 * plain

    def test_half_of_the_holders_hostile_is_beyond_any_bound(self, method: Method) -> None:
        clean = honest(method, 2)
        flipped = {task: Weights(-one.vector, one.head) for task, one in truth().items()}
        bad = {
            name: (("a", "b"), (25, 30), Player(name, {"a": 25, "b": 30}).answer(method, {}, flipped))
            for name in ("evil", "worse")
        }
        assert damage(method, clean | bad, clean, replace(BOUNDS, trim=0.4)) > 0.9


def test_a_rescaler_beyond_the_limit_leaves_the_client_out() -> None:
    method = Matu(PROBLEM, RunConfig())
    tensors = honest(method, 1)["client-0"][2]
    tensors["rescalers"] = torch.tensor([1.0, 11.0])
    with pytest.raises(DataError, match="a rescaler of 11, rescaler_limit is 10"):
        Guard(method, {}, BOUNDS).add("client-0", ("a", "b"), (1, 1), tensors)


def test_a_client_has_one_vote_whatever_its_samples() -> None:
    method = Matu(PROBLEM, RunConfig())
    updates = honest(method, 3)
    tasks, _, tensors = updates["client-0"]
    loud = updates | {"client-0": (tasks, (1 << 31, 1 << 31), tensors)}
    votes = [state_after(method, one, None)[0]["votes/a"] for one in (updates, loud)]
    assert torch.equal(*votes)


@settings(max_examples=60)
@given(st.integers(1, 7), st.floats(0, 0.49), st.integers(0, 2**32))
def test_trimmed_means_are_those_of_a_literal_computation(clients: int, trim: float, seed: int) -> None:
    problem = tiny_problem({"a": 2}, dim=5, features=1)
    method = PerTaskFedAvg(problem, RunConfig())
    draw = np.random.default_rng(seed)
    values = draw.integers(-3, 4, (clients, 5)).astype(np.float32)  # ties
    samples = draw.integers(1, 9, clients)
    guard = Guard(method, {}, DefenceConfig(trim=max(trim, 1e-9)))
    for i in draw.permutation(clients):
        tensors = {"adapter/a": torch.from_numpy(values[i]), "head/a": torch.zeros(2, 2)}
        guard.add(f"c{i}", ("a",), (int(samples[i]),), tensors)
    got = guard.finish()["adapter/a"].tolist()
    cut = int(trim * clients + 1e-9)
    for j in range(5):
        ranked = sorted(range(clients), key=lambda i: (values[i, j], i))[cut : clients - cut]
        expected = sum(samples[i] * values[i, j] for i in ranked) / sum(samples[i] for i in ranked)
        assert got[j] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_behind_a_guard_the_order_of_arrival_changes_no_bit() -> None:
    method = Matu(PROBLEM, RunConfig())
    updates = honest(method, 4)
    config = DefenceConfig(norm_limit=1.0, trim=0.25)
    first = state_after(method, updates, config)[0]
    for order in itertools.permutations(updates):
        assert equal(state_after(method, {site: updates[site] for site in order}, config)[0], first)


def length_after(sent: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Root mean square of the server's vectors after a round behind a norm limit; each site sends constant vectors."""
    method = PerTaskFedAvg(PROBLEM, RunConfig())
    guard = Guard(method, {}, DefenceConfig(norm_limit=2.0))
    for site, sizes in sent.items():
        tensors = {f"adapter/{task}": torch.full((PROBLEM.dim,), size) for task, size in sizes.items()}
        tensors |= {f"head/{task}": torch.ones(PROBLEM.head_shape(task)) for task in sizes}
        guard.add(site, tuple(sizes), (1,) * len(sizes), tensors)
    state = guard.finish()
    return {name[8:]: float(state[name].square().mean().sqrt()) for name in state if name.startswith("adapter/")}


def test_of_two_sites_nobody_can_tell_which_is_too_long() -> None:
    """A tiny vector of one site would take the other's away."""
    assert length_after({"honest": {"a": 3.0}, "hostile": {"b": 1e-20}})["a"] == pytest.approx(3)


def test_what_is_zero_has_no_length_to_go_by() -> None:
    found = length_after({"x": {"a": 3.0}, "y": {"a": 3.0}, "hostile": {"a": 0.0, "b": 1e9}})
    assert found["b"] == pytest.approx(6)
