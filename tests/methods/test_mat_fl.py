import itertools
import math

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from playing import Player, at, build, close, equal, play
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 2}, dim=2, features=1)


def head(number: float) -> list[list[float]]:
    return [[number, 0], [0, -number]]


def adapters(*vectors: tuple[float, float], samples: int = 1):
    """Clients site-0, site-1 … that hold task a alone and end at these vectors."""
    return [
        (Player(f"site-{i}", {"a": samples + i}), {"a": at(vector, head(i))}) for i, vector in enumerate(vectors)
    ]  # fmt: skip


# Three directions from the mean (0, 0): east, north-west, south-west. All of it lies far off at (100, 50), where
# the cosines of the adapters themselves would tell nothing apart.
OFF = (100.0, 50.0)
GEOMETRY = [
    ("north", 1, "a", (10, 1), 1), ("north", 9, "b", (-4, 9), 2),
    ("south", 5, "b", (10, -1), 3),
    ("east", 3, "b", (-6, 9), 4), ("east", 2, "a", (-4, -9), 5),
    ("west", 7, "a", (-6, -9), 6),
]  # fmt: skip
CENTRES = {"east": (10, 0), "north-west": (-5, 9), "south-west": (-5, -9)}


def geometry():
    trained = []
    for name in ("north", "south", "east", "west"):
        mine = [(samples, task, vector, h) for site, samples, task, vector, h in GEOMETRY if site == name]
        mine.sort(key=lambda one: one[1])
        ends = {task: at((vector[0] + OFF[0], vector[1] + OFF[1]), head(h)) for _, task, vector, h in mine}
        trained.append((Player(name, {task: samples for samples, task, _, _ in mine}), ends))
    return trained


def adapter_of(method, state, player: Player, task: str) -> torch.Tensor:
    return player.gets(method, state)[task].vector


def test_each_adapter_becomes_the_plain_mean_of_its_cluster() -> None:
    method, trained = build("mat_fl", PROBLEM), geometry()
    state = play(method, method.start(), trained)
    players = {player.name: player for player, _ in trained}
    belongs = {
        ("north", "a"): "east", ("south", "b"): "east",
        ("north", "b"): "north-west", ("east", "b"): "north-west",
        ("east", "a"): "south-west", ("west", "a"): "south-west",
    }  # fmt: skip
    for (site, task), cluster in belongs.items():
        x, y = CENTRES[cluster]
        close(adapter_of(method, state, players[site], task), [x + OFF[0], y + OFF[1]])


def test_heads_are_plain_means_of_the_same_task_in_the_cluster() -> None:
    method, trained = build("mat_fl", PROBLEM), geometry()
    state = play(method, method.start(), trained)
    found = {(p.name, task): one.head for p, _ in trained for task, one in p.gets(method, state).items()}
    close(found["north", "a"], head(1))  # its cluster holds no other a
    close(found["south", "b"], head(3))
    close(found["north", "b"], head(3))  # (2 + 4) / 2, whatever the samples
    close(found["east", "b"], head(3))
    close(found["east", "a"], head(5.5))
    close(found["west", "a"], head(5.5))


def test_two_clusters_join_the_two_that_are_nearest() -> None:
    # 0° and 30°, and a third that brings the mean to (0, 0)
    far = (-(3 + 2 * math.cos(math.pi / 6)), -2 * math.sin(math.pi / 6))
    method = build("mat_fl", PROBLEM, "clusters=2")
    trained = adapters((3, 0), (2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)), far)
    state = play(method, method.start(), trained)
    joined = [(3 + math.sqrt(3)) / 2, 0.5]
    for i, expected in enumerate((joined, joined, far)):
        close(adapter_of(method, state, trained[i][0], "a"), expected)
    close(trained[0][0].gets(method, state)["a"].head, head(0.5))


def test_one_cluster_is_the_plain_mean_of_all() -> None:
    method = build("mat_fl", PROBLEM, "clusters=1")
    trained = adapters((3, 0), (0, 6), (-6, 0), samples=5)
    state = play(method, method.start(), trained)
    for player, _ in trained:
        close(adapter_of(method, state, player, "a"), [-1, 2])
        close(player.gets(method, state)["a"].head, head(1))


