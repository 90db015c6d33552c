"""What a state is worth on the test images: as delivered to clients, at the server, as one artifact."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from matu.artifact import Packed
from matu.methods import Method, State
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, Weights, side_by_side
from matu.vectors import similarity
from matu.wire import Codecs, arrived


@dataclass(frozen=True)
class Evaluation:
    """Test accuracy, shares of 1.

    Attributes
    ----------
    delivered
        By task: what its holders get, mean over holders.
    server
        By task: the server's own weights (empty where the method has none).
    artifact
        By task: what the artifact gives of the server's tasks (empty on the way).
    clients
        By client: mean over its tasks of what it gets.
    similarity
        Of the server's vectors, mean of S (Eq. 5) over pairs of tasks; None before two tasks have one.
    cosine
        By number of tasks: cosine of the vector that a client with so many gets of a task to the server's own; mean
        over such clients and their tasks.
    """

    delivered: Mapping[str, float]
    server: Mapping[str, float]
    artifact: Mapping[str, float]
    clients: Mapping[str, float]
    similarity: float | None = None
    cosine: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of_clients(
        cls,
        per_client: Mapping[str, Mapping[str, float]],
        tasks: Mapping[str, Task],
        *,
        server: Mapping[str, float] | None = None,
        artifact: Mapping[str, float] | None = None,
        similarity: float | None = None,
        cosine: Mapping[int, float] | None = None,
    ) -> Evaluation:
        """From the accuracies by client and task."""
        holders = {task: [found[task] for found in per_client.values() if task in found] for task in tasks}
        return cls(
            delivered={task: float(np.mean(found)) for task, found in holders.items()},
            server=server or {},
            artifact=artifact or {},
            clients={name: float(np.mean(list(found.values()))) for name, found in per_client.items()},
            similarity=similarity,
            cosine=cosine or {},
        )


@dataclass
class Evaluator:
    """Measures states; what two clients get alike is measured once.

    Attributes
    ----------
    method, trainer
        What opens a downlink, and whose crew runs it.
    tasks
        By name, with their test splits.
    clients
        Tasks by client.
    memory
        What the method keeps at a client.
    seed
        Of the images used on the way.
    codecs
        How downlinks travel.
    """

    method: Method
    trainer: Trainer
    tasks: Mapping[str, Task]
    clients: Mapping[str, tuple[str, ...]]
    memory: Callable[[str], State]
    seed: int
    codecs: Codecs = field(default_factory=Codecs)

    def on_the_way(self, state: State, images: int) -> Evaluation:
        """On the same `images` test images of each task every time (0: all); without the artifact."""
        return self._evaluate(state, images, with_artifact=False)

    def at_the_end(self, state: State) -> Evaluation:
        """On all test images."""
        return self._evaluate(state, 0, with_artifact=True)

    def _evaluate(self, state: State, images: int, *, with_artifact: bool) -> Evaluation:
        known: dict[str, float] = {}
        server = self.method.server_weights(state) or {}
        alike: dict[str, list[float]] = {}
        kinds = {name: name if self.method.personal else "\0".join(tasks) for name, tasks in self.clients.items()}

        def delivered() -> Iterator[tuple[str, Mapping[str, Weights]]]:
            for name, kind in kinds.items():
                if kind not in alike:
                    gets = self._delivered(state, name, self.clients[name])
                    alike[kind] = _cosines(gets, server) if server else []
                    yield kind, gets

        by_kind = self._accuracies(delivered(), images, known)
        ends = {"server": server, "artifact": self._packed(server) if with_artifact else {}} if server else {}
        others = self._accuracies(ends.items(), images, known)
        cosines: dict[int, list[float]] = {}
        for name, kind in kinds.items():
            cosines.setdefault(len(self.clients[name]), []).extend(alike[kind])
        return Evaluation.of_clients(
            {name: by_kind[kind] for name, kind in kinds.items()}, self.tasks,
            server=others.get("server", {}), artifact=others.get("artifact", {}),
            similarity=_mean_similarity([one.vector for one in server.values()]) if server else None,
            cosine={k: float(np.mean(found)) for k, found in sorted(cosines.items()) if found},
        )  # fmt: skip

    def _packed(self, server: Mapping[str, Weights]) -> Mapping[str, Weights]:
        """What the artifact gives of each task."""
        return Packed.of(server, separate=self.method.separate).weights()

    def _delivered(self, state: State, name: str, tasks: tuple[str, ...]) -> Mapping[str, Weights]:
        """What a client gets of each of its tasks."""
        sent = self.method.downlink(state, name, tasks)
        opened = arrived(self.method.downlink_parts(tasks), sent, self.codecs)
        return self.method.weights(tasks, opened, self.memory(name))

    def _accuracies(
        self, asked: Iterable[tuple[str, Mapping[str, Weights]]], images: int, known: dict[str, float]
    ) -> dict[str, dict[str, float]]:
        """By label and task; weights are drawn as they are needed, and what is `known` (it grows) is not measured."""
        keys: dict[str, dict[str, str]] = {}

        def unknown() -> Iterator[Callable[[Trainer], tuple[str, float]]]:
            for label, weights in asked:
                keys[label] = {task: _content(task, one, images) for task, one in weights.items()}
                for (task, one), key in zip(weights.items(), keys[label].values(), strict=True):
                    if key not in known:
                        known[key] = math.nan  # under way
                        yield partial(self._measure, key, task, one, images)

        known.update(side_by_side(self.trainer, unknown()))
        return {label: {task: known[key] for task, key in by_task.items()} for label, by_task in keys.items()}

    def _measure(self, key: str, task: str, weights: Weights, images: int, trainer: Trainer) -> tuple[str, float]:
        split = self.tasks[task].test
        some = None
        if 0 < images < len(split.labels):
            some = np.sort(stream(self.seed, "evaluate", task).choice(len(split.labels), images, replace=False))
        return key, trainer.accuracy(weights, split, some)


def _content(task: str, weights: Weights, images: int) -> str:
    """What decides an accuracy, as one word."""
    content = hashlib.sha256(f"{task} {images} ".encode())
    content.update(weights.vector.contiguous().numpy().data)
    content.update(weights.head.contiguous().numpy().data)
    return content.hexdigest()


def _cosines(gets: Mapping[str, Weights], server: Mapping[str, Weights]) -> list[float]:
    """Of each task's vector to the server's, where that is not zero."""
    pairs = [(one.vector.double(), server[task].vector.double()) for task, one in gets.items()]
    return [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs if b.any()]


def _mean_similarity(vectors: Sequence[torch.Tensor]) -> float | None:
    """Mean of Eq. 5 over pairs of vectors that are not zero."""
    seen = [vector for vector in vectors if vector.any()]
    if len(seen) < 2:
        return None
    pairs = similarity(torch.stack(seen)).fill_diagonal_(0)
    return float(pairs.sum()) / (len(seen) * (len(seen) - 1))
