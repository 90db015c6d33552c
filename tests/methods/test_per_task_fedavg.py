import torch

from playing import Player, at, build, close, play
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 2, "c": 3}, dim=2, features=1)
A = at([1, 0], [[1, 2], [3, 4]])
B = at([0, 10], [[10, 0], [0, 10]])
OTHER_B = at([5, -5], [[0, 5], [5, 0]])


def round_1():
    """North trains a (3 images) and b (1), south b (4)."""
    method = build("per_task_fedavg", PROBLEM)
    north, south = Player("north", {"a": 3, "b": 1}), Player("south", {"b": 4})
    state = play(method, method.start(), [(north, {"a": A, "b": B}), (south, {"b": OTHER_B})])
    return method, state, north, south


def test_each_task_is_averaged_over_its_holders_alone() -> None:
    method, state, _, _ = round_1()
    found = method.server_weights(state)
    close(found["a"].vector, [1, 0])
    close(found["b"].vector, [4, -2])  # (1 · (0, 10) + 4 · (5, -5)) / 5
    close(found["a"].head, [[1, 2], [3, 4]])
    close(found["b"].head, [[2, 4], [4, 2]])
    assert not found["c"].vector.any()
    assert found["c"].head.shape == (3, 2)


def test_a_client_gets_its_tasks_adapters_and_trains_from_them() -> None:
    method, state, north, _ = round_1()
    assert set(method.downlink(state, "north", ("a", "b"))) == {"adapter/a", "adapter/b", "head/a", "head/b"}
    play(method, state, [(north, {"a": A, "b": B})])
    close(north.starts["a"].vector, [1, 0])
    close(north.starts["b"].vector, [4, -2])
    close(north.starts["b"].head, [[2, 4], [4, 2]])


def test_a_task_without_holders_keeps_what_it_has() -> None:
    method, state, _, south = round_1()
    after = play(method, state, [(south, {"b": A})])
    found = method.server_weights(after)
    close(found["a"].vector, [1, 0])
    close(found["b"].vector, [1, 0])
    assert not method.personal
    assert torch.equal(method.server_weights(state)["b"].vector, torch.tensor([4.0, -2.0]))


def test_the_papers_bits() -> None:
    method = build("per_task_fedavg", PROBLEM)
    assert method.paper_bits(("a", "c")) == 32 * (2 * 2 + 4 + 6)
