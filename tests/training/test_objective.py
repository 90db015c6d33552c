"""What a method asks of training beyond the loss: proximal term, frozen parameters, linearised features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import oracle
from matu.config import TrainingConfig
from matu.models import AdaptedModel, load_backbone
from matu.training import Objective, Trainer, Weights
from matu.training.trainer import Fit, logits
from world import SIZE, images_of, tiny_task, tiny_trainer

TASK = tiny_task("left")
BATCH = np.arange(0, 60, 5)
IMAGES = torch.from_numpy(images_of(1, 4, seed=3))


def adapted(folder: Path, start_b: float = 0.0) -> AdaptedModel:
    return AdaptedModel(
        load_backbone(str(folder), image_size=SIZE), rank=4, alpha=4.0, targets=("query", "key", "value"),
        adapter_seed=0, device=torch.device("cpu"), low_precision=False, start_b=start_b,
    )  # fmt: skip


def linear_trainer(folder: Path, start_b: float = 0.0, **training: float) -> Trainer:
    config = TrainingConfig(**{"batch_size": 8, "learning_rate": 1e-2, **training})  # type: ignore[arg-type]
    return Trainer(adapted(folder, start_b), config, Objective(linearised=True))


def noise(count: int, seed: int, scale: float = 0.05) -> Tensor:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def somewhere(dim: int, seed: int = 0) -> Weights:
    return Weights(noise(dim, seed), noise(3 * 17, seed + 1).view(3, 17))


def matrix(model: AdaptedModel, which: str) -> Tensor:
    """bool [d]: the entries of the matrices A, or B."""
    parts = {n: torch.full(s, f".lora_{which}." in n) for n, s in zip(model.layout.names, model.layout.shapes)}  # noqa: B905
    return torch.cat([parts[name].reshape(-1) for name in model.layout.names])


def gradient_of_the_loss(trainer: Trainer, parameters: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cross-entropy on BATCH by autograd, on the LoRA matrices of a model of its own."""
    model = trainer.model
    with torch.no_grad():
        model.parameters.copy_(parameters)
    matrices = {name: p for name, p in model.model.named_parameters() if p.requires_grad}
    head = head.clone().requires_grad_()
    features = model.features(torch.from_numpy(TASK.train.images[BATCH]))
    loss = cross_entropy(logits(features, head), torch.from_numpy(TASK.train.labels[BATCH]))
    *by_name, by_head = torch.autograd.grad(loss, [*matrices.values(), head])
    return model.layout.flatten(dict(zip(matrices, by_name, strict=True))), by_head


@pytest.mark.parametrize("mu", [0.0, 0.01, 3.0])
def test_the_proximal_gradient_is_that_of_the_written_out_term(tiny_vit: Path, mu: float) -> None:
    trainer = replace(tiny_trainer(tiny_vit, gradient_clip=0), objective=Objective(proximal=mu))
    start = somewhere(trainer.model.dim)
    fit = Fit(trainer, start)
    began = trainer.model.start + start.vector
    fit.step(TASK.train, BATCH)
    theta, head = trainer.model.parameters.detach().clone(), fit.head.detach().clone()
    assert float((theta - began).norm()) > 0.1
    fit.step(TASK.train, BATCH)

    by_theta, by_head = gradient_of_the_loss(tiny_trainer(tiny_vit), theta, head)
    written = torch.cat([theta, head.flatten()]).requires_grad_()
    from_start = written - torch.cat([began, start.head.flatten()])
    (by_term,) = torch.autograd.grad(mu / 2 * from_start.pow(2).sum(), written)
    found = torch.cat([trainer.model.parameters.grad, fit.head.grad.flatten()])  # type: ignore[list-item, union-attr]
    torch.testing.assert_close(found, torch.cat([by_theta, by_head.flatten()]) + by_term, rtol=1e-4, atol=1e-6)
    assert (mu == 0) == (not by_term.any())


def test_steps_of_plain_descent_are_those_on_the_sum_of_loss_and_term(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit, gradient_clip=0), objective=Objective(proximal=0.5))
    start, own = somewhere(trainer.model.dim), tiny_trainer(tiny_vit)
    fit = Fit(trainer, start)
    fit.optimiser = torch.optim.SGD(fit.trained, lr=0.1)
    began = trainer.model.start + start.vector
    theta, head = began, start.head
    for _ in range(3):
        fit.step(TASK.train, BATCH)
        by_theta, by_head = gradient_of_the_loss(own, theta, head)
        theta = theta - 0.1 * (by_theta + 0.5 * (theta - began))
        head = head - 0.1 * (by_head + 0.5 * (head - start.head))
    found = fit.weights()
    torch.testing.assert_close(found.vector, theta - trainer.model.start, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.head, head, rtol=1e-4, atol=1e-6)


