"""Wasserstein task embedding (Liu et al. 2022): how far tasks lie apart, images and labels together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.manifold import smacof

from matu.tasks.loading import stratified

LABEL_DIMENSIONS = 10
REFERENCE_POINTS = 200
SAMPLES_A_POINT = 5
"""Most samples of a task that are transported to one reference point."""


def wte(features: Sequence[np.ndarray], labels: Sequence[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """Distance between Wasserstein embeddings of tasks; lower is closer.

    1. Every class of every task is a Gaussian in the frozen backbone's feature space (mean and full covariance,
       maximum likelihood), and classes have 2-Wasserstein distances.
    2. Metric multidimensional scaling turns these into vectors of 10 numbers, one a class.
    3. A sample is its feature followed by its class's vector. Of each task samples are drawn class by class, a
       whole multiple of 200 (1,000 at most; a task with fewer than 200 images repeats some).
    4. Optimal transport (squared Euclidean cost, equal masses) carries a task's samples to 200 reference points,
       drawn once from the Gaussian with mean and covariance of all tasks' samples. A task's embedding is where the
       points' mass comes from (barycentric projection).
    5. The distance is Euclidean, over √200, so that it estimates a 2-Wasserstein distance in units of features.

    Parameters
    ----------
    features, labels
        By task: float [n, features], int [n].
    draw
        Draws the reference points.

    Returns
    -------
    float64 [T, T]
        Symmetric, at least 0, zero on the diagonal and between tasks of the same images and classes.
    """
    vectors = label_vectors(class_distances(features, labels))
    samples, first = [], 0
    for x, y in zip(features, labels, strict=True):
        classes, place = np.unique(y, return_inverse=True)
        samples.append(np.column_stack([x, vectors[first + place]])[_drawn(y)].astype(np.float64))
        first += len(classes)
    reference = _reference(np.concatenate([joined[:: len(joined) // REFERENCE_POINTS] for joined in samples]), draw)
    embedded = np.stack([transported(joined, reference).ravel() for joined in samples])
    return squareform(pdist(embedded)) / np.sqrt(REFERENCE_POINTS)


def _drawn(labels: np.ndarray) -> np.ndarray:
    """Indices of the images that stand for a task: a whole multiple of the reference points."""
    if len(labels) < REFERENCE_POINTS:
        return np.arange(REFERENCE_POINTS) * len(labels) // REFERENCE_POINTS
    return stratified(labels, REFERENCE_POINTS * min(SAMPLES_A_POINT, len(labels) // REFERENCE_POINTS))


def _reference(pool: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Points of the Gaussian with the pool's mean and covariance: no two are equal, so the transport has no ties."""
    mean = pool.mean(axis=0)
    weights = draw.normal(size=(REFERENCE_POINTS, len(pool))) / np.sqrt(len(pool))
    return mean + weights @ (pool - mean)


def class_distances(features: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """2-Wasserstein distances between all classes of all tasks as Gaussians, float64 [classes, classes].

    W² = ‖m − m'‖² + tr S + tr S' − 2 ‖FᵀF'‖_* with S = F Fᵀ: the nuclear norm is tr (S^½ S' S^½)^½.
    """
    means, factors = [], []
    for x, y in zip(features, labels, strict=True):
        for c in np.unique(y):
            own = x[y == c].astype(np.float64)
            means.append(own.mean(axis=0))
            factors.append(np.linalg.qr(own - means[-1], mode="r") / np.sqrt(len(own)))
    squares = cdist(means, means, "sqeuclidean")
    traces = np.array([np.sum(factor**2) for factor in factors])
    for i, j in zip(*np.triu_indices(len(means), 1), strict=True):
        shared = np.linalg.svd(factors[i] @ factors[j].T, compute_uv=False).sum()
        squares[i, j] = squares[j, i] = squares[i, j] + max(traces[i] + traces[j] - 2 * shared, 0.0)
    return np.sqrt(squares)


def label_vectors(distances: np.ndarray) -> np.ndarray:
    """A vector for every class, float64 [classes, 10], Euclidean distances as near as can be to the given ones.

    Metric multidimensional scaling by stress majorisation, from the start that classical scaling gives: what ten
    dimensions can hold is held exactly.
    """
    largest = distances.max()
    if largest == 0:
        return np.zeros((len(distances), LABEL_DIMENSIONS))
    squares = (distances / largest) ** 2
    products = (squares.mean(axis=0) + squares.mean(axis=1)[:, None] - squares - squares.mean()) / 2
    variances, axes = np.linalg.eigh(products)
    start = np.zeros((len(distances), LABEL_DIMENSIONS))
    kept = min(LABEL_DIMENSIONS, len(distances))
    start[:, :kept] = axes[:, -kept:] * np.sqrt(variances[-kept:].clip(min=0))
    vectors, _ = smacof(
        distances / largest, n_components=LABEL_DIMENSIONS, init=start, n_init=1, max_iter=1000, eps=1e-6
    )
    return np.asarray(vectors * largest)


def transported(samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Barycentric projection of the optimal transport from reference points to samples, all of equal mass.

    Parameters
    ----------
    samples, reference : float [k · m, q], float [m, q]
        With k samples a point the transport is an assignment, so it is solved exactly.

    Returns
    -------
    float [m, q]
        By reference point, the mean of the samples that are transported to it.
    """
    each = len(samples) // len(reference)
    cost = cdist(np.repeat(reference, each, axis=0), samples, "sqeuclidean")
    chosen = samples[linear_sum_assignment(cost)[1]]
    return chosen.reshape(len(reference), each, -1).mean(axis=1)
