"""MaTU+ as docs/matu-plus.md states it: by hand, and against the equations one element at a time."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import oracle
from matu.config import DefenceConfig, FederationConfig, RunConfig
from matu.errors import ConfigError
from matu.federation.checkpoint import Progress, load_checkpoint, save_checkpoint
from matu.methods import Local
from matu.methods.matu_plus import MatuPlus, RowMeans
from matu.training import Objective, Weights
from matu.wire import Codecs, Numbers, arrived
from playing import Player, at, build, close, equal, play, random_ends
from world import tiny_problem, tiny_task, tiny_trainer

PROBLEM = tiny_problem({"a": 2, "b": 2, "c": 3}, dim=2, features=1)
A = at([1, 0], [[1, 2], [3, 4]])
B = at([0, 10], [[10, 0], [0, 0]])
OTHER_B = at([5, -5], [[0, 5], [5, 0]])
BIG = tiny_problem({"a": 4, "b": 3, "c": 2}, dim=23, features=3)


def round_1(*options: str):
    """North trains a (3 images) and b (1), south b (4); of b's classes north has the first alone."""
    method = build("matu_plus", PROBLEM, *options)
    north, south = Player("north", {"a": 3, "b": 1}), Player("south", {"b": 4})
    state = play(method, method.start(), [(north, {"a": A, "b": B}), (south, {"b": OTHER_B})])
    return method, state, north, south


def test_a_task_steps_along_the_mean_change_of_its_holders() -> None:
    method, state, _, _ = round_1("step=0.5", "momentum=0.5", "anneal=0")
    found = method.server_weights(state)
    close(found["a"].vector, [0.5, 0])
    close(found["b"].vector, [2, -1])  # half of (1 · (0, 10) + 4 · (5, -5)) / 5
    assert not found["c"].vector.any()


def test_momentum_goes_on_where_the_last_rounds_led() -> None:
    method, state, north, _ = round_1("step=0.5", "momentum=0.5", "anneal=0")
    after = play(method, state, [(north, {"a": at([1.5, 2], [[1, 2], [3, 4]]), "b": B})])
    close(method.server_weights(after)["a"].vector, [1.25, 1.0])  # speed 0.5 · (1, 0) + (1.5, 2) - (0.5, 0)


def test_the_step_shrinks_with_the_rounds_that_a_task_has_had() -> None:
    method = build("matu_plus", PROBLEM, "step=1", "momentum=0", "anneal=2")
    north, state = Player("north", {"a": 3}), method.start()
    lengths = []
    for _ in range(4):
        before = float(method.server_weights(state)["a"].vector[0])
        state = play(method, state, [(north, {"a": at([before + 1, 0], [[1, 2], [3, 4]])})])
        lengths.append(float(method.server_weights(state)["a"].vector[0]) - before)
    assert lengths == pytest.approx([1, 1 / 1.5**0.5, 1 / 2**0.5, 1 / 2.5**0.5])
    state = play(method, state, [(Player("south", {"b": 3}), {"b": B})])
    close(state["adapter/b"], [0, 10])  # a task that joins late begins with a whole step


def test_a_row_of_the_head_is_averaged_over_those_that_have_its_class() -> None:
    _, state, _, _ = round_1()
    close(state["head/b"], [[2, 4], [5, 0]])  # north's second row is as it was: it counts there for nothing


def test_plain_heads_count_every_holder_in_every_row() -> None:
    method, state, _, _ = round_1("evidence=false")
    close(state["head/b"], [[2, 4], [4, 0]])
    assert method.objective == Objective()


def test_sites_train_balanced() -> None:
    assert build("matu_plus", PROBLEM).objective == Objective(balanced=True)


def test_a_task_without_holders_stays_as_it_was() -> None:
    method, state, _, south = round_1()
    after = play(method, state, [(south, {"b": A})])
    for key in ("adapter/a", "speed/a", "head/a", "rounds/a"):
        assert torch.equal(after[key], state[key])
    assert "adapter/c" not in after


