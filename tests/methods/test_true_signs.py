"""Masks read as signs, and the best magnitude that tasks can share."""

import pytest
import torch

from matu.config import MatuConfig, RunConfig
from matu.errors import ConfigError
from matu.methods.true_signs import TrueSigns, share_magnitudes
from matu.vectors import unify
from playing import Player, build, close, play, random_ends
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 3, "c": 2}, dim=31, features=4)


def opened(vectors: torch.Tensor) -> torch.Tensor:
    vector, masks, rescalers = share_magnitudes(vectors)
    return rescalers[:, None] * torch.where(masks, vector, -vector)


def draw(k: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_every_sign_is_kept(k: int, seed: int) -> None:
    vectors = draw(k, 200, seed)
    assert torch.equal(opened(vectors).sign(), vectors.sign())


def test_one_task_comes_back_as_it_was() -> None:
    vectors = draw(1, 50, 0)
    vectors[0, :5] = 0
    assert torch.equal(opened(vectors), vectors)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_tasks_of_proportional_magnitudes_come_back_exactly(k: int) -> None:
    shared, signs = draw(1, 100, 1).abs(), draw(k, 100, 2).sign()
    vectors = signs * shared * torch.arange(1, k + 1)[:, None]
    torch.testing.assert_close(opened(vectors), vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_no_other_magnitudes_are_nearer(seed: int) -> None:
    """Alternating least squares from random starts finds nothing better."""
    vectors = draw(3, 60, seed)
    error = float((opened(vectors) - vectors).double().square().sum())
    sizes, generator = vectors.double().abs(), torch.Generator().manual_seed(seed + 100)
    for _ in range(5):
        scale = torch.rand(3, generator=generator).double()
        for _ in range(200):
            shared = (scale @ sizes) / scale.square().sum()
            scale = (sizes @ shared) / shared.square().sum()
        assert error <= float((scale[:, None] * shared - sizes).square().sum()) * (1 + 1e-5)


def test_it_is_nearer_than_the_papers_unification() -> None:
    vectors = draw(4, 5000, 3)
    papers = unify(vectors)
    paper = torch.stack([papers.modulate(i) for i in range(4)])
    cosines = [torch.cosine_similarity(form, vectors).mean() for form in (opened(vectors), paper)]
    assert cosines[0] == pytest.approx(0.853, abs=0.01)
    assert cosines[1] == pytest.approx(0.774, abs=0.01)


def test_zeros_and_ties() -> None:
    assert not opened(torch.zeros(3, 4)).any()
    close(opened(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])), [[2, 0], [-2, 0]])


def test_a_site_gets_true_signs_and_its_update_stands_for_them() -> None:
    method = build("true_signs", PROBLEM)
    north = Player("north", {"a": 3, "b": 4})
    ends = random_ends(PROBLEM, north.tasks, 5)
    update = north.answer(method, method.start(), ends)
    for task, found in method.reported(north.tasks, update).items():
        assert torch.equal(found.vector.sign(), ends[task].vector.sign())
    state = play(method, method.start(), [(north, ends)])
    server, gets = method.server_weights(state), north.gets(method, state)
    for task in north.tasks:
        assert torch.equal(gets[task].vector.sign(), server[task].vector.sign())


def test_without_unification_there_is_nothing_to_read() -> None:
    with pytest.raises(ConfigError, match="unification"):
        TrueSigns(PROBLEM, RunConfig(matu=MatuConfig(unification=False)))
