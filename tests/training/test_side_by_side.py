"""Jobs side by side against the same jobs in turn: equal bits, in order, and an end when nobody waits any more."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matu.config import MachineConfig, ModelConfig, RunConfig, TasksConfig, TrainingConfig
from matu.errors import DivergedError
from matu.training import Clock, Objective, Trainer, Weights, build_trainer, parallel_jobs, side_by_side
from matu.training.crew import Halt, HaltedError
from world import SIZE, tiny_task

TASK = tiny_task("left")


def crew(
    vit: Path, jobs: int = 3, precision: str = "float32", targets: tuple[str, ...] = ("query", "key", "value")
) -> Trainer:
    config = RunConfig(
        tasks=TasksConfig(image_size=SIZE), training=TrainingConfig(batch_size=8),
        model=ModelConfig(backbone=str(vit), rank=4, targets=targets),
    )  # fmt: skip
    return build_trainer(config, None, torch.device("cpu"), precision, jobs=jobs)


def training(seed: int, steps: int = 6) -> Callable[[Trainer], Weights]:
    def work(trainer: Trainer) -> Weights:
        start = Weights(torch.zeros(trainer.model.dim), torch.zeros(3, trainer.model.backbone.features + 1))
        return trainer.train(start, TASK.train, np.arange(60), np.random.default_rng(seed), steps=steps)[0]

    return work


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", [Objective(), Objective(proximal=0.1, balanced=True), Objective(linearised=True)])
def test_it_gives_what_the_jobs_give_in_turn_to_the_last_bit(
    tiny_vit: Path, precision: str, objective: Objective
) -> None:
    trainer = replace(crew(tiny_vit, precision=precision), objective=objective)
    alone = [training(seed)(replace(trainer, crew=None)) for seed in range(9)]
    assert len({one.vector.numpy().tobytes() for one in alone}) == 9
    for found, expected in zip(side_by_side(trainer, map(training, range(9))), alone, strict=True):
        assert torch.equal(found.vector, expected.vector)
        assert torch.equal(found.head, expected.head)


@pytest.mark.parametrize("targets", [("query", "key", "value"), ("query",), ("value", "fc1")])
def test_a_crew_has_the_frozen_weights_in_common_and_adapters_of_their_own(
    tiny_vit: Path, targets: tuple[str, ...]
) -> None:
    trainer = crew(tiny_vit, targets=targets)
    assert trainer.crew is not None
    models = [one.model for one in trainer.crew.models]
    for (name, first), *others in zip(*(model.named_parameters() for model in models), strict=True):
        places = {first.data_ptr(), *(other.data_ptr() for _, other in others)}
        assert len(places) == (len(models) if first.requires_grad else 1), name
    weights = [group for one in trainer.crew.models for group in (*one._fused, *one._apart)]
    held = {getattr(group, "qkv", group).weight.data_ptr() for group in weights}
    assert len(held) == len(weights) / len(models)


def test_really_at_once_and_never_two_with_one_trainer(tiny_vit: Path) -> None:
    together = threading.Barrier(3, timeout=60)

    def work(trainer: Trainer) -> int:
        together.wait()  # passes only if three are here
        return id(trainer.model)

    trainer = crew(tiny_vit)
    assert trainer.crew is not None
    assert set(side_by_side(trainer, [work] * 3)) == {id(model) for model in trainer.crew.models}


def test_jobs_in_parts_share_the_models_and_give_the_same(tiny_vit: Path) -> None:
    trainer = crew(tiny_vit)
    alone = [training(seed)(replace(trainer, crew=None, clock=Clock())) for seed in range(12)]

    def site(first: int) -> Callable[[Trainer], list[Weights]]:
        return lambda given: list(side_by_side(given, [training(seed) for seed in range(first, first + 4)]))

    found = itertools.chain.from_iterable(side_by_side(trainer, [site(0), site(4), site(8)], split=True))
    assert all(torch.equal(one.vector, other.vector) for one, other in zip(found, alone, strict=True))
    assert trainer.clock.train_images == 12 * 6 * 8


def test_an_error_in_one_ends_the_parts_of_others(tiny_vit: Path) -> None:
    begun = threading.Event()

    def part(trainer: Trainer) -> None:
        begun.set()
        training(0, steps=10**9)(trainer)

    def site(given: Trainer) -> None:
        list(side_by_side(given, [part, part]))

    def fails(_: Trainer) -> None:
        assert begun.wait(60)
        raise DivergedError("no longer finite")

    with pytest.raises(DivergedError):
        list(side_by_side(crew(tiny_vit), [fails, site, site], split=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("matu-train")]


def test_jobs_are_drawn_when_they_are_about_to_begin(tiny_vit: Path) -> None:
    drawn = taken = 0

    def jobs() -> Iterator[Callable[[Trainer], None]]:
        nonlocal drawn
        for _ in range(20):
            drawn += 1
            assert drawn - taken <= 6, "two a trainer"
            yield lambda _: None

    for _ in side_by_side(crew(tiny_vit), jobs()):
        taken += 1
    assert drawn == taken == 20


def test_the_clock_counts_what_all_do(tiny_vit: Path) -> None:
    trainer = crew(tiny_vit)
    list(side_by_side(trainer, [training(0), training(1, 3)]))
    assert trainer.clock.train_images == 9 * 8
    assert trainer.clock.train_s > 0
    trainer.clock.train_s, began = 0.0, time.perf_counter()
    list(side_by_side(trainer, [training(0, 40)] * 3))
    assert trainer.clock.train_s <= time.perf_counter() - began, "not thrice the time that went by"


def test_an_error_comes_in_its_turn_and_ends_the_others(tiny_vit: Path) -> None:
    ends: list[type[BaseException]] = []
    begun = threading.Event()

    def endless(trainer: Trainer) -> None:
        try:
            begun.set()
            training(0, steps=10**9)(trainer)
        except BaseException as error:
            ends.append(type(error))
            raise

    def fails(_: Trainer) -> None:
        assert begun.wait(60)
        raise DivergedError("no longer finite")

    results = side_by_side(crew(tiny_vit), [lambda _: None, fails, endless, endless, endless])
    assert next(results) is None
    with pytest.raises(DivergedError, match="no longer finite"):
        next(results)
    assert set(ends) == {HaltedError}, "none goes on, and its threads are gone"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("matu-train")]


def test_who_stops_taking_stops_what_is_under_way(tiny_vit: Path) -> None:
    results = side_by_side(crew(tiny_vit), [training(0, 1), *[training(1, 10**9)] * 5])
    next(results)
    results.close()  # would wait for years
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("matu-train")]


def test_evaluation_is_halted_too(tiny_vit: Path) -> None:
    halted = replace(crew(tiny_vit), halt=Halt(Halt(now=True)))
    with pytest.raises(HaltedError):
        halted.features_as_is(TASK.test.images)


def test_there_is_room_for_as_many_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matu.training.machine.cores", lambda: 8)
    assert parallel_jobs(MachineConfig(), most=6) == 6
    assert parallel_jobs(MachineConfig(), most=30) == 8
    assert parallel_jobs(MachineConfig(threads=3), most=6) == 2
    assert parallel_jobs(MachineConfig(threads=16), most=6) == 1
    assert parallel_jobs(MachineConfig(device="cuda"), most=6) == 1
