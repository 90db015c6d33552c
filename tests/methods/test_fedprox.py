from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matu.training import Objective, Weights
from playing import Player, build, equal, play, random_ends
from world import tiny_problem, tiny_task, tiny_trainer

PROBLEM = tiny_problem({"a": 2, "b": 3}, dim=5, features=2)


def test_mu_is_0_01_unless_told_and_nothing_else_is_asked() -> None:
    assert build("fedprox", PROBLEM).objective == Objective(proximal=0.01)
    assert build("fedprox", PROBLEM, "mu=0.1").objective == Objective(proximal=0.1)


def test_with_the_same_trainings_it_aggregates_as_fedavg_does() -> None:
    states = []
    for name in ("fedprox", "fedavg"):
        method = build(name, PROBLEM)
        players = [Player("north", {"a": 3, "b": 2}), Player("south", {"b": 5})]
        state = method.start()
        for number in range(2):
            state = play(
                method, state, [(p, random_ends(PROBLEM, p.tasks, 9 * number + len(p.tasks))) for p in players]
            )
        states.append(state)
    assert equal(*states)


@pytest.mark.parametrize("part", ["vector", "head"])
def test_a_larger_mu_keeps_adapter_and_head_nearer_to_their_start(tiny_vit: Path, part: str) -> None:
    plain, task = tiny_trainer(tiny_vit, gradient_clip=0), tiny_task("left")
    start = Weights(torch.full((plain.model.dim,), 0.02), torch.full((3, 17), -0.05))

    def distance(mu: str) -> float:
        trainer = replace(plain, objective=build("fedprox", PROBLEM, mu).objective)
        trained, _ = trainer.train(start, task.train, np.arange(60), np.random.default_rng(0), steps=20)
        return float((getattr(trained, part) - getattr(start, part)).norm())

    distances = [distance(mu) for mu in ("mu=0", "mu=0.1", "mu=1", "mu=100")]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.8 * distances[0]


def test_without_mu_a_site_trains_as_in_fedavg(tiny_vit: Path) -> None:
    plain, task = tiny_trainer(tiny_vit), tiny_task("left")
    start = Weights(torch.zeros(plain.model.dim), torch.zeros(3, 17))
    found = [
        replace(plain, objective=build(name, PROBLEM, *options).objective).train(
            start, task.train, np.arange(60), np.random.default_rng(0), steps=4
        )[0]
        for name, options in (("fedavg", ()), ("fedprox", ("mu=0",)), ("fedprox", ("mu=0.5",)))
    ]
    assert torch.equal(found[0].vector, found[1].vector)
    assert torch.equal(found[0].head, found[1].head)
    assert not torch.equal(found[0].vector, found[2].vector)
