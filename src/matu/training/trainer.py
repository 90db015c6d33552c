"""Local training and evaluation of one task at a time, on one model that is updated in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from matu.config import TrainingConfig
from matu.errors import DivergedError
from matu.models import AdaptedModel
from matu.tasks import Split
from matu.training.crew import Clock, Crew, Halt


class Weights(NamedTuple):
    """What makes the frozen backbone solve one task.

    Attributes
    ----------
    vector
        Task vector, float32 [d]: adapter parameters minus their start.
    head
        Linear head, float32 [classes, features + 1]: weights, and the bias as the last column.
    """

    vector: Tensor
    head: Tensor


@dataclass(frozen=True)
class Objective:
    """What a method asks of local training beyond the loss.

    Attributes
    ----------
    proximal
        μ of (μ/2)‖θ − θ_start‖² over adapter and head, added to the loss (FedProx).
    linearised
        Train and evaluate the features' first-order Taylor expansion at the start of the adapter.
    trained
        bool [d], which adapter parameters learn; None: all.
    balanced
        Cross-entropy of logit + log share of the class among the images trained on (logit adjustment, Menon et al.
        2021; per client, Zhang et al. 2022). A class without images leaves the softmax (Li and Zhan 2021), and its
        row of the head stays as it was; with one class alone nothing is trained.
    """

    proximal: float = 0.0
    linearised: bool = False
    trained: Tensor | None = None
    balanced: bool = False


@dataclass
class Trainer:
    """One adapted model and how to train it.

    Parameters
    ----------
    model
        The adapted model; its parameters are overwritten by every call.
    config
        Steps, rate, clipping.
    objective
        What the method asks for.
    together
        Fine-tunings that are computed at once where several are asked for (`stacked.train_together`).
    clock
        Counts.
    crew
        Models for work at the same time, this one among them; None: there is this one.
    halt
        Ends what is under way, between two steps.
    """

    model: AdaptedModel
    config: TrainingConfig
    objective: Objective = field(default_factory=Objective)
    together: int = 1
    clock: Clock = field(default_factory=Clock)
    crew: Crew | None = None
    halt: Halt = field(default_factory=Halt)

    def untrained(self, classes: int) -> Weights:
        """Where a fine-tuning of so many classes begins: no change, head zero."""
        return Weights(torch.zeros(self.model.dim), torch.zeros(classes, self.model.backbone.features + 1))

    def train(
        self,
        weights: Weights,
        split: Split,
        indices: np.ndarray,
        draw: np.random.Generator,
        *,
        steps: int = 0,
        epochs: int = 1,
    ) -> tuple[Weights, float]:
        """Fine-tune adapter and head from `weights` with a fresh AdamW.

        Parameters
        ----------
        weights
            Where to start.
        split, indices
            The images, and which of them (int64 [n]).
        draw
            Decides the batches.
        steps, epochs
            How long; steps go first where both are given.

        Returns
        -------
        tuple
            The trained weights, and the mean loss a step.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        fit = Fit(self, weights, split.labels[indices])
        if fit.silent:
            return weights, 0.0
        for batch in batches(indices, self.config.batch_size, draw, steps=steps, epochs=epochs):
            fit.step(split, batch)
        return fit.weights(), fit.mean_loss()

    def features(self, images: np.ndarray) -> Tensor:
        """Image features of uint8 images [n, size, size, 3], float32 [n, features]."""
        pixels = torch.from_numpy(images)
        if self.objective.linearised:
            return self.model.linearised_features(pixels).float()
        return self.model.features(pixels).float()

    def predict_as_is(self, head: Tensor, images: np.ndarray, *, batch_size: int = 250) -> Tensor:
        """Logits, float32 [n, classes], of uint8 images [n, size, size, 3], with the adapter as it stands."""
        head = head.to(self.model.device)
        return self._read(images, batch_size, lambda features: logits(features, head))

    def features_as_is(self, images: np.ndarray, *, batch_size: int = 250) -> Tensor:
        """As `features`, of any number of images, on the CPU and without gradients, with the adapter as it stands."""
        return self._read(images, batch_size, lambda features: features)

    @torch.no_grad()
    def _read(self, images: np.ndarray, batch_size: int, of: Callable[[Tensor], Tensor]) -> Tensor:
        began = time.perf_counter()
        parts = []
        for first in range(0, len(images), batch_size):
            self.halt.check()
            chunk = np.array(images[first : first + batch_size])  # a copy: the cache is read-only
            with torch.inference_mode(not self.objective.linearised):  # which has no forward-mode derivatives
                parts.append(of(self.features(chunk)))
        found = torch.cat(parts).cpu()  # at the end: a GPU is not waited for after every batch
        self.clock.evaluate_images += len(images)
        self.clock.evaluate_s += time.perf_counter() - began
        return found

    def accuracy(self, weights: Weights, split: Split, indices: np.ndarray | None = None) -> float:
        """Share of a split's images (or those at `indices`) that get their label."""
        self.model.load(weights.vector)
        return self.accuracy_as_is(weights.head, split, indices)

    def accuracy_as_is(self, head: Tensor, split: Split, indices: np.ndarray | None = None) -> float:
        """As `accuracy`, with the adapter as it stands."""
        images, labels = split.images, split.labels
        if indices is not None:
            images, labels = images[indices], labels[indices]
        predicted = self.predict_as_is(head, images).argmax(dim=1)
        return float((predicted == torch.from_numpy(np.array(labels))).double().mean())


