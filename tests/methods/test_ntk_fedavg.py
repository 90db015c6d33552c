from matu.training import Objective
from playing import Player, at, build, close, play
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 2}, dim=2, features=1)
FIRST = {"a": at([4, 0], [[1, 2], [3, 4]]), "b": at([0, 8], [[0, 1], [1, 0]])}
SECOND = {"a": at([3, 6], [[5, 6], [7, 8]]), "b": at([7, -2], [[2, 2], [2, 2]])}


def rounds(*options: str):
    """North trains a (3 images) and b (1), twice."""
    method, north = build("ntk_fedavg", PROBLEM, *options), Player("north", {"a": 3, "b": 1})
    first = play(method, method.start(), [(north, FIRST)])
    return first, play(method, first, [(north, SECOND)]), north


def test_training_and_evaluation_are_linearised() -> None:
    assert build("ntk_fedavg", PROBLEM).objective == Objective(linearised=True)


def test_with_the_server_step_1_it_is_the_mean() -> None:
    first, second, north = rounds()
    close(first["adapter"], [3, 2])  # (3 · (4, 0) + (0, 8)) / 4
    close(second["adapter"], [4, 4])  # (3 · (3, 6) + (7, -2)) / 4
    close(north.starts["a"].vector, [3, 2])
    close(north.starts["b"].vector, [3, 2])


def test_a_server_step_of_0_3_goes_that_far_from_where_the_round_began() -> None:
    first, second, north = rounds("server_step=0.3")
    close(first["adapter"], [0.9, 0.6])
    close(second["adapter"], [0.9 + 0.3 * (4 - 0.9), 0.6 + 0.3 * (4 - 0.6)])
    close(north.starts["b"].vector, [0.9, 0.6])


def test_heads_are_means_whatever_the_server_step() -> None:
    for options in ((), ("server_step=0.3",)):
        first, second, _ = rounds(*options)
        close(first["head/a"], [[1, 2], [3, 4]])
        close(second["head/b"], [[2, 2], [2, 2]])
