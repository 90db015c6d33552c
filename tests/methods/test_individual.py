import dataclasses
from pathlib import Path

import pytest

from matu.config import EvaluationConfig, FederationConfig, RunConfig, TrainingConfig
from matu.errors import DivergedError
from matu.methods.individual import PATIENCE, individual
from matu.methods.reference import budget_steps, training_facts
from world import tiny_task, tiny_trainer

HOLDERS = {"left": 1, "right": 1}


def spend(epochs: int, **training: float) -> RunConfig:
    """A federation that spends so many epochs on every image."""
    federation = FederationConfig(rounds=epochs, participation=1.0)
    return RunConfig(federation=federation, training=TrainingConfig(**{"batch_size": 8, **training}))  # type: ignore[arg-type]


def test_the_budget_is_what_the_federation_spends() -> None:
    config = RunConfig(federation=FederationConfig(rounds=100, participation=0.2))
    assert budget_steps(config, samples=640, holders=9) == 20 * 10
    assert budget_steps(config, samples=650, holders=9) == 20 * 11
    assert budget_steps(config, samples=10, holders=1) == 20
    eight = RunConfig(federation=FederationConfig(clients=8, rounds=100, participation=0.2))  # 2 of 8 a round
    assert budget_steps(eight, samples=640, holders=9) == 25 * 10
    one = FederationConfig(clients=1, rounds=100, participation=0.2)  # which is drawn every round
    assert budget_steps(RunConfig(federation=one), samples=640, holders=1) == 100 * 10
    cell = dataclasses.replace(one, method="individual")  # a comparison's: of a federation that draws a fifth
    assert budget_steps(RunConfig(federation=cell), samples=640, holders=1) == 20 * 10
    stepped = RunConfig(
        federation=FederationConfig(rounds=40, participation=0.5), training=TrainingConfig(local_steps=6)
    )
    assert budget_steps(stepped, samples=640, holders=3) == 6 * 40 * 0.5 * 3


def test_it_learns_and_the_cache_remembers(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, told = tiny_trainer(tiny_vit), []
    tasks = {name: tiny_task(name, seed=i) for i, name in enumerate(("left", "right"))}

    def ask(config: RunConfig):
        return individual(
            trainer, tasks, config, holders=HOLDERS, cache=tmp_path,
            tell=told.append,
        )  # fmt: skip

    found = ask(spend(20))
    assert told == ["individual reference: left (1/2)", "individual reference: right (2/2)"]
    for one in found.values():
        assert one.accuracy == max(one.budget, one.plateau) > 0.8
        assert one.budget_epochs == 20
        assert 1 <= one.plateau_epochs <= 50
    trained = trainer.clock.train_images
    assert ask(spend(20)) == found
    assert trainer.clock.train_images == trained
    ask(spend(20, learning_rate=5e-3))
    assert trainer.clock.train_images > trained


def test_another_budget_does_not_train_to_the_plateau_again(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")

    def ask(config: RunConfig):
        before = trainer.clock.train_images
        one = individual(
            trainer, {"left": task}, config, holders=HOLDERS, cache=tmp_path, tell=lambda text: None
        )["left"]  # fmt: skip
        return one, trainer.clock.train_images - before

    first, _ = ask(spend(2))
    other, images = ask(spend(3))
    assert images == 3 * len(task.train.labels)
    assert (other.plateau, other.plateau_epochs) == (first.plateau, first.plateau_epochs)
    assert (first.budget_epochs, other.budget_epochs) == (2, 3)


def test_a_poor_budget_does_not_hide_the_plateau(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    config = spend(1, local_steps=1)
    found = individual(trainer, {"left": task}, config, holders=HOLDERS, cache=tmp_path, tell=lambda text: None)["left"]
    assert found.budget < found.plateau == pytest.approx(found.accuracy)


def test_a_few_epochs_without_gain_are_no_plateau(
    tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    barren = PATIENCE - 1
    held_out = [0.5, *[0.4] * barren, 0.6, *[0.6] * barren, 0.59]
    told = iter([0.1, *held_out, 0.7])  # the budget's, the plateau's on the way, and on the test images
    monkeypatch.setattr(type(trainer), "accuracy_as_is", lambda *_: next(told))
    found = individual(trainer, {"left": task}, spend(1), holders=HOLDERS, cache=tmp_path, tell=lambda text: None)
    assert found["left"].plateau_epochs == 2 + barren
    assert (found["left"].budget, found["left"].plateau) == (0.1, 0.7)


def test_a_rate_is_chosen_by_the_budget_alone(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, task, config = tiny_trainer(tiny_vit), tiny_task("left"), spend(3)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(held_out=True))
    one = individual(trainer, {"left": task}, config, holders=HOLDERS, cache=tmp_path, tell=lambda text: None)["left"]
    assert trainer.clock.train_images == 3 * len(task.train.labels)
    assert (one.plateau, one.plateau_epochs) == (None, None)
    assert one.accuracy == one.budget


def test_a_task_that_diverges_has_no_reference_and_the_others_do(
    tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, told = tiny_trainer(tiny_vit), []
    tasks = {name: tiny_task(name) for name in ("left", "right")}
    train = type(trainer).train

    def diverge(self, start, split, *rest, **more):
        if split is tasks["left"].train:
            raise DivergedError("the loss is nan")
        return train(self, start, split, *rest, **more)

    monkeypatch.setattr(type(trainer), "train", diverge)
    found = individual(trainer, tasks, spend(1), holders=HOLDERS, cache=tmp_path, tell=told.append)
    assert found["left"] is None
    assert found["right"] is not None
    assert "individual reference: left has none: the loss is nan" in told


def test_a_damaged_cache_entry_is_made_again(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, tasks = tiny_trainer(tiny_vit), {"left": tiny_task("left")}

    def ask():
        return individual(trainer, tasks, spend(1), holders=HOLDERS, cache=tmp_path, tell=lambda text: None)

    first = ask()["left"]
    entries = list((tmp_path / "individual").iterdir())
    assert len(entries) == 2  # one a training
    for entry in entries:
        entry.write_text("{")
    again = ask()["left"]
    assert first is not None
    assert again is not None
    assert (again.budget, again.plateau) == (first.budget, first.plateau)


def test_balanced_training_is_remembered_by_itself(tiny_vit: Path) -> None:
    trainer, config = tiny_trainer(tiny_vit), spend(1)
    balanced = dataclasses.replace(config, training=dataclasses.replace(config.training, balanced=True))
    assert training_facts(trainer, balanced) != training_facts(trainer, config)