def test_the_proximal_term_begins_anew_with_each_training(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit), objective=Objective(proximal=10.0))
    start = somewhere(trainer.model.dim)
    alone, _ = trainer.train(start, TASK.train, BATCH, np.random.default_rng(0), steps=3)
    trainer.train(somewhere(trainer.model.dim, seed=8), TASK.train, BATCH, np.random.default_rng(1), steps=3)
    again, _ = trainer.train(start, TASK.train, BATCH, np.random.default_rng(0), steps=3)
    assert torch.equal(alone.vector, again.vector)
    assert torch.equal(alone.head, again.head)


def test_frozen_parameters_do_not_move_even_with_weight_decay(tiny_vit: Path) -> None:
    plain = tiny_trainer(tiny_vit, weight_decay=0.5)
    learns = noise(plain.model.dim, seed=4) > 0
    trainer = replace(plain, objective=Objective(trained=learns, proximal=0.1))
    start = somewhere(trainer.model.dim)
    fit = Fit(trainer, start)
    before, head = trainer.model.parameters.detach().clone(), fit.head.detach().clone()
    for _ in range(5):
        fit.step(TASK.train, BATCH)
        moved = trainer.model.parameters.detach() != before
        assert not moved[~learns].any()
    assert moved[learns].float().mean() > 0.99
    assert (fit.head.detach() != head).all()


def test_what_is_frozen_does_not_count_in_the_clipped_norm(tiny_vit: Path) -> None:
    plain = tiny_trainer(tiny_vit, gradient_clip=1e-3)
    learns = noise(plain.model.dim, seed=4) > 0
    trainer = replace(plain, objective=Objective(trained=learns))
    fit = Fit(trainer, somewhere(trainer.model.dim))
    fit.step(TASK.train, BATCH)
    gradient = trainer.model.parameters.grad
    assert gradient is not None
    assert fit.head.grad is not None
    assert not gradient[~learns].any()
    assert float(torch.cat([gradient[learns], fit.head.grad.flatten()]).norm()) == pytest.approx(1e-3, rel=1e-2)


def at(model: AdaptedModel, vector: Tensor) -> Tensor:
    """Linearised features at a task vector, float64."""
    model.load(vector)
    return model.linearised_features(IMAGES).detach().double()