def test_sums_that_depend_on_their_order_do_not_depend_on_that_of_arrival() -> None:
    method = build("mat_fl", PROBLEM, "clusters=1")
    trained = adapters((1e17, 0), (1, 1e-17), (-1e17, 0), (2, -3e-17))
    found = [play(method, method.start(), list(order)) for order in itertools.permutations(trained)]
    assert all(equal(found[0], other) for other in found)


def groups(vectors: torch.Tensor) -> set[frozenset[int]]:
    """Which rows are equal to each other."""
    return {
        frozenset(j for j in range(len(vectors)) if torch.equal(vectors[i], vectors[j])) for i in range(len(vectors))
    }


@pytest.mark.parametrize("clusters", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_clusters_are_those_of_scipy(seed: int, clusters: int) -> None:
    problem = tiny_problem({"a": 2}, dim=6, features=1)
    method = build("mat_fl", problem, f"clusters={clusters}")
    theta = np.random.default_rng(seed).normal(size=(12, 6)).astype(np.float32)
    trained = [(Player(f"site-{i:02d}", {"a": 1 + i}), {"a": at(theta[i].tolist(), head(i))}) for i in range(12)]
    state = play(method, method.start(), trained)
    found = torch.stack([adapter_of(method, state, player, "a") for player, _ in trained])

    delta = theta.astype(np.float64) - theta.astype(np.float64).mean(axis=0)
    labels = fcluster(linkage(delta, "average", metric="cosine"), clusters, "maxclust")
    assert groups(found) == {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    for i in range(12):
        close(found[i], theta[labels == labels[i]].astype(np.float64).mean(axis=0).tolist())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_where_there_are_no_more_adapters_than_clusters_each_stays_alone(count: int) -> None:
    method = build("mat_fl", PROBLEM)
    trained = adapters(*[(3.0, 0.5), (2.75, 0.5), (-1.5, 4.0)][:count])
    state = play(method, method.start(), trained)
    for i, (player, ends) in enumerate(trained):
        assert torch.equal(adapter_of(method, state, player, "a"), ends["a"].vector)
        close(player.gets(method, state)["a"].head, head(i))


@pytest.mark.parametrize("options", [(), ("clusters=2",), ("grouping=soft",)])
def test_adapters_without_a_difference_stay_what_they_are(options: tuple[str, ...]) -> None:
    method = build("mat_fl", PROBLEM, *options)
    trained = adapters(*[(0.1, -0.7)] * 5)
    state = play(method, method.start(), trained)
    for player, ends in trained:
        assert torch.equal(adapter_of(method, state, player, "a"), ends["a"].vector)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_an_adapter_at_the_mean_has_a_place_whatever_the_order() -> None:
    method = build("mat_fl", PROBLEM, "clusters=2")
    found = []
    for order in itertools.permutations(range(5)):
        trained = adapters((3, 0), (4, 0), (-3, 0), (-4, 0), (0, 0))
        found.append(play(method, method.start(), [trained[i] for i in order]))
    assert all(equal(found[0], other) for other in found)
    values = [found[0][f"adapter/site-{i}/a"] for i in range(5)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[2], values[3])
    assert not torch.equal(values[0], values[2])
    assert any(torch.equal(values[4], other) for other in (values[0], values[2]))


SOFT = [(2.0, 0.0), (1.0, 1.0), (-2.0, 0.0), (-1.0, -1.0)]  # mean (0, 0); cosines 1/√2, -1 and -1/√2


def test_soft_weights_are_the_positive_cosines_in_rows_of_sum_1() -> None:
    method = build("mat_fl", PROBLEM, "grouping=soft")
    trained = adapters(*[(x + OFF[0], y + OFF[1]) for x, y in SOFT], samples=3)
    state = play(method, method.start(), trained)
    c = 1 / math.sqrt(2)
    expected = [
        ((2 + c) / (1 + c), c / (1 + c)), ((1 + 2 * c) / (1 + c), 1 / (1 + c)),
        (-(2 + c) / (1 + c), -c / (1 + c)), (-(1 + 2 * c) / (1 + c), -1 / (1 + c)),
    ]  # fmt: skip
    for (player, _), (x, y) in zip(trained, expected, strict=True):
        close(adapter_of(method, state, player, "a"), [x + OFF[0], y + OFF[1]])
    close(trained[0][0].gets(method, state)["a"].head, head(c / (1 + c)))  # of heads 0 and 1


def test_soft_heads_are_those_of_the_same_task_alone() -> None:
    method = build("mat_fl", PROBLEM, "grouping=soft")
    trained = [
        (Player(f"site-{i}", {task: 1}), {task: at(SOFT[i], head(i))}) for i, task in enumerate(("a", "b", "b", "b"))
    ]  # fmt: skip
    state = play(method, method.start(), trained)
    c = 1 / math.sqrt(2)
    close(trained[0][0].gets(method, state)["a"].head, head(0))
    close(trained[1][0].gets(method, state)["b"].head, head(1))  # the other two b point away
    close(trained[2][0].gets(method, state)["b"].head, head((2 + 3 * c) / (1 + c)))


def test_soft_is_numpys_on_random_adapters() -> None:
    problem = tiny_problem({"a": 2}, dim=6, features=1)
    method = build("mat_fl", problem, "grouping=soft")
    theta = np.random.default_rng(5).normal(size=(9, 6)).astype(np.float32).astype(np.float64)
    trained = [(Player(f"site-{i}", {"a": 1 + i}), {"a": at(theta[i].tolist(), head(i))}) for i in range(9)]
    state = play(method, method.start(), trained)
    delta = theta - theta.mean(axis=0)
    for i, (player, _) in enumerate(trained):
        lengths = np.sqrt((delta**2).sum(axis=1))
        weights = np.maximum(0, delta @ delta[i] / (lengths * lengths[i]))
        close(adapter_of(method, state, player, "a"), (weights @ theta / weights.sum()).tolist())


def test_every_client_trains_from_its_own_adapters_and_keeps_them_while_it_is_not_drawn() -> None:
    method, trained = build("mat_fl", PROBLEM), geometry()
    state = play(method, method.start(), trained)
    before = {p.name: p.gets(method, state) for p, _ in trained}
    north, _ = trained[0]
    after = play(method, state, [(north, {"a": at([1, 1], head(7)), "b": at([2, 2], head(8))})])
    for task in ("a", "b"):
        assert torch.equal(north.starts[task].vector, before["north"][task].vector)
        assert torch.equal(north.starts[task].head, before["north"][task].head)
    assert not torch.equal(north.starts["a"].vector, north.starts["b"].vector)
    close(adapter_of(method, after, north, "a"), [1, 1])  # two adapters arrived, for three clusters
    for player, _ in trained[1:]:
        for task, one in player.gets(method, after).items():
            assert torch.equal(one.vector, before[player.name][task].vector)
            assert torch.equal(one.head, before[player.name][task].head)


def test_a_client_that_was_never_drawn_has_the_base_and_the_server_has_no_model() -> None:
    method = build("mat_fl", PROBLEM)
    state = play(method, method.start(), geometry())
    for one in Player("late", {"a": 1, "b": 2}).gets(method, state).values():
        assert not one.vector.any()
        assert not one.head.any()
    assert method.personal
    assert method.server_weights(state) is None


def test_the_mean_is_of_the_adapters_received_not_of_all_that_are_known() -> None:
    method = build("mat_fl", PROBLEM, "clusters=2")
    state = play(method, method.start(), adapters((1000, 0), (-1000, 5), (500, 900)))
    trained = adapters((3, 0), (4, 1), (-3, 0), (-4, -1))
    found = play(method, state, trained)
    for i, expected in enumerate(([3.5, 0.5], [3.5, 0.5], [-3.5, -0.5], [-3.5, -0.5])):
        close(adapter_of(method, found, trained[i][0], "a"), expected)


def test_the_papers_bits() -> None:
    assert build("mat_fl", PROBLEM).paper_bits(("a", "b")) == 32 * (2 * 2 + 8)
