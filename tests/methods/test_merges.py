"""Task arithmetic and TIES: the round's task vectors, merged into one adapter."""

import numpy as np
import pytest
import torch

from matu.methods import Local
from matu.vectors.merging import ties
from playing import Player, at, build, close, play
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2, "b": 2, "c": 3}, dim=2, features=1)
A = at([1, 0], [[1, 2], [3, 4]])
B = at([0, 10], [[10, 0], [0, 10]])
OTHER_B = at([5, -5], [[0, 5], [5, 0]])
ROUND_1 = [(Player("north", {"a": 3, "b": 1}), {"a": A, "b": B}), (Player("south", {"b": 4}), {"b": OTHER_B})]


def five(**tasks: tuple[float, ...]):
    """One client with some tasks whose trainings end at these vectors of five numbers."""
    problem = tiny_problem(dict.fromkeys(tasks, 2), dim=5, features=1)
    ends = {task: at(vector, [[0, 0], [0, 0]]) for task, vector in tasks.items()}
    return problem, [(Player("north", dict.fromkeys(tasks, 1)), ends)]


def test_the_tasks_means_are_summed_with_the_scale() -> None:
    method = build("task_arithmetic", PROBLEM, "scale=0.5")
    state = play(method, method.start(), ROUND_1)
    # a: (1, 0) over its one holder; b: (1 · (0, 10) + 4 · (5, -5)) / 5 = (4, -2)
    close(state["adapter"], [2.5, -1])
    close(state["head/a"], [[1, 2], [3, 4]])
    close(state["head/b"], [[2, 4], [4, 2]])
    assert "head/c" not in state


def test_0_3_is_the_scale_unless_told() -> None:
    method = build("task_arithmetic", PROBLEM)
    close(play(method, method.start(), ROUND_1)["adapter"], [1.5, -0.6])


def test_a_negative_scale_goes_the_other_way() -> None:
    method = build("task_arithmetic", PROBLEM, "scale=-1")
    close(play(method, method.start(), ROUND_1)["adapter"], [-5, 2])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # the changes of the round: a (4, 3) - (2.5, -1) = (1.5, 4), b (3.5, -4) - (2.5, -1) = (1, -3)
        ("task_arithmetic", ("scale=0.5",), [2.5 + 0.5 * 2.5, -1 + 0.5 * 1]),
        # round 1: (1, 0) and (4, -2) agree in their first entry, the second stands alone: (2.5, -2)
        # round 2: (1.5, 5) and (1, -2); first entry 1.25, second elects +
        ("ties", ("keep=1",), [2.5 + 1.25, -2 + 5]),
    ],
)
def test_a_later_round_adds_its_changes_to_the_adapter(name: str, options: tuple[str, ...], expected) -> None:
    method = build(name, PROBLEM, *options)
    north = Player("north", {"a": 3, "b": 1})
    state = play(method, method.start(), ROUND_1)
    state = play(method, state, [(north, {"a": at([4, 3], [[0, 0], [0, 0]]), "b": at([3.5, -4], [[1, 1], [1, 1]])})])
    close(north.starts["a"].vector, north.starts["b"].vector.tolist())
    close(state["adapter"], expected)
    close(state["head/b"], [[1, 1], [1, 1]])


def test_training_that_changes_nothing_leaves_the_adapter() -> None:
    for name in ("task_arithmetic", "ties"):
        method = build(name, PROBLEM)
        state = play(method, method.start(), ROUND_1)
        stay = at(state["adapter"].tolist(), [[0, 0], [0, 0]])
        after = play(method, state, [(Player("north", {"a": 3, "b": 1}), {"a": stay, "b": stay})])
        assert torch.equal(after["adapter"], state["adapter"])


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_what_a_codec_loses_on_the_way_down_is_nobodys_change(name: str) -> None:
    """A site that learns nothing from a downlink that arrived bent leaves the server's adapter as it is."""
    method = build(name, PROBLEM)
    state = play(method, method.start(), ROUND_1)
    bent = {part: tensor + 0.1 for part, tensor in method.downlink(state, "north", ("a", "b")).items()}
    local = Local(("a", "b"), {"a": 3, "b": 1}, {}, dict)
    update, _ = method.local_update(local, bent)
    gathering = method.begin_round(state)
    gathering.add("north", ("a", "b"), (3, 1), update)
    assert torch.equal(gathering.finish()["adapter"], state["adapter"])


def test_ties_keeps_the_largest_fifth_of_every_task() -> None:
    problem, trained = five(a=(1, -9, 3, 0, 2), b=(7, 1, -2, 4, 6))
    method = build("ties", problem)
    close(play(method, method.start(), trained)["adapter"], [7, -9, 0, 0, 0])