@pytest.mark.parametrize("start_b", [0.0, 0.3])
def test_linearised_features_are_the_features_at_the_start(tiny_vit: Path, start_b: float) -> None:
    model = adapted(tiny_vit, start_b)
    model.load(torch.zeros(model.dim))
    torch.testing.assert_close(model.linearised_features(IMAGES), model.features(IMAGES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start_b", [0.0, 0.3])
def test_linearised_features_are_linear(tiny_vit: Path, start_b: float) -> None:
    model = adapted(tiny_vit, start_b)
    v, w = noise(model.dim, 0), noise(model.dim, 1)
    origin = at(model, torch.zeros(model.dim))
    by_v, by_w = at(model, v) - origin, at(model, w) - origin
    assert by_v.abs().max() > 1e-2
    torch.testing.assert_close(at(model, 3 * v) - origin, 3 * by_v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(model, -v) - origin, -by_v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(model, v + w) - origin, by_v + by_w, rtol=1e-4, atol=1e-5)
    model.load(3 * v)  # while the features themselves are not
    assert ((model.features(IMAGES).double() - origin) - 3 * by_v).abs().max() > 1e-3


@pytest.mark.parametrize("start_b", [0.0, 0.3])
def test_their_derivative_is_the_difference_quotient_of_the_features(tiny_vit: Path, start_b: float) -> None:
    model = adapted(tiny_vit, start_b)
    v = noise(model.dim, 2, scale=1.0)
    derivative = at(model, v) - at(model, torch.zeros(model.dim))
    sides = []
    for step in (5e-3, -5e-3):
        model.load(step * v)
        sides.append(model.features(IMAGES).detach().double())
    quotient = (sides[0] - sides[1]) / 1e-2
    assert (quotient - derivative).norm() < 0.01 * derivative.norm()


def test_with_b_zero_a_does_not_matter_and_gets_no_gradient(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    is_a, is_b = matrix(model, "A"), matrix(model, "B")
    assert bool((is_a ^ is_b).all())
    v = noise(model.dim, 0)
    torch.testing.assert_close(at(model, v * is_a), at(model, torch.zeros(model.dim)), rtol=0, atol=0)
    torch.testing.assert_close(at(model, v), at(model, v * is_b), rtol=1e-6, atol=1e-6)
    gradient = gradient_of_the_features(model, v)
    assert not gradient[is_a].any()
    assert (gradient[is_b] != 0).float().mean() > 0.9


def test_with_b_above_zero_a_matters_and_gets_a_gradient(tiny_vit: Path) -> None:
    model = adapted(tiny_vit, start_b=0.3)
    is_a = matrix(model, "A")
    v = noise(model.dim, 0)
    assert (at(model, v * is_a) - at(model, torch.zeros(model.dim))).abs().max() > 1e-3
    gradient = gradient_of_the_features(model, v)
    assert (gradient[is_a] != 0).float().mean() > 0.9
    assert torch.equal(gradient, gradient_of_the_features(model, 2 * v))  # of a linear function


def gradient_of_the_features(model: AdaptedModel, vector: Tensor) -> Tensor:
    """Of a fixed weighted sum of the linearised features."""
    model.load(vector)
    assert model.parameters.grad is not None
    model.parameters.grad.zero_()
    features = model.linearised_features(IMAGES)
    (features * noise(features.numel(), 7, scale=1.0).view_as(features)).sum().backward()
    return model.parameters.grad.clone()


def test_b_starts_within_its_bounds_the_same_everywhere_and_is_part_of_the_fingerprint(tiny_vit: Path) -> None:
    model = adapted(tiny_vit, start_b=0.3)
    is_b = matrix(model, "B")
    assert model.start[is_b].abs().max() <= 0.3
    assert model.start[is_b].std() == pytest.approx(0.3 / 3**0.5, rel=0.1)
    again, other, none = adapted(tiny_vit, 0.3), adapted(tiny_vit, 0.2), adapted(tiny_vit)
    assert torch.equal(again.start, model.start)
    assert again.fingerprint == model.fingerprint
    assert len({model.fingerprint, other.fingerprint, none.fingerprint}) == 3
    assert not none.start[is_b].any()


@pytest.mark.parametrize("start_b", [0.0, 0.3])
def test_training_linearised_learns(tiny_vit: Path, start_b: float) -> None:
    trainer = linear_trainer(tiny_vit, start_b)
    start = Weights(torch.zeros(trainer.model.dim), torch.zeros(3, 17))
    first, loss_at_first = trainer.train(start, TASK.train, np.arange(60), np.random.default_rng(0), epochs=1)
    trained, _ = trainer.train(first, TASK.train, np.arange(60), np.random.default_rng(0), epochs=10)
    _, loss_at_last = trainer.train(trained, TASK.train, np.arange(60), np.random.default_rng(0), epochs=1)
    assert loss_at_last < 0.7 * loss_at_first
    assert trainer.accuracy(trained, TASK.test) > 0.6
    is_a = matrix(trainer.model, "A")
    assert bool(trained.vector[is_a].any()) == (start_b > 0)
    assert trained.vector[~is_a].any()


def test_one_linearised_step_follows_the_gradient_of_the_linear_model(tiny_vit: Path) -> None:
    trainer = linear_trainer(tiny_vit, 0.3, gradient_clip=0)
    start = somewhere(trainer.model.dim)
    fit = Fit(trainer, start)
    fit.optimiser = torch.optim.SGD(fit.trained, lr=1.0)
    fit.step(TASK.train, BATCH)
    step = (fit.weights().vector - start.vector).double()

    model = adapted(tiny_vit, 0.3)
    images, labels = torch.from_numpy(TASK.train.images[BATCH]), torch.from_numpy(TASK.train.labels[BATCH])

    def loss(vector: Tensor) -> float:
        model.load(vector)
        return float(cross_entropy(logits(model.linearised_features(images).detach(), start.head).double(), labels))

    for seed in (11, 12):
        v = noise(model.dim, seed, scale=1.0)
        quotient = (loss(start.vector + 0.02 * v) - loss(start.vector - 0.02 * v)) / 0.04
        assert -float(step @ v.double()) == pytest.approx(quotient, rel=0.03, abs=2e-4)


def test_evaluation_is_linearised_too(tiny_vit: Path) -> None:
    trainer = linear_trainer(tiny_vit)
    weights = Weights(noise(trainer.model.dim, 0, scale=0.5), noise(3 * 17, 1, scale=1.0).view(3, 17))
    trainer.model.load(weights.vector)
    found = trainer.predict_as_is(weights.head, TASK.test.images)
    images = torch.from_numpy(np.array(TASK.test.images))
    expected = logits(trainer.model.linearised_features(images).detach(), weights.head)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (
        found - replace(trainer, objective=Objective()).predict_as_is(weights.head, TASK.test.images)
    ).abs().max() > 0.1


def test_the_balanced_loss_is_that_of_its_equation(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit), objective=Objective(balanced=True))
    start = somewhere(trainer.model.dim)
    few = np.flatnonzero(TASK.train.labels != 1)[:-7]  # no image of class 1, fewer of class 2 than of class 0
    fit = Fit(trainer, start, TASK.train.labels[few])
    with torch.no_grad():
        rows = logits(trainer.model.features(torch.from_numpy(TASK.train.images[few])), start.head)
    fit.step(TASK.train, few)
    labels = TASK.train.labels[few].tolist()
    shares = oracle.log_shares(labels, 3)
    assert shares[1] == -np.inf
    assert fit.mean_loss() == pytest.approx(oracle.balanced_loss(rows.double().tolist(), labels, shares), rel=1e-5)


def test_a_row_of_an_absent_class_does_not_move_even_with_weight_decay(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit, weight_decay=0.5), objective=Objective(balanced=True))
    start = somewhere(trainer.model.dim)
    few = np.flatnonzero(TASK.train.labels != 1)
    end, _ = trainer.train(start, TASK.train, few, np.random.default_rng(0), epochs=2)
    assert torch.equal(end.head[1], start.head[1])
    assert (end.head[[0, 2]] != start.head[[0, 2]]).all()
    assert not torch.equal(end.vector, start.vector)


def test_a_site_with_one_class_has_nothing_to_say(tiny_vit: Path) -> None:
    trainer = replace(tiny_trainer(tiny_vit), objective=Objective(balanced=True))
    start = somewhere(trainer.model.dim)
    end, loss = trainer.train(start, TASK.train, np.flatnonzero(TASK.train.labels == 2), np.random.default_rng(0))
    assert loss == 0
    for found, before in zip(end, start, strict=True):
        torch.testing.assert_close(found, before, rtol=0, atol=1e-6)


def test_with_equal_classes_the_balanced_loss_is_the_plain_one(tiny_vit: Path) -> None:
    plain = tiny_trainer(tiny_vit)
    balanced = replace(plain, config=replace(plain.config, balanced=True))
    start, everything = somewhere(plain.model.dim), np.arange(len(TASK.train.labels))
    assert len(set(np.bincount(TASK.train.labels))) == 1
    ends = [t.train(start, TASK.train, everything, np.random.default_rng(0)) for t in (plain, balanced)]
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    torch.testing.assert_close(ends[0][0].head, ends[1][0].head, rtol=1e-3, atol=1e-4)
    most = everything[: len(everything) * 3 // 4]
    apart = [t.train(start, TASK.train, most, np.random.default_rng(0))[0].head for t in (plain, balanced)]
    assert float((apart[0] - apart[1]).abs().max()) > 1e-3


def test_any_method_may_train_balanced(tiny_vit: Path) -> None:
    few = np.flatnonzero(TASK.train.labels != 1)
    plain = tiny_trainer(tiny_vit)
    by_config = replace(plain, config=replace(plain.config, balanced=True), objective=Objective(proximal=0.0))
    by_method = replace(plain, objective=Objective(balanced=True))
    start = somewhere(plain.model.dim)
    ends = [t.train(start, TASK.train, few, np.random.default_rng(0))[0] for t in (by_config, by_method, plain)]
    assert torch.equal(ends[0].head, ends[1].head)
    assert torch.equal(ends[0].vector, ends[1].vector)
    assert not torch.equal(ends[0].head, ends[2].head)
