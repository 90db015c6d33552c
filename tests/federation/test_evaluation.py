"""What is measured on the way beside accuracy: how alike tasks are, and what a client gets of the server's vector."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import oracle
from matu.config import WireConfig
from matu.federation.evaluation import Evaluator
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from matu.training import Weights
from matu.wire import Codecs, Numbers
from playing import Player, build, play, random_ends
from test_simulate import small
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 3, "c": 2}, dim=40, features=4)
CLIENTS = {"north": ("a", "b"), "south": ("a", "b", "c"), "west": ("b",)}


def geometry(name: str, tasks: tuple[str, ...], codecs: Codecs | None = None):
    """Of the state after one client with these tasks trained somewhere."""
    method = build(name, PROBLEM)
    player = Player("south", dict.fromkeys(tasks, 5))
    state = play(method, method.start(), [(player, random_ends(PROBLEM, tasks, 4))])
    trainer = SimpleNamespace(crew=None, accuracy=lambda *_: 0.5)
    splits = {t: SimpleNamespace(test=SimpleNamespace(labels=[0])) for t in PROBLEM.tasks}
    evaluator = Evaluator(method, trainer, splits, CLIENTS, lambda _: {}, 0, codecs or Codecs())
    return evaluator.on_the_way(state, 0), method.server_weights(state)


def test_clients_are_alike_only_if_their_tasks_are() -> None:
    problem = tiny_problem({"a": 2, "b+c": 2, "a+b": 2, "c": 2}, dim=4, features=4)
    method = build("fedavg", problem)
    clients = {"north": ("a", "b+c"), "south": ("a+b", "c")}
    names = {"a": 0.1, "b+c": 0.2, "a+b": 0.3, "c": 0.4}
    splits = {t: SimpleNamespace(test=SimpleNamespace(labels=[0], accuracy=a)) for t, a in names.items()}
    trainer = SimpleNamespace(crew=None, accuracy=lambda weights, split, some: split.accuracy)
    found = Evaluator(method, trainer, splits, clients, lambda _: {}, 0, Codecs()).on_the_way(method.start(), 0)
    assert found.delivered == names


def test_similarity_is_the_mean_of_eq_5_over_pairs() -> None:
    found, server = geometry("per_task_fedavg", ("a", "b", "c"))
    rows = [server[task].vector.tolist() for task in PROBLEM.tasks]
    pairs = [oracle.similarity(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.similarity == pytest.approx(sum(pairs) / 3)


def test_a_task_without_a_vector_is_no_task_to_compare() -> None:
    two, server = geometry("per_task_fedavg", ("a", "b"))
    assert two.similarity == pytest.approx(oracle.similarity(*(server[t].vector.tolist() for t in ("a", "b"))))
    one, _ = geometry("per_task_fedavg", ("a",))
    assert one.similarity is None
    assert one.cosine == {k: pytest.approx(1) for k in (2, 3)}, "b alone at west has no vector yet"


def test_exact_messages_of_whole_vectors_leave_everything() -> None:
    found, _ = geometry("per_task_fedavg", ("a", "b", "c"))
    assert found.cosine == {k: pytest.approx(1) for k in (1, 2, 3)}


def test_cosine_is_that_of_what_a_client_with_so_many_tasks_gets() -> None:
    found, server = geometry("matu", ("a", "b", "c"))
    method = build("matu", PROBLEM)
    sent = method._pack({t: server[t] for t in ("a", "b")})
    gets: dict[str, Weights] = method.weights(("a", "b"), sent, {})
    expected = [torch.cosine_similarity(gets[t].vector, server[t].vector, dim=0) for t in ("a", "b")]
    assert found.cosine[2] == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert found.cosine[1] == pytest.approx(1)


def test_what_codecs_lose_counts() -> None:
    coarse = Codecs(Numbers("2bit"), Numbers("2bit"))
    found, _ = geometry("per_task_fedavg", ("a", "b", "c"), coarse)
    assert 0.8 < found.cosine[1] < 0.99


def test_both_stand_in_the_metrics_of_a_run(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    roots = Roots(tiny_data, None, tmp_path / "cache")
    config = small(tiny_vit, rounds=3, evaluate_every=1, downlink=WireConfig.exact().downlink)
    simulate(config, tmp_path / "run", roots, Display(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0.3 < line["similarity"] <= 1 for line in lines[:2])
    for line in lines[:2]:
        assert line["cosine"]
        assert all(0 < value <= 1 + 1e-9 for value in line["cosine"].values())
    assert "similarity" not in lines[2]
