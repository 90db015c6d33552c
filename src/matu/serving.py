"""Serving: one backbone in memory that classifies images of every task of an artifact."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from matu.artifact import Artifact
from matu.errors import ConfigError, DataError
from matu.models import AdaptedModel
from matu.training.trainer import logits
from matu.vectors.start import is_b


class ManyTaskModel:
    """A backbone and the unified form of many tasks: one vector, and a packed mask, a rescaler and a head per task.

    No task's adapter is kept. To switch is to write start + λ^t m^t ⊙ τ into the model's flat parameter; in a mixed
    batch every LoRA matrix of every image is made when its layer is reached. Calls from several threads take turns.

    Parameters
    ----------
    model
        The backbone with its adapter, as in training. From now on it is this object's: its parameters change.
    tensors
        `vector` float [d], `masks` bool [T, d] or packed (uint8 [T, ⌈d/8⌉], lowest bit first), `rescalers` float [T],
        `head/<task>` float [classes, features + 1].
    tasks
        Names of the tasks, in the order of the rows.
    scales
        By task, what B's part of its vector is multiplied by (an artifact's `scale`); 1 for those left out.

    Raises
    ------
    DataError
        If the tensors do not fit the model or the tasks.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tensors: Mapping[str, Tensor],
        tasks: Sequence[str],
        scales: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        _check(model, tensors, tasks)
        self.model, self.tasks = model, tuple(tasks)
        self._rows = {task: row for row, task in enumerate(tasks)}
        device = model.device
        self._vector = tensors["vector"].to(device, torch.float32)
        self._rescalers = tensors["rescalers"].to(device, torch.float32)
        self._masks = _packed(tensors["masks"]).to(device)
        self._heads = {task: tensors[f"head/{task}"].to(device, torch.float32) for task in tasks}
        self._scales = self._of_b = None
        if any(scale != 1 for scale in scales.values()):
            self._scales = torch.tensor([[scales.get(task, 1.0)] for task in tasks], device=device)
            self._of_b = model.layout.where(is_b).to(device)
        self._bits = (torch.arange(256)[:, None] >> torch.arange(8) & 1).to(device, torch.float32)
        self._task: str | None = None
        self._turn = threading.Lock()

    @classmethod
    def of(cls, artifact: Artifact, *, models_root: Path | None = None, device: torch.device | None = None) -> Self:
        """An artifact's tasks on its backbone, in float32; arguments as for `Artifact.trainer`.

        Raises
        ------
        ConfigError
            If the backbone is not there or another one, or features are linear in the adapter (`ntk_fedavg`).
        DataError
            If the artifact keeps a vector a task (`matu_plus`).
        """
        trainer = artifact.trainer(models_root=models_root, device=device)
        if trainer.objective.linearised:
            raise ConfigError("features of this artifact are linear in the adapter, which is not served")
        scales = {task: artifact.note["tasks"][task]["scale"] for task in artifact.tasks}
        return cls(trainer.model, artifact.packed.tensors, artifact.tasks, scales)

    @property
    def task(self) -> str | None:
        """The task whose adapter the model holds; None before the first."""
        return self._task

    def switch(self, task: str) -> None:
        """Put a task's adapter into the model; ConfigError if there is no such task."""
        self._require([task])
        with self._turn:
            self._switch(task)

    def predict(self, images: Tensor, task: str) -> Tensor:
        """Logits of images of one task, after a switch where the model holds another.

        Parameters
        ----------
        images
            uint8 [n, size, size, 3], decoded as in training.
        task
            What they are to be classified for.

        Returns
        -------
        Tensor
            float [n, classes], on the model's device.

        Raises
        ------
        ConfigError
            If there is no such task.
        DataError
            If the images have another shape or type.
        """
        self._require([task])
        self._check_images(images)
        with self._turn, torch.inference_mode():
            if task != self._task:
                self._switch(task)
            return logits(self.model.features(images).float(), self._heads[task])

    def predict_mixed(self, images: Tensor, tasks: Sequence[str]) -> list[Tensor]:
        """Logits of images each of its own task, in one forward pass; the task that the model holds stays.

        Parameters
        ----------
        images
            uint8 [n, size, size, 3], decoded as in training.
        tasks
            The task of every image.

        Returns
        -------
        list of Tensor
            For every image, in order, float [classes of its task], on the model's device.

        Raises
        ------
        ConfigError
            If there is no such task, or not one a image.
        DataError
            If the images have another shape or type.
        """
        self._require(tasks)
        self._check_images(images)
        if len(tasks) != len(images):
            raise ConfigError(f"tasks: {len(tasks)} for {len(images)} images, expected one for each")
        rows = torch.tensor([self._rows[task] for task in tasks], device=self.model.device)
        with self._turn, torch.inference_mode():
            features = self.model.mixed_features(images, lambda at: self._adapters(rows, at)).float()
            found: list[Tensor] = [features] * len(tasks)
            for task in dict.fromkeys(tasks):
                places = [i for i, asked in enumerate(tasks) if asked == task]
                for place, scores in zip(places, logits(features[places], self._heads[task]), strict=True):
                    found[place] = scores
            return found

    @torch.no_grad()
    def _switch(self, task: str) -> None:
        self._task = None  # an interrupt between the two leaves no name that is wrong
        row = torch.tensor([self._rows[task]], device=self.model.device)
        self._adapters(row, slice(0, self.model.dim), out=self.model.parameters.data[None])
        self._task = task

    def _adapters(self, rows: Tensor, at: slice, out: Tensor | None = None) -> Tensor:
        """start + λ m ⊙ τ of the tasks in some rows, in a range of the coordinates, float [n, stop - start]."""
        packed = self._masks[:, at.start // 8 : -(-at.stop // 8)].index_select(0, rows)
        bits = self._bits.index_select(0, packed.flatten().int()).view(len(rows), -1)
        vectors = bits[:, at.start % 8 :][:, : at.stop - at.start]
        vectors.mul_(self._rescalers[rows][:, None]).mul_(self._vector[at])
        if self._scales is not None and self._of_b is not None:
            vectors.mul_(torch.where(self._of_b[at], self._scales[rows], 1.0))
        return torch.add(self.model.start[at], vectors, out=out)

    def _require(self, tasks: Sequence[str]) -> None:
        unknown = sorted(set(tasks) - set(self.tasks))
        if unknown:
            raise ConfigError(f"no task {', '.join(map(repr, unknown))}; served are {', '.join(self.tasks)}")

    def _check_images(self, images: Tensor) -> None:
        size = self.model.backbone.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3) or not len(images):
            raise DataError(
                f"images: {images.dtype} {list(images.shape)}, expected torch.uint8 [n, {size}, {size}, 3], n > 0"
            )


