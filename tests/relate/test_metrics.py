"""Measures of relatedness against hand-computed answers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from matu import similarity
from matu.relate.metrics import class_score, cosine, e_tran, energy, fisher, probe
from world import tiny_task, tiny_trainer


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def test_sign_counts_agreement_and_disagreement():
    vectors = torch.tensor([[1.0, -2.0, 3.0, 0.0], [5.0, 1e-30, 3.0, 2.0], [-1.0, 2.0, -3.0, 0.0]])
    expected = [[0.875, 0.625, 0.125], [0.625, 1.0, 0.375], [0.125, 0.375, 0.875]]
    np.testing.assert_array_equal(similarity(vectors), expected)


def test_cosine_of_known_angles():
    found = cosine(torch.tensor([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]]))
    expected = [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("factor", [1e-38, 1e30])
def test_cosine_does_not_depend_on_length(factor):
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    longer = rows * torch.tensor([[1.0], [factor], [1.0]])
    np.testing.assert_allclose(cosine(longer), cosine(rows), atol=1e-12)
    np.testing.assert_array_equal(cosine(rows), cosine(rows).T)


class Line:
    """A model of two parameters whose feature is the first times the image's brightness; it starts at zero."""

    device, dim = torch.device("cpu"), 2

    def __init__(self):
        self.parameters = nn.Parameter(torch.ones(2))
        self.parameters.grad = torch.full((2,), 7.0)

    def load(self, vector):
        self.parameters.data.copy_(vector)

    def features(self, images):
        return (self.parameters[0] * float(images.mean())).reshape(1, 1)


def line():
    model = Line()
    return SimpleNamespace(model=model, features=model.features)


def test_fisher_is_the_mean_of_squared_gradients_by_image():
    # p = 1/2 for either label: the gradient is ± x/2. A batch's own gradient would be squared after adding.
    head = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    images = np.array([1, 3, 5], dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 4, 4, 3), dtype=np.uint8)
    found = fisher(line(), head, images, np.random.default_rng(0))
    np.testing.assert_allclose(found, [(1 + 9 + 25) / 3 / 4, 0])


def test_fisher_draws_labels_from_the_model():
    head = torch.tensor([[0.0, 0.0], [1.0, 2.1972246]])  # p = 0.1, 0.9: the variance of the label is 0.09
    images = np.ones((4000, 1, 1, 3), dtype=np.uint8)
    found = fisher(line(), head, images, np.random.default_rng(0))
    assert float(found[0]) == pytest.approx(0.09, rel=0.05)


def test_fisher_of_one_class_is_zero(tiny_vit):
    trainer, task = tiny_trainer(tiny_vit), tiny_task("one", classes=1)
    head = probe(np.ones((20, 16)), task.train.labels)
    assert not fisher(trainer, head, task.train.images[:3], np.random.default_rng(0)).any()


def test_fisher_at_the_start_is_about_b_alone(tiny_vit):
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    head = torch.randn(3, 17, generator=torch.Generator().manual_seed(0))
    trainer.model.load(torch.ones(trainer.model.dim))  # it goes back to the start by itself
    found = trainer.model.layout.unflatten(fisher(trainer, head, task.train.images[:4], np.random.default_rng(0)))
    for name, part in found.items():
        assert bool((part > 0).any()) == (".lora_B." in name)


def test_a_probe_tells_classes_by_the_side_of_the_middle():
    x = np.array([[4.0, 7.0], [6.0, 7.0], [14.0, 7.0], [16.0, 7.0]])  # the second feature is constant
    head = probe(x, np.array([3, 3, 8, 8])).double().numpy()
    assert head.shape == (2, 3)
    scores = x @ head[:, :2].T + head[:, 2]
    assert list(scores.argmax(axis=1)) == [0, 0, 1, 1]
    middle = np.array([10.0, 7.0, 1.0]) @ head.T
    assert middle[0] == pytest.approx(middle[1], abs=1e-5)


def test_a_probe_has_a_row_for_every_class_that_occurs():
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 2, 5], 20)
    x = draw.normal(size=(60, 4)) + labels[:, None]
    head = probe(x, labels).double().numpy()
    assert head.shape == (3, 5)
    predicted = np.array([0, 2, 5])[(x @ head[:, :4].T + head[:, 4]).argmax(axis=1)]
    assert (predicted == labels).mean() > 0.9


