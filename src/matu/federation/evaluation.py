"""What a state is worth on the test images: as delivered to clients, at the server, as one artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from matu.methods import Method, State
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, Weights


@dataclass(frozen=True)
class Evaluation:
    """Test accuracy, shares of 1.

    Attributes
    ----------
    delivered
        By task: what its holders get, mean over holders.
    server
        By task: the server's own model.
    artifact
        By task: all tasks in one unified vector (empty on the way).
    clients
        By client: mean over its tasks of what it gets.
    """

    delivered: Mapping[str, float]
    server: Mapping[str, float]
    artifact: Mapping[str, float]
    clients: Mapping[str, float]


@dataclass
class Evaluator:
    """Measures states; what two clients get alike is measured once.

    Attributes
    ----------
    method, trainer
        What opens a downlink, and what runs it.
    tasks
        By name, with their test splits.
    clients
        Tasks by client.
    seed
        Of the images used on the way.
    """

    method: Method
    trainer: Trainer
    tasks: Mapping[str, Task]
    clients: Mapping[str, tuple[str, ...]]
    seed: int
    _known: dict[str, float] = field(default_factory=dict)

    def on_the_way(self, state: State, images: int) -> Evaluation:
        """On the same `images` test images of each task every time (0: all); without the artifact."""
        return self._evaluate(state, images, artifact=False)

    def at_the_end(self, state: State) -> Evaluation:
        """On all test images."""
        return self._evaluate(state, 0, artifact=True)

    def _evaluate(self, state: State, images: int, *, artifact: bool) -> Evaluation:
        self._known.clear()
        server = self.method.server_weights(state)
        per_set = {tasks: self._opened(state, tasks, images) for tasks in dict.fromkeys(self.clients.values())}
        per_client = {name: per_set[tasks] for name, tasks in self.clients.items()}
        holders = {task: [found[task] for found in per_client.values() if task in found] for task in self.tasks}
        return Evaluation(
            delivered={task: float(np.mean(found)) for task, found in holders.items()},
            server={task: self._accuracy(task, server[task], images) for task in self.tasks},
            artifact=self._opened(state, tuple(self.tasks), images) if artifact else {},
            clients={name: float(np.mean(list(found.values()))) for name, found in per_client.items()},
        )

    def _opened(self, state: State, tasks: tuple[str, ...], images: int) -> dict[str, float]:
        """Accuracy of each task in the downlink of a client that holds `tasks`."""
        weights = self.method.weights(tasks, self.method.downlink(state, tasks))
        return {task: self._accuracy(task, weights[task], images) for task in tasks}

    def _accuracy(self, task: str, weights: Weights, images: int) -> float:
        content = hashlib.sha256(f"{task} {images} ".encode())
        content.update(weights.vector.numpy().data)
        content.update(weights.head.contiguous().numpy().data)
        key = content.hexdigest()
        if key not in self._known:
            split = self.tasks[task].test
            some = None
            if 0 < images < len(split.labels):
                some = np.sort(stream(self.seed, "evaluate", task).choice(len(split.labels), images, replace=False))
            self._known[key] = self.trainer.accuracy(weights, split, some)
        return self._known[key]
