"""Fine-tunings computed at once against the same ones after another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from matu.models import AdaptedModel, load_backbone
from matu.training import Objective, Trainer, Weights
from matu.training.stacked import Job, train_together
from world import SIZE, tiny_task, tiny_trainer

TASKS = [tiny_task("left"), tiny_task("right"), tiny_task("middle")]
SHARES = [np.arange(60), np.arange(0, 60, 2), np.arange(0, 55, 5)]
"""Of other lengths, so that batches and their number differ."""


def noise(*shape: int, seed: int) -> Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def jobs(trainer: Trainer, count: int = 3) -> list[Job]:
    dim, classes = trainer.model.dim, 3
    return [
        Job(
            Weights(noise(dim, seed=i), noise(classes, trainer.model.backbone.features + 1, seed=9 + i)),
            TASKS[i].train, SHARES[i], np.random.default_rng(i),
        )
        for i in range(count)
    ]  # fmt: skip


def one_by_one(trainer: Trainer, **how: int) -> list[tuple[Weights, float]]:
    return [trainer.train(j.start, j.split, j.indices, j.draw, **how) for j in jobs(trainer)]


def only_b(model: AdaptedModel) -> Tensor:
    parts = {n: torch.full(s, ".lora_B." in n) for n, s in zip(model.layout.names, model.layout.shapes, strict=True)}
    return model.layout.flatten({n: p.float() for n, p in parts.items()}).bool()


OBJECTIVES = {
    "plain": lambda _: Objective(),
    "proximal": lambda _: Objective(proximal=0.5),
    "some parameters frozen": lambda model: Objective(trained=only_b(model)),
    "balanced": lambda _: Objective(balanced=True),
    "linearised": lambda _: Objective(linearised=True),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_together_is_one_by_one(tiny_vit: Path, objective: str) -> None:
    plain = tiny_trainer(tiny_vit, gradient_clip=0.5, weight_decay=0.1)
    trainer = replace(plain, objective=OBJECTIVES[objective](plain.model), together=3)
    alone = one_by_one(trainer, epochs=2)
    together = train_together(trainer, jobs(trainer), epochs=2)
    for (found, loss), (expected, expected_loss), job in zip(together, alone, jobs(trainer), strict=True):
        assert float((expected.vector - job.start.vector).norm()) > 0.1
        torch.testing.assert_close(found.vector, expected.vector, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.head, expected.head, rtol=0, atol=1e-4)
        assert loss == pytest.approx(expected_loss, abs=1e-4)


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "value", "fc1")], ids=["blocks", "any model"])
def test_together_with_other_layers(tiny_vit: Path, targets: tuple[str, ...]) -> None:
    model = AdaptedModel(
        load_backbone(str(tiny_vit), image_size=SIZE), rank=3, alpha=6.0, targets=targets, adapter_seed=0,
        device=torch.device("cpu"), low_precision=False,
    )  # fmt: skip
    trainer = Trainer(model, tiny_trainer(tiny_vit).config, together=3)
    alone = one_by_one(trainer, steps=3)
    for (found, _), (expected, _) in zip(train_together(trainer, jobs(trainer), steps=3), alone, strict=True):
        torch.testing.assert_close(found.vector, expected.vector, rtol=0, atol=1e-4)


def test_no_more_than_asked_for_at_a_time_and_the_clock_counts_true_images(
    tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = replace(tiny_trainer(tiny_vit), together=2)
    sizes: list[int] = []
    stacked = trainer.model.stacked_features
    monkeypatch.setattr(
        trainer.model, "stacked_features", lambda images, rows: sizes.append(len(rows)) or stacked(images, rows)
    )
    before = trainer.clock.train_images
    train_together(trainer, jobs(trainer), epochs=1)
    assert max(sizes) == 2
    assert min(sizes) == 1, "the one with more batches goes on alone"
    assert trainer.clock.train_images - before == sum(map(len, SHARES))


def test_together_twice_is_the_same_to_the_last_bit(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit), together=3)
    first, again = (train_together(trainer, jobs(trainer), epochs=1) for _ in range(2))
    for (one, _), (two, _) in zip(first, again, strict=True):
        assert torch.equal(one.vector, two.vector)
        assert torch.equal(one.head, two.head)


def test_images_of_one_class_are_left_alone_when_balanced(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit), objective=Objective(balanced=True), together=2)
    some = jobs(trainer, 2)
    one_class = some[0]._replace(indices=np.flatnonzero(TASKS[0].train.labels == 1))
    (same, loss), (other, _) = train_together(trainer, [one_class, some[1]])
    assert same is one_class.start
    assert loss == 0
    assert not torch.equal(other.vector, some[1].start.vector)
