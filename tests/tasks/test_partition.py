"""Partitions: every sample once, every task held, enough for every holder, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matu.errors import ConfigError, DataError
from matu.tasks.partition import partition

Shares = list[dict[str, np.ndarray]]


def holders_of(shares: Shares, task: str) -> list[int]:
    return [n for n, held in enumerate(shares) if task in held]


def equal(a: Shares, b: Shares) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[t], y[t]) for t in x) for x, y in zip(a, b, strict=True)
    )


def balanced(samples: int, classes: int = 10) -> np.ndarray:
    return np.arange(samples) % classes


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    """Settings with enough samples for any allocation."""
    clients = draw(st.integers(1, 12))
    min_samples = draw(st.integers(1, 10))
    names = [f"task{t}" for t in range(draw(st.integers(1, 14)))]
    labels = {}
    for name in names:
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        samples = clients * min_samples + draw(st.integers(0, 60))
        # From even classes to a single dominating one.
        weights = rng.dirichlet(np.full(draw(st.integers(1, 8)), draw(st.sampled_from([0.05, 1.0, 100.0]))))
        labels[name] = rng.choice(len(weights), samples, p=weights)
    allocation = draw(st.sampled_from(["zeta_t", "k", "groups"]))
    groups: list[list[str]] = []
    if allocation == "groups":
        some = st.lists(st.sampled_from(names), min_size=1, unique=True)
        groups = draw(st.lists(some, min_size=1, max_size=4))
    return {
        "labels": labels,
        "clients": clients,
        "zeta_c": draw(st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e6])),
        "zeta_t": draw(st.sampled_from([0.0, 1e-300, 1e-6, 0.1, 0.5, 1.0, 1e6])),
        "seed": draw(st.integers(0, 2**64)),
        "tasks_per_client": draw(st.integers(1, len(names))) if allocation == "k" else 0,
        "task_groups": groups,
        "min_samples": min_samples,
    }


@given(problems())
def test_laws_of_every_partition(problem: dict) -> None:
    shares = partition(**problem)
    labels = problem["labels"]
    assert len(shares) == problem["clients"]
    for held in shares:
        assert list(held) == [name for name in labels if name in held]  # order as given
        for indices in held.values():
            assert indices.dtype == np.int64
            assert (np.diff(indices) > 0).all()
            assert len(indices) >= problem["min_samples"]
    for name, values in labels.items():
        together = np.concatenate([shares[n][name] for n in holders_of(shares, name)])
        assert np.array_equal(np.sort(together), np.arange(len(values)))
    if k := problem["tasks_per_client"]:
        assert all(len(held) >= k for held in shares)
    assert all(shares)
    assert equal(shares, partition(**problem))


def test_zeta_t_zero_deals_round() -> None:
    labels = {name: balanced(200) for name in "abc"}
    shares = partition(labels, clients=7, zeta_c=1, zeta_t=0, seed=0)
    assert [list(held) for held in shares] == [["a"], ["b"], ["c"], ["a"], ["b"], ["c"], ["a"]]


def test_task_without_holder_goes_to_the_client_with_fewest_tasks() -> None:
    labels = {name: balanced(200) for name in "abcde"}
    shares = partition(labels, clients=2, zeta_c=1, zeta_t=0, seed=0)
    assert [list(held) for held in shares] == [["a", "c", "e"], ["b", "d"]]
    grouped = partition(labels, clients=3, zeta_c=1, zeta_t=1, seed=0, task_groups=[["a", "b"], ["c"]])
    assert [list(held) for held in grouped] == [["a", "b", "e"], ["c", "d"], ["a", "b"]]


def test_groups_are_dealt_round() -> None:
    labels = {name: balanced(200) for name in "abcd"}
    groups = [["d", "a"], ["b", "c"]]
    shares = partition(labels, clients=5, zeta_c=1, zeta_t=0.5, seed=0, task_groups=groups)
    assert [list(held) for held in shares] == [["a", "d"], ["b", "c"], ["a", "d"], ["b", "c"], ["a", "d"]]


def test_tasks_per_client_draws_all_tasks_alike() -> None:
    labels = {f"t{t}": balanced(20_000) for t in range(8)}
    shares = partition(labels, clients=400, zeta_c=1e6, zeta_t=0.5, seed=1, tasks_per_client=2)
    assert {len(held) for held in shares} == {2}
    counts = [len(holders_of(shares, name)) for name in labels]
    assert min(counts) > 70  # 100 expected, standard deviation 8.7
    assert max(counts) < 130


def test_usual_setting_holds_about_three_tasks() -> None:
    labels = {f"t{t}": balanced(5_000) for t in range(8)}
    held = [len(c) for s in range(20) for c in partition(labels, clients=30, zeta_c=1, zeta_t=0.5, seed=s)]
    assert np.mean(held) == pytest.approx(3.25, abs=0.1)


def test_large_zetas_are_even() -> None:
    labels = {"a": balanced(4_000), "b": balanced(4_000)}
    shares = partition(labels, clients=4, zeta_c=1e9, zeta_t=1e9, seed=3)
    for held in shares:
        assert list(held) == ["a", "b"]
        for indices in held.values():
            assert np.abs(np.bincount(labels["a"][indices]) - 100).max() <= 1


def test_tiny_zeta_c_gives_classes_whole() -> None:
    labels = {"a": balanced(5_000, classes=50)}
    shares = partition(labels, clients=3, zeta_c=1e-6, zeta_t=0, seed=3)
    for held in shares:
        assert set(np.bincount(labels["a"][held["a"]], minlength=50)) <= {0, 100}


def test_one_class_that_dominates_is_moved_sample_by_sample() -> None:
    labels = {"a": np.zeros(100, np.int64)}
    shares = partition(labels, clients=10, zeta_c=1e-6, zeta_t=0, seed=0)
    assert [len(held["a"]) for held in shares] == [10] * 10


def test_moved_samples_are_few() -> None:
    labels = {"a": np.zeros(1_000, np.int64)}
    sizes = sorted(len(c["a"]) for c in partition(labels, clients=10, zeta_c=1e-6, zeta_t=0, seed=0))
    assert sizes == [10] * 9 + [910]


def test_split_of_a_task_stands_alone() -> None:
    few = {"a": balanced(300), "b": balanced(200)}
    more = {**few, "c": balanced(500)}
    groups = [["a", "b"], ["a"]]
    before = partition(few, clients=4, zeta_c=0.1, zeta_t=0, seed=9, task_groups=groups)
    after = partition(more, clients=4, zeta_c=0.1, zeta_t=0, seed=9, task_groups=groups)
    for x, y in zip(before, after, strict=True):
        assert all(np.array_equal(x[name], y[name]) for name in x)
    other = partition(few, clients=4, zeta_c=0.1, zeta_t=0, seed=10, task_groups=groups)
    assert not equal(before, other)


def test_tasks_of_one_size_are_split_unlike() -> None:
    labels = {"a": balanced(300), "b": balanced(300)}
    shares = partition(labels, clients=2, zeta_c=1, zeta_t=0, seed=0, task_groups=[["a", "b"]])
    assert not np.array_equal(shares[0]["a"], shares[0]["b"])


def test_too_few_samples_are_told_for_all_tasks() -> None:
    labels = {"svhn": balanced(39), "dtd": balanced(40), "cars": balanced(25)}
    groups = [["svhn", "dtd", "cars"]]
    with pytest.raises(DataError) as raised:
        partition(labels, clients=4, zeta_c=1, zeta_t=0, seed=0, task_groups=groups)
    *lines, last = str(raised.value).splitlines()
    assert lines == [
        "task 'svhn': 39 training samples for 4 holders, at least 40 needed (10 a holder)",
        "task 'cars': 25 training samples for 4 holders, at least 40 needed (10 a holder)",
    ]
    assert last.startswith("holders of a task are the clients that hold it; ")
    for option in ("--clients", "--tasks-per-client", "--zeta-t", "--min-samples"):
        assert option in last
    with pytest.raises(DataError, match="task 'one': 1 training sample for 1 holder, at least 10 needed"):
        partition({"one": np.zeros(1, np.int64)}, clients=1, zeta_c=1, zeta_t=0, seed=0)
    shares = partition({"dtd": labels["dtd"]}, clients=4, zeta_c=1e-6, zeta_t=0, seed=0)
    assert [len(held["dtd"]) for held in shares] == [10] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": {}}, "no tasks"),
        ({"clients": 0}, "clients = 0: at least 1"),
        ({"zeta_c": 0.0}, "zeta_c = 0.0: a finite number above 0"),
        ({"zeta_c": float("nan")}, "zeta_c = nan"),
        ({"zeta_t": -0.5}, "zeta_t = -0.5"),
        ({"zeta_t": float("inf")}, "zeta_t = inf"),
        ({"seed": -1}, "seed = -1"),
        ({"tasks_per_client": 3}, "tasks_per_client = 3: 1 to 2"),
        ({"min_samples": 0}, "min_samples = 0"),
        ({"task_groups": [["a"], []]}, r"task_groups\[1\] is empty"),
        ({"task_groups": [["a", "x"]]}, r"task_groups\[0\]: unknown task 'x'; known: a, b"),
        ({"task_groups": [["a", "a"]]}, r"task_groups\[0\] names a task twice"),
        ({"task_groups": [["a"]], "tasks_per_client": 1}, "give one of them"),
    ],
)
def test_settings_out_of_range(change: dict, said: str) -> None:
    usual = {"labels": {"a": balanced(100), "b": balanced(100)}, "clients": 2, "zeta_c": 1.0, "zeta_t": 0.5}
    with pytest.raises(ConfigError, match=said):
        partition(**{**usual, "seed": 0, **change})