def test_ties_elects_the_sign_of_the_larger_sum_and_averages_those_that_agree() -> None:
    problem, trained = five(a=(3, -1, 2, 4, -2), b=(-1, -5, 2, 4, 3), c=(-1, 8, 2, -9, 0))
    method = build("ties", problem, "keep=1")
    # sums: 1, 2, 6, -1, 1
    close(play(method, method.start(), trained)["adapter"], [3, 8, 2, -9, 3])


def test_ties_trims_before_it_elects() -> None:
    problem, trained = five(a=(5, 0, 0, 0, 4), b=(-3, 6, 7, 0, 0), c=(-3, 8, 9, 0, 0))
    # with three fifths kept the sum of the first entries is 5 - 3 - 3; with two fifths 5 stands alone
    for keep, first in (("keep=0.6", -3.0), ("keep=0.4", 5.0)):
        method = build("ties", problem, keep)
        close(play(method, method.start(), trained)["adapter"], [first, 7, 8, 0, 4])


def test_ties_scales_the_merged_change() -> None:
    problem, trained = five(a=(3, -1, 2, 4, -2))
    method = build("ties", problem, "keep=1", "scale=0.5")
    close(play(method, method.start(), trained)["adapter"], [1.5, -0.5, 1, 2, -1])


def test_ties_of_one_task_is_its_trimmed_vector() -> None:
    close(ties(torch.tensor([[0.5, -4, 3, 1, -2]]), 0.4), [0, -4, 3, 0, 0])
    close(ties(torch.tensor([[0.5, -4, 3, 1, -2]]), 1.0), [0.5, -4, 3, 1, -2])


def test_where_the_survivors_sum_to_zero_nothing_is_elected() -> None:
    close(ties(torch.tensor([[2.0, 1], [-2, 1], [0, 4]]), 1.0), [0, 2])
    # three numbers whose float32 sum, but not whose exact sum, depends on their order
    tiny = torch.tensor([[1e8], [1.0], [-1e8]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        close(ties(tiny[order], 1.0), [(1e8 + 1) / 2])


def test_among_equal_magnitudes_exactly_the_share_survives_the_first_ones() -> None:
    close(ties(torch.tensor([[2.0, -2, 2, 2, -2]]), 0.4), [2, -2, 0, 0, 0])
    close(ties(torch.tensor([[1.0, -3, 1, 3, 1]]), 0.6), [1, -3, 0, 3, 0])


def test_zeros_are_not_counted_among_those_that_agree() -> None:
    close(ties(torch.tensor([[6.0, 1], [0, 1], [0, 1]]), 1.0), [6, 1])
    assert not ties(torch.zeros(3, 4), 0.5).any()


@pytest.mark.parametrize(
    ("keep", "dim", "survivors"),
    [(0.2, 5, 1), (0.2, 100, 20), (0.28, 100, 28), (0.07, 100, 7), (0.2, 6, 2), (0.001, 10, 1), (1.0, 7, 7)],
)
def test_the_share_that_survives_is_the_share_of_the_entries(keep: float, dim: int, survivors: int) -> None:
    assert int(ties(torch.arange(1.0, dim + 1)[None], keep).count_nonzero()) == survivors


def merged_in_plain_python(vectors: list[list[float]], keep: int) -> list[float]:
    trimmed = []
    for vector in vectors:
        largest = sorted(range(len(vector)), key=lambda j: (-abs(vector[j]), j))[:keep]
        trimmed.append([x if j in largest else 0.0 for j, x in enumerate(vector)])
    merged = []
    for entries in zip(*trimmed, strict=True):
        total = sum(entries)
        agreeing = [x for x in entries if x * total > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("seed", range(5))
def test_ties_is_that_of_plain_python(seed: int) -> None:
    # few values, so that equal magnitudes and zero sums are many
    vectors = np.random.default_rng(seed).integers(-4, 5, (4, 40)).astype(np.float32)
    for share, count in ((0.2, 8), (0.5, 20), (1.0, 40)):
        close(ties(torch.from_numpy(vectors), share), merged_in_plain_python(vectors.tolist(), count))


def test_the_papers_bits_are_those_of_fedavg() -> None:
    for name in ("task_arithmetic", "ties"):
        assert build(name, PROBLEM).paper_bits(("a", "c")) == 32 * (2 * 2 + 4 + 6)


def test_vectors_that_are_not_float32_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        ties(torch.ones(2, 3, dtype=torch.float64), 0.5)