def _packed(masks: Tensor) -> Tensor:
    """Masks as uint8 [T, ⌈d/8⌉], lowest bit first."""
    if masks.dtype == torch.uint8:
        return masks
    return torch.from_numpy(np.packbits(masks.numpy(), axis=1, bitorder="little"))


def _check(model: AdaptedModel, tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
    count, dim, width = len(tasks), model.dim, model.backbone.features + 1
    if not count or len(set(tasks)) < count:
        raise DataError(f"tasks: {', '.join(tasks) or 'none'}; expected one or more, each once")
    heads = [f"head/{task}" for task in tasks]
    if "vector" not in tensors and any(name.startswith("vector/") for name in tensors):
        raise DataError("a vector a task; what is served is the unified form, one vector for all tasks")
    missing = [name for name in ("vector", "masks", "rescalers", *heads) if name not in tensors]
    if missing:
        raise DataError(f"{', '.join(missing)}: missing; there are {', '.join(sorted(tensors))}")
    bits, numbers = (torch.bool, torch.uint8), (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    packed = tensors["masks"].dtype == torch.uint8
    wanted = {"vector": [dim], "masks": [count, -(-dim // 8) if packed else dim], "rescalers": [count]}
    for name in ("vector", "masks", "rescalers", *heads):
        found = tensors[name]
        shape = wanted.get(name, [*found.shape[:1], width])
        if list(found.shape) != shape or found.dtype not in (bits if name == "masks" else numbers):
            kind = "bool or packed in uint8" if name == "masks" else "float"
            right = f"[classes, {width}]" if name in heads else str(shape)
            raise DataError(f"{name}: {found.dtype} {list(found.shape)}, expected {kind} {right}")
