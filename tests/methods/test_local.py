from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matu.config import FederationConfig, RunConfig, TrainingConfig
from matu.errors import ConfigError
from matu.methods import Reference, find_method
from matu.training import Trainer
from world import tiny_task, tiny_trainer

TASKS = {name: tiny_task(name, seed=i) for i, name in enumerate(("left", "right"))}
EVERYTHING = np.arange(60)


def spend(rounds: int, participation: float = 1.0, **training: float) -> RunConfig:
    """A federation of so many rounds."""
    federation = FederationConfig(method="local", rounds=rounds, participation=participation)
    return RunConfig(federation=federation, training=TrainingConfig(**{"batch_size": 8, **training}))  # type: ignore[arg-type]


def ask(
    trainer: Trainer, config: RunConfig, shares: Mapping[str, Mapping[str, np.ndarray]], cache: Path
) -> dict[str, dict[str, float]]:
    reference = find_method("local")(config)  # type: ignore[call-arg]
    assert isinstance(reference, Reference)
    return reference.accuracies(trainer, TASKS, shares, cache=cache, tell=lambda text: None)


@pytest.mark.parametrize(
    ("config", "epochs"),
    [(spend(6), 6), (spend(10, 0.5), 5), (spend(4, 0.5, local_epochs=3), 6)],
)
def test_each_site_trains_as_many_epochs_as_the_federation_spends(
    tiny_vit: Path, tmp_path: Path, config: RunConfig, epochs: int
) -> None:
    trainer = tiny_trainer(tiny_vit)
    ask(trainer, config, {"north": {"left": np.arange(13), "right": np.arange(4)}, "south": {"left": [5]}}, tmp_path)
    assert trainer.clock.train_images == epochs * (13 + 4 + 1)


def test_with_steps_each_site_trains_its_share_of_the_rounds(tiny_vit: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_vit)
    ask(trainer, spend(10, 0.5, local_steps=3), {"north": {"left": np.arange(16)}}, tmp_path)
    assert trainer.clock.train_images == 3 * 10 * 0.5 * 8


def test_a_site_learns_from_its_own_images_alone(tiny_vit: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_vit)
    one_class = np.flatnonzero(TASKS["left"].train.labels == 1)
    found = ask(trainer, spend(20), {"all": {"left": EVERYTHING}, "one-class": {"left": one_class}}, tmp_path)
    assert found["all"]["left"] > 0.8
    assert found["one-class"]["left"] == pytest.approx(1 / 3)  # it has seen one class, and names no other


def test_what_a_site_reaches_does_not_depend_on_the_others(tiny_vit: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_vit)
    shares = {"north": {"left": EVERYTHING[:20:2], "right": EVERYTHING[::3]}, "south": {"left": EVERYTHING[1::4]}}
    together = ask(trainer, spend(3), shares, tmp_path / "a")
    backwards = {name: dict(reversed(share.items())) for name, share in reversed(shares.items())}
    assert ask(trainer, spend(3), backwards, tmp_path / "b") == together
    assert ask(trainer, spend(3), {"south": shares["south"]}, tmp_path / "c")["south"] == together["south"]


def test_the_cache_remembers_and_tells_shares_settings_and_sites_apart(tiny_vit: Path, tmp_path: Path) -> None:
    trainer, share = tiny_trainer(tiny_vit), {"left": EVERYTHING[:9]}
    first = ask(trainer, spend(2), {"north": share}, tmp_path)
    trained = trainer.clock.train_images
    assert ask(trainer, spend(2), {"north": share}, tmp_path) == first
    assert trainer.clock.train_images == trained
    for config, shares in (
        (spend(3), {"north": share}),
        (spend(2, learning_rate=5e-3), {"north": share}),
        (replace(spend(2), machine=replace(spend(2).machine, seed=1)), {"north": share}),
        (spend(2), {"north": {"left": EVERYTHING[1:10]}}),
        (spend(2), {"south": share}),
    ):
        ask(trainer, config, shares, tmp_path)
        assert trainer.clock.train_images > trained
        trained = trainer.clock.train_images


def test_it_takes_no_option() -> None:
    with pytest.raises(ConfigError, match="no option"):
        find_method("local")(RunConfig(federation=FederationConfig(method="local", options=("epochs=3",))))  # type: ignore[call-arg]
