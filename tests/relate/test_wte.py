"""Wasserstein task embedding against hand-computed answers."""

import numpy as np
import pytest

from matu.relate.wte import class_distances, label_vectors, transported, wte


def draw(seed=0):
    return np.random.default_rng(seed)


def test_classes_of_one_feature_differ_by_mean_and_spread():
    x = np.array([[0.0], [2.0], [4.0], [8.0], [7.0]])  # means 1, 6, 7 and spreads 1, 2, 0
    found = class_distances([x[:4], x[4:]], [np.array([0, 0, 1, 1]), np.array([0])])
    expected = np.sqrt([[0, 25 + 1, 36 + 1], [26, 0, 1 + 4], [37, 5, 0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_classes_of_several_features_differ_by_their_covariance():
    long, tall = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]]), np.array([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    turned = long @ np.array([[0.8, -0.6], [0.6, 0.8]])
    found = class_distances([long, tall, turned], [np.zeros(4, dtype=np.int64)] * 3)
    assert found[0, 1] == pytest.approx(np.sqrt((2 - 1) ** 2 + (1 - 2) ** 2))
    # S = diag(4, 1) turned by an angle of cosine 0.8: tr (S S')^½ = √(tr SS' + 2 √det SS')
    one, other = np.diag([4.0, 1.0]), turned.T @ turned / 4
    root = np.sqrt(np.trace(one @ other) + 2 * np.sqrt(np.linalg.det(one @ other)))
    assert found[0, 2] == pytest.approx(np.sqrt(10 - 2 * root))


def test_label_vectors_keep_distances_that_ten_dimensions_can_hold():
    points = draw().normal(size=(30, 10))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    for scale in (1.0, 1e4):
        vectors = label_vectors(scale * distances)
        assert vectors.shape == (30, 10)
        found = np.linalg.norm(vectors[:, None] - vectors, axis=2)
        np.testing.assert_allclose(found, scale * distances, rtol=1e-3)
    assert not label_vectors(np.zeros((2, 2))).any()


def test_mass_goes_the_cheapest_way():
    samples, reference = np.array([[30.0], [1.0], [9.0], [2.0]]), np.array([[0.0], [10.0]])
    np.testing.assert_allclose(transported(samples, reference), [[1.5], [19.5]])
    np.testing.assert_allclose(transported(samples[:2], reference), [[1.0], [30.0]])


@pytest.mark.parametrize("images", [7, 200, 450])
def test_a_shift_of_a_task_is_how_far_it_lies(images):
    x, y = draw().normal(size=(images, 5)), np.zeros(images, dtype=np.int64)
    shift = np.array([3.0, 0, 4, 0, 0])
    found = wte([x, x + shift, x], [y, y, y], draw(1))
    # Optimal plans do not change when all samples move; features move by 5, the class's vector by 5 too.
    expected = np.sqrt(50) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found, found.T)


def test_classes_count_beside_images():
    """The same images with other labels are another task."""
    x = draw().normal(size=(200, 4))
    near, far = (x[:, 0] > 0).astype(np.int64), np.arange(200) % 2
    found = wte([x, x, x], [near, near + 5, far], draw(1))
    assert found[0, 1] < 0.2 * found[0, 2]


def test_turned_features_lie_as_far_apart():
    features = [draw(seed).normal(size=(200, 4)) + seed for seed in range(3)]
    labels = [np.arange(200) % classes for classes in (1, 2, 5)]
    turn = np.linalg.qr(draw(9).normal(size=(4, 4)))[0]
    plain, turned = wte(features, labels, draw(1)), wte([x @ turn for x in features], labels, draw(1))
    np.testing.assert_allclose(turned, plain, rtol=1e-3)
    np.testing.assert_allclose(wte([10 * x for x in features], labels, draw(1)), 10 * plain, rtol=1e-3)


def test_tasks_without_any_spread():
    found = wte([np.ones((3, 2)), np.ones((5, 2))], [np.zeros(3, dtype=np.int64), np.ones(5, dtype=np.int64)], draw())
    np.testing.assert_array_equal(found, np.zeros((2, 2)))
