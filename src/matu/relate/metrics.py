"""Measures of how alike tasks are; the sign measure is `matu.similarity`, the Wasserstein task embedding `wte`."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from matu.training import Trainer
from matu.training.trainer import logits

ENERGY_TAIL = 0.005
"""Share of the images, those of lowest energy, that E-Tran's energy is the mean of."""
ENERGY_WEIGHT = 0.15
"""Weight of E-Tran's energy beside its class score."""


def cosine(vectors: Tensor) -> np.ndarray:
    """Cosine between rows; a row of zeros is at right angles to every row, itself included.

    Parameters
    ----------
    vectors : float [T, d]
        Task vectors, or diagonals of Fisher information.

    Returns
    -------
    float64 [T, T]
        Symmetric, in [-1, 1]; unchanged by a positive factor of any row.
    """
    rows = vectors.double()
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    products = (unit @ unit.T).clamp(-1, 1).numpy()
    return (products + products.T) / 2


def probe(features: np.ndarray, labels: np.ndarray) -> Tensor:
    """A linear head on features of the frozen backbone: logistic regression, penalty ½‖w‖² on standardised features.

    Parameters
    ----------
    features, labels
        float [n, features]; int [n].

    Returns
    -------
    float32 [classes, features + 1]
        One row for every class that occurs among the labels, in their order, the bias last.
    """
    classes = np.unique(labels)
    if len(classes) == 1:
        return torch.zeros(1, features.shape[1] + 1)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    with warnings.catch_warnings():  # a probe that has nearly converged serves
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = LogisticRegression(max_iter=300).fit((features - mean) / spread, labels)
    weights, bias = fit.coef_ / spread, fit.intercept_
    head = np.column_stack([weights, bias - weights @ mean])
    if len(classes) == 2:  # one row tells two classes apart
        head = np.stack([np.zeros_like(head[0]), head[0]])
    return torch.from_numpy(head).float()


def fisher(trainer: Trainer, head: Tensor, images: np.ndarray, draw: np.random.Generator) -> Tensor:
    """Diagonal of the Fisher information over the adapter, at the adapter's start, which is common to all tasks.

    The mean over images x of (∂ log p(y|x) / ∂θ)², each image by itself, with one label y drawn from the model,
    p(·|x) (Achille et al. 2019, Task2Vec, who also fit the head on the frozen backbone first). Where B starts at
    zero the entries of A are exactly zero, so that a cosine is one over B's entries alone.

    Parameters
    ----------
    trainer
        Its adapter is set to the start.
    head : float32 [classes, features + 1]
        The task's head for features of the frozen backbone: `probe`.
    images
        uint8 [n, size, size, 3].
    draw
        Draws the labels.

    Returns
    -------
    float64 [d]
        On the CPU.
    """
    model, head = trainer.model, head.to(trainer.model.device)
    model.load(torch.zeros(model.dim))
    total = torch.zeros(model.dim, dtype=torch.float64, device=model.device)
    for image, chance in zip(images, draw.random(len(images)), strict=True):
        scores = logits(trainer.features(np.array(image)[None]), head)
        below = scores.detach().double().softmax(dim=1).cumsum(dim=1)
        label = (below < chance).sum(dim=1).clamp(max=len(head) - 1)
        gradient = model.parameters.grad
        assert gradient is not None
        gradient.zero_()
        cross_entropy(scores, label).backward()
        total += gradient.double().square()
    return (total / len(images)).cpu()


def energy(features: np.ndarray) -> float:
    """E-Tran's energy of a model on a task's images: mean of the lowest 0.5 % of log Σ exp over feature dimensions.

    Parameters
    ----------
    features : float [n, features]
        Of the source model on the target's images; of the 0.5 % the whole part counts, one image at least.
    """
    lowest = np.sort(logsumexp(features.astype(np.float64), axis=1))
    return float(lowest[: max(1, int(ENERGY_TAIL * len(lowest)))].mean())


def class_score(features: np.ndarray, labels: np.ndarray, *, as_released: bool = False) -> float:
    """E-Tran's class score of a model on a task: mean p(y|x) of a shrunk linear discriminant on its features.

    The discriminant is fitted and read on the same images, with maximum-likelihood covariance W within classes,
    shrunk to (1 − s) W + s (tr W / features) I, s = max(exp(−5 λ_max(W)), 1e-10), as by the method's authors. All
    directions of the generalised symmetric problem are kept, which makes it Gaussian classification with that
    covariance.

    Parameters
    ----------
    features, labels
        float [n, features]; int [n].
    as_released
        As the authors' code computes it: `eigh` of a matrix that is not symmetric gives an orthonormal basis, so
        that the covariance drops out and the nearest class mean is what is left.

    Returns
    -------
    float
        In [0, 1]; 1 for a task of one class.
    """
    found, y = np.unique(labels, return_inverse=True)
    x = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    share = np.bincount(y) / len(y)
    means = np.stack([x[y == c].mean(axis=0) for c in range(len(found))])
    if not as_released:
        x, means = _whitened(x, means, x - means[y])
    scores = np.log(share) - 0.5 * cdist(x, means, "sqeuclidean")
    return float(np.exp(log_softmax(scores, axis=1)[np.arange(len(y)), y]).mean())


def _whitened(x: np.ndarray, means: np.ndarray, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in coordinates in which the shrunk covariance of the residuals is the identity."""
    variances, axes = np.linalg.eigh(residuals.T @ residuals / len(residuals))
    variances = variances.clip(min=0)
    shrinkage = max(np.exp(-5 * variances[-1]), 1e-10)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    scaled = axes / np.sqrt(shrunk.clip(min=1e-12))  # where all images of a class are one point
    return x @ scaled, means @ scaled


def e_tran(energies: np.ndarray, class_scores: np.ndarray) -> np.ndarray:
    """E-Tran between tasks (Gholami et al. 2023): 0.15 · energy + 0.85 · class score, symmetrised.

    Both parts are first scaled, target by target, to run from 0 at the lowest to 1 at the highest source; the
    target's own model is one of the sources. A part in which all sources are equal, to 1e-9, counts 0: so does
    the class score where there are fewer images than features, which any source's features tell apart.

    Parameters
    ----------
    energies, class_scores : float [T, T]
        Source model by row, target task by column.

    Returns
    -------
    float64 [T, T]
        The mean of both directions; symmetric, in [0, 1].
    """
    score = ENERGY_WEIGHT * _scaled(energies) + (1 - ENERGY_WEIGHT) * _scaled(class_scores)
    return (score + score.T) / 2


def _scaled(values: np.ndarray) -> np.ndarray:
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    return np.where(spread > 1e-9, (values - low) / np.where(spread > 1e-9, spread, 1.0), 0.0)