def test_step_1_without_momentum_on_plain_losses_is_per_task_fedavg() -> None:
    plus, plain = (
        build("matu_plus", BIG, "step=1", "momentum=0", "anneal=0", "evidence=false"),
        build("per_task_fedavg", BIG),
    )
    states = [plus.start(), plain.start()]
    for number in range(3):
        held = {"north": {"a": 3, "b": 1}, "south": {"b": 4}} if number else {"north": {"a": 2, "c": 5}}
        for i, method in enumerate((plus, plain)):
            answers = [
                (Player(name, samples), random_ends(BIG, tuple(samples), 7 * number + len(name)))
                for name, samples in held.items()
            ]
            states[i] = play(method, states[i], answers)
    for task in BIG.tasks:
        for found, expected in zip(
            plus.server_weights(states[0])[task], plain.server_weights(states[1])[task], strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_a_round_is_the_equations_one_element_at_a_time(seed: int) -> None:
    draw = random.Random(seed)
    step, momentum = draw.choice([0.1, 0.3, 1.0]), draw.choice([0.0, 0.5, 0.9])
    anneal = draw.choice([0.0, 1.0, 10.0])
    method = build("matu_plus", BIG, f"step={step}", f"momentum={momentum}", f"anneal={anneal}")
    rounds = dict.fromkeys(BIG.tasks, 0)
    state = method.start()
    expected = {t: ([0.0] * BIG.dim, [0.0] * BIG.dim, torch.zeros(BIG.head_shape(t)).tolist()) for t in BIG.tasks}
    for _ in range(3):
        sites = []
        for name in ("north", "south", "west")[: draw.randint(1, 3)]:
            tasks = sorted(draw.sample(BIG.tasks, draw.randint(1, 3)))
            player = Player(name, {task: draw.randint(1, 50) for task in tasks})
            starts = player.gets(method, state)
            ends = {t: lacking(w, starts[t], draw) for t, w in random_ends(BIG, tasks, draw.randrange(10**6)).items()}
            sites.append((player, starts, ends))
        state = play(method, state, [(player, ends) for player, _, ends in sites])
        for task in BIG.tasks:
            mine = [(p.samples[task], s[task], e[task]) for p, s, e in sites if task in e]
            if not mine:
                continue
            samples = [n for n, _, _ in mine]
            vectors = [(end.vector - start.vector).tolist() for _, start, end in mine]
            heads = [(end.head - start.head).tolist() for _, start, end in mine]
            adapter, speed, head = expected[task]
            eta = step / (1 + rounds[task] / anneal) ** 0.5 if anneal else step
            adapter, speed = oracle.step(adapter, speed, oracle.head_mean(vectors, samples), eta, momentum)
            rounds[task] += 1
            rows = oracle.row_means(heads, samples)
            head = [[h + r for h, r in zip(*pair, strict=True)] for pair in zip(head, rows, strict=True)]
            expected[task] = adapter, speed, head
        found = method.server_weights(state)
        for task in BIG.tasks:
            close(found[task].vector, expected[task][0])
            torch.testing.assert_close(found[task].head, torch.tensor(expected[task][2]), rtol=1e-5, atol=1e-5)


def lacking(end: Weights, start: Weights, draw: random.Random) -> Weights:
    """As trained at a site that lacks some classes: their rows are as at the start."""
    has = torch.tensor([draw.random() < 0.6 for _ in end.head])
    return Weights(end.vector, torch.where(has[:, None], end.head, start.head))


def test_rows_that_nobody_changed_have_no_mean_and_no_nan() -> None:
    rows = RowMeans((3, 2))
    rows.add(torch.tensor([[0.0, 0.0], [0.0, 4.0], [-0.0, 0.0]]), 7)
    rows.add(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), 1)
    close(rows.mean(), [[0, 0], [0.25, 3.5], [0, 0]])


@pytest.mark.parametrize("heads", ["float32", "bfloat16", "8bit", "4bit", "2bit", "ternary"])
def test_no_codec_makes_a_change_of_a_row_that_has_none(heads: str) -> None:
    """Blocks of the quantiser cross rows; a row of zeros still arrives as one, and a silent site stays silent."""
    problem = tiny_problem({"a": 40}, dim=300, features=192)
    method = build("matu_plus", problem)
    end = random_ends(problem, ("a",), 1)["a"]
    has = torch.arange(40) % 3 == 0
    end = Weights(end.vector, torch.where(has[:, None], end.head, 0))
    sent = Player("north", {"a": 5}).answer(method, method.start(), {"a": end})
    codecs = Codecs(Numbers(heads, change=True), Numbers(heads, change=True))
    got = arrived(method.uplink_parts(("a",)), sent, codecs, held=method.downlink({}, "north", ("a",)))
    assert torch.equal(got["head_change/a"].ne(0).any(dim=1), has)