class Fit:
    """One fine-tuning under way: adapter, head, and a fresh AdamW over both.

    Parameters
    ----------
    trainer
        Model, rates, objective.
    start
        Where it starts.
    labels
        int [n], of the images to train on: what a balanced objective is balanced by. None: it is not balanced.
    own
        With an adapter of its own, for `stacked.train_together`, and not in the model's.
    """

    def __init__(
        self, trainer: Trainer, start: Weights, labels: np.ndarray | None = None, *, own: bool = False
    ) -> None:
        self.trainer, self.model = trainer, trainer.model
        if own:
            self.adapter = nn.Parameter(self.model.start + start.vector.to(self.model.start))
        else:
            self.model.load(start.vector)
            self.adapter = self.model.parameters
        self.head = nn.Parameter(start.head.to(self.model.device, copy=True))
        self._start = [self.adapter.detach().clone(), self.head.detach().clone()]
        c = trainer.config
        self.trained = [self.adapter, self.head]
        self.optimiser = torch.optim.AdamW(self.trained, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True)
        self._log_shares: Tensor | None = None
        if labels is not None and (c.balanced or trainer.objective.balanced):
            counts = torch.from_numpy(np.bincount(labels, minlength=len(start.head)))
            self._log_shares = (counts / counts.sum()).log().to(self.model.device)
        self._losses, self._steps = torch.zeros((), device=self.model.device), 0

    @property
    def silent(self) -> bool:
        """Nothing can be learnt: a balanced objective, and images of one class, whose loss is zero whatever happens."""
        return self._log_shares is not None and int(self._log_shares.isfinite().sum()) == 1

    def step(self, split: Split, batch: np.ndarray) -> None:
        """One step on the images at `batch`."""
        self.trainer.halt.check()
        began = time.perf_counter()
        loss = self.loss(self.trainer.features(split.images[batch]), split.labels[batch])
        assert self.adapter.grad is not None
        self.adapter.grad.zero_()  # not dropped: the LoRA matrices' gradients are views of it
        self.head.grad = None
        loss.backward()
        self.update(loss)
        self.trainer.clock.train_images += len(batch)
        self.trainer.clock.train_s += time.perf_counter() - began

    def loss(self, features: Tensor, labels: np.ndarray) -> Tensor:
        """Cross-entropy of a batch's features [n, features] and labels [n]; balanced, if the objective is."""
        expected = torch.from_numpy(labels).to(self.model.device, non_blocking=True)  # no wait for a GPU
        found = logits(features, self.head)
        return nn.functional.cross_entropy(found if self._log_shares is None else found + self._log_shares, expected)

    def update(self, loss: Tensor) -> None:
        """The optimiser's step, once the loss has gone backward."""
        self._shape_gradients()
        if self.trainer.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.trained, self.trainer.config.gradient_clip)
        self.optimiser.step()
        self._hold_frozen()
        self._losses += loss.detach()
        self._steps += 1

    def _shape_gradients(self) -> None:
        """Add the proximal term's gradient μ(θ − θ_start); drop that of parameters that do not learn."""
        asked = self.trainer.objective
        if asked.proximal:
            for parameter, start in zip(self.trained, self._start, strict=True):
                assert parameter.grad is not None
                parameter.grad.add_(parameter.detach() - start, alpha=asked.proximal)
        if asked.trained is not None:
            assert self.adapter.grad is not None
            self.adapter.grad.mul_(asked.trained.to(self.model.device))

    def _hold_frozen(self) -> None:
        """Weight decay would move parameters that do not learn, and rows of classes that a balanced site lacks."""
        if self._log_shares is not None:
            rows = self.head.data
            torch.where(self._log_shares.isfinite()[:, None], rows, self._start[1], out=rows)
        learns = self.trainer.objective.trained
        if learns is not None:
            here = self.adapter.data
            torch.where(learns.to(self.model.device), here, self._start[0], out=here)

    def mean_loss(self) -> float:
        """Mean loss a step so far."""
        return float(self._losses) / max(self._steps, 1)

    def weights(self) -> Weights:
        """What is trained so far, on the CPU; DivergedError if it left the finite numbers."""
        vector = (self.adapter.detach() - self.model.start).cpu()
        trained = Weights(vector, self.head.detach().cpu().clone())
        if not all(bool(torch.isfinite(part).all()) for part in (*trained, self._losses)):
            raise DivergedError(
                f"the loss is {self.mean_loss()} a step after {self._steps} steps, and adapter or head are no longer "
                "finite; a smaller learning_rate may be right"
            )
        return trained


def logits(features: Tensor, head: Tensor) -> Tensor:
    """float [n, features], [classes, features + 1] -> [n, classes]."""
    return torch.addmm(head[:, -1], features, head[:, :-1].T)


def batches(
    indices: np.ndarray, size: int, draw: np.random.Generator, *, steps: int, epochs: int
) -> Iterator[np.ndarray]:
    """Shuffled batches: whole epochs, or exactly `steps` batches over as many epochs as it takes."""
    size = min(size, len(indices))
    left = steps if steps else epochs * -(-len(indices) // size)
    while left:
        order = draw.permutation(indices)
        for first in range(0, len(order), size):
            if not left:
                return
            left -= 1
            yield np.sort(order[first : first + size])
