import torch

from playing import Player, at, build, close, play
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 2, "c": 3}, dim=2, features=1)
A = at([1, 0], [[1, 2], [3, 4]])
B = at([0, 8], [[10, 0], [0, 10]])
OTHER_B = at([2, -2], [[0, 5], [5, 0]])


def round_1():
    """North trains a (3 images) and b (1), south b (4)."""
    method = build("fedavg", PROBLEM)
    north, south = Player("north", {"a": 3, "b": 1}), Player("south", {"b": 4})
    state = play(method, method.start(), [(north, {"a": A, "b": B}), (south, {"b": OTHER_B})])
    return method, state, north, south


def test_the_adapter_is_the_sample_weighted_mean_over_clients_and_tasks() -> None:
    _, state, _, _ = round_1()
    # (3 · (1, 0) + 1 · (0, 8) + 4 · (2, -2)) / 8
    close(state["adapter"], [11 / 8, 0])


def test_a_head_is_the_sample_weighted_mean_of_its_task_alone() -> None:
    _, state, _, _ = round_1()
    close(state["head/a"], [[1, 2], [3, 4]])
    close(state["head/b"], [[2, 4], [4, 2]])  # (1 · B + 4 · other) / 5
    assert set(state) == {"adapter", "head/a", "head/b"}


def test_before_round_1_everybody_gets_the_base() -> None:
    method = build("fedavg", PROBLEM)
    for task, one in Player("north", {"a": 1, "c": 1}).gets(method, method.start()).items():
        assert torch.equal(one.vector, torch.zeros(2))
        assert torch.equal(one.head, torch.zeros(PROBLEM.classes[task], 2))


def test_every_task_is_trained_on_its_own_from_the_one_adapter() -> None:
    method, state, north, _ = round_1()
    play(method, state, [(north, {"a": A, "b": B})])
    for task, head in (("a", [[1, 2], [3, 4]]), ("b", [[2, 4], [4, 2]])):
        close(north.starts[task].vector, [11 / 8, 0])
        close(north.starts[task].head, head)


def test_a_client_is_sent_the_adapter_and_its_own_heads_and_sends_an_adapter_a_task() -> None:
    method, state, north, south = round_1()
    assert set(method.downlink(state, "south", ("b",))) == {"adapter", "head/b"}
    assert set(north.answer(method, state, {"a": A, "b": B})) == {"adapter/a", "adapter/b", "head/a", "head/b"}
    assert north.memory == south.memory == {}


def test_the_next_round_replaces_the_adapter_and_leaves_heads_without_a_holder() -> None:
    method, state, _, south = round_1()
    state = play(method, state, [(south, {"b": at([-1, 7], [[1, 1], [1, 1]])})])
    close(state["adapter"], [-1, 7])
    close(state["head/a"], [[1, 2], [3, 4]])
    close(state["head/b"], [[1, 1], [1, 1]])


def test_a_task_nobody_has_seen_gets_the_trained_adapter_and_a_zero_head() -> None:
    method, state, _, _ = round_1()
    unseen = Player("east", {"c": 2}).gets(method, state)["c"]
    close(unseen.vector, [11 / 8, 0])
    assert not unseen.head.any()


def test_the_server_has_one_adapter_and_a_head_a_task() -> None:
    method, state, _, _ = round_1()
    found = method.server_weights(state)
    assert list(found) == ["a", "b", "c"]
    for one in found.values():
        close(one.vector, [11 / 8, 0])
    close(found["b"].head, [[2, 4], [4, 2]])


def test_clients_with_the_same_tasks_get_the_same() -> None:
    method, state, _, _ = round_1()
    assert not method.personal
    first, second = (Player(name, {"a": 1, "b": 9}).gets(method, state) for name in ("north", "unheard"))
    assert all(torch.equal(first[t].vector, second[t].vector) for t in ("a", "b"))


def test_the_papers_bits() -> None:
    method = build("fedavg", PROBLEM)
    assert method.paper_bits(("a",)) == 32 * (2 + 4)
    assert method.paper_bits(("a", "c")) == 32 * (2 * 2 + 4 + 6)