def test_what_a_downlinks_codec_loses_does_not_reach_the_server() -> None:
    """A site that ends where it began, from whatever arrived, adds nothing to the momentum and to the head."""
    method, state = build("matu_plus", BIG, "momentum=0.5", "step=1", "anneal=0"), {}
    state = play(method, state, [(Player("north", {"a": 3}), random_ends(BIG, ("a",), 3))])
    coarse = Codecs(Numbers("2bit"), Numbers("2bit"))
    opened = arrived(method.downlink_parts(("a",)), method.downlink(state, "north", ("a",)), coarse)
    assert not torch.equal(opened["adapter/a"], state["adapter/a"])
    update, _ = method.local_update(Local(("a",), {"a": 3}, {}, dict), opened)
    gathering = method.begin_round(state)
    gathering.add("north", ("a",), (3,), update)
    after = gathering.finish()
    assert torch.equal(after["speed/a"], 0.5 * state["speed/a"])
    assert torch.equal(after["adapter/a"], state["adapter/a"] + after["speed/a"])
    assert torch.equal(after["head/a"], state["head/a"])


def test_trimming_would_count_rows_of_zeros_as_votes() -> None:
    config = RunConfig(defence=DefenceConfig(trim=0.2))
    with pytest.raises(ConfigError, match=r"trim 0.2: refused .* give --trim 0, or --options evidence=false"):
        MatuPlus.options_of(config)
    with pytest.raises(ConfigError, match="trim"):
        MatuPlus(PROBLEM, config)
    federation = FederationConfig(options=("evidence=false",))
    assert MatuPlus(PROBLEM, replace(config, federation=federation))


def test_behind_bounds_a_site_with_one_class_is_silent_and_nobody_is_cut_to_its_length(tiny_vit: Path) -> None:
    """Its change is zero to the last bit, so that a median of zero bounds nothing."""
    trainer = replace(tiny_trainer(tiny_vit), objective=Objective(balanced=True))
    task = tiny_task("a")
    start = Weights(torch.randn(trainer.model.dim), torch.randn(3, 17))
    one = np.flatnonzero(task.train.labels == 1)
    end, loss = trainer.train(start, task.train, one, np.random.default_rng(0))
    assert loss == 0
    assert torch.equal(end.vector, start.vector)
    assert torch.equal(end.head, start.head)


def test_small_rows_survive_the_default_codec_of_heads() -> None:
    """A tenth of the others' length, between these, still counts as evidence in 3 bits and more (docs/matu-plus.md)."""
    problem = tiny_problem({"a": 10}, dim=3, features=192)
    method, draw = build("matu_plus", problem), torch.Generator().manual_seed(3)
    head = torch.randn(problem.head_shape("a"), generator=draw)
    head[1::2] *= 0.1  # a block of the codec crosses rows
    sent = {"change/a": torch.zeros(3), "head_change/a": head}
    for bits in ("2bit", "3bit", "4bit", "8bit"):
        codecs = Codecs(Numbers(bits), Numbers(bits))
        got = arrived(method.uplink_parts(("a",)), sent, codecs)["head_change/a"]
        survived = got.ne(0).any(dim=1)
        assert survived[::2].all()
        assert survived[1::2].all() or bits == "2bit"
        assert bits != "2bit" or 0 < survived[1::2].double().mean() < 0.6


def test_a_state_that_was_saved_anneals_on(tmp_path: Path) -> None:
    method, north = build("matu_plus", PROBLEM, "anneal=2"), Player("north", {"a": 3})
    state = play(method, method.start(), [(north, {"a": A})])
    save_checkpoint(tmp_path, Progress(1, state), "it")
    loaded = load_checkpoint(tmp_path, "it")
    assert loaded is not None
    assert equal(play(method, loaded.state, [(north, {"a": B})]), play(method, state, [(north, {"a": B})]))
    assert loaded.state["rounds/a"].dtype == torch.int64


def test_changes_are_not_counted_from_the_downlink_again() -> None:
    assert not any(part.against for part in build("matu_plus", PROBLEM).uplink_parts(("a", "b")))


@pytest.mark.parametrize(
    "option", ["step=0", "step=-1", "step=inf", "momentum=1", "momentum=-0.1", "momentum=nan", "anneal=-1"]
)
def test_steps_that_cannot_work_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        build("matu_plus", PROBLEM, option)


def test_the_papers_bits_are_those_of_a_vector_and_a_head_a_task() -> None:
    assert build("matu_plus", PROBLEM).paper_bits(("a", "c")) == 32 * (2 * 2 + 4 + 6)