def test_energy_is_of_the_lowest_half_per_cent():
    levels = np.random.default_rng(0).permutation(400).astype(np.float32)
    features = np.repeat(levels[:, None], 8, axis=1)
    assert energy(features) == pytest.approx(0.5 + np.log(8))  # of 400 the two lowest: 0 and 1
    assert energy(features[:10]) == pytest.approx(levels[:10].min() + np.log(8))
    assert energy(1e4 + features) == pytest.approx(1e4 + 0.5 + np.log(8))


def test_class_score_of_two_gaussians():
    a = 0.5
    x = np.array([[-1 - a], [-1 + a], [1 - a], [1 + a]])
    y = np.array([4, 4, 9, 9])
    # p(y|x) = σ(2 |x| / variance), and the variance within classes is a²
    assert class_score(x, y) == pytest.approx(sigmoid([2 * (1 + a) / a**2, 2 * (1 - a) / a**2]).mean())
    assert class_score(x, y, as_released=True) == pytest.approx(sigmoid([2 * (1 + a), 2 * (1 - a)]).mean())
    assert class_score(x + 100, y) == pytest.approx(class_score(x, y))


def test_class_score_weighs_classes_by_their_share():
    x, y = np.array([[-1.0], [1.0], [-1.0], [1.0]]), np.array([0, 0, 0, 1])
    means, share = np.array([-1 / 3, 1.0]), np.array([0.75, 0.25])
    within = (2 * (2 / 3) ** 2 + (4 / 3) ** 2) / 4
    weights = share * np.exp(-((x - means) ** 2) / (2 * within))
    expected = (weights / weights.sum(axis=1, keepdims=True))[np.arange(4), y].mean()
    assert class_score(x, y) == pytest.approx(expected)


def test_shrinkage_is_that_of_the_authors():
    # Variances 0.01 and 0.2 within classes: s = exp(-5 · 0.2), and the trace's mean is 0.105
    x = np.array([[-1 - 0.1, 0.2**0.5], [-1 + 0.1, -(0.2**0.5)], [1 - 0.1, -(0.2**0.5)], [1 + 0.1, 0.2**0.5]])
    x[:, 0] *= 0.1 / 0.1
    s = np.exp(-5 * np.linalg.eigvalsh(_within(x))[-1])
    shrunk = (1 - s) * _within(x) + s * np.trace(_within(x)) / 2 * np.eye(2)
    scores = -0.5 * np.stack([np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(shrunk), x - m) for m in _means(x)], axis=1)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert class_score(x, np.array([0, 0, 1, 1])) == pytest.approx(p[[0, 1, 2, 3], [0, 0, 1, 1]].mean())


def _means(x):
    return np.stack([x[:2].mean(axis=0), x[2:].mean(axis=0)])


def _within(x):
    away = x - np.repeat(_means(x), 2, axis=0)
    return away.T @ away / 4


def test_as_released_does_not_see_the_direction_of_the_noise():
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1], 500)
    x = draw.normal(size=(1000, 2)) * [0.05, 3.0] + np.stack([0.2 * y, np.zeros(1000)], axis=1)
    assert class_score(x, y) > 0.9
    assert class_score(x, y, as_released=True) < 0.6


def test_class_score_of_degenerate_tasks():
    draw = np.random.default_rng(0)
    assert class_score(draw.normal(size=(5, 3)), np.full(5, 7)) == 1
    points = np.repeat([[0.0, 0.0], [1.0, 2.0]], 3, axis=0)
    assert class_score(points, np.repeat([0, 1], 3)) == pytest.approx(1)
    assert class_score(np.zeros((4, 2)), np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    few = draw.normal(size=(10, 50))  # fewer images than features
    assert class_score(few, np.arange(10) % 2) == pytest.approx(1)


def test_e_tran_of_two_tasks():
    energies = np.array([[0.0, 1.0], [2.0, 1.0]])
    class_scores = np.array([[0.2, 0.9], [0.6, 0.5]])
    # target 0: both parts 0 for source 0, 1 for source 1; target 1: energies equal, classes 1 for source 0
    np.testing.assert_allclose(e_tran(energies, class_scores), [[0, 0.925], [0.925, 0]])


def test_e_tran_takes_any_units_and_no_notice_of_rounding():
    draw = np.random.default_rng(0)
    energies, class_scores = draw.normal(size=(2, 4, 4))
    found = e_tran(energies, class_scores)
    np.testing.assert_allclose(e_tran(5 * energies + [1, 2, 3, 4], class_scores), found)
    np.testing.assert_array_equal(found, found.T)
    assert 0 <= found.min() <= found.max() <= 1
    flat = 1 - 1e-12 * draw.random((4, 4))
    np.testing.assert_array_equal(e_tran(flat, flat), np.zeros((4, 4)))
