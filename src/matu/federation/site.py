"""A site: some tasks with their local data, and the answer to a server's message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from matu.errors import DataError
from matu.federation.hello import Score
from matu.methods import Local, Method, State
from matu.seeds import stream
from matu.tasks import Task, class_list
from matu.training import Job, Trainer, Weights, train_together
from matu.wire import Codecs, Envelope, Header, encode


@dataclass
class Site:
    """One client of the federation.

    Attributes
    ----------
    name
        How the server knows it.
    indices
        By task, which of the task's training images are this site's (int64 [n]).
    tasks
        The tasks themselves, by name.
    trainer
        Trains; sites in one process share it.
    method
        What is trained and sent.
    method_name
        As messages carry it.
    run
        Which run this is: 32 hex digits.
    seed
        Of this run; batches depend on seed, site, task and round alone.
    codecs
        How updates travel.
    by_chance
        Quantised numbers are rounded by chance (seed, site and round decide), not to the nearest.
    memory
        What the method keeps here between rounds; it never leaves the site.
    """

    name: str
    indices: Mapping[str, np.ndarray]
    tasks: Mapping[str, Task]
    trainer: Trainer
    method: Method
    method_name: str
    run: str
    seed: int
    codecs: Codecs = field(default_factory=Codecs)
    by_chance: bool = False
    memory: State = field(default_factory=dict)

    def __call__(self, request: bytes) -> bytes:
        """Answer a round's message with this site's update.

        Raises
        ------
        DataError
            For a message of another run, method, adapter or site.
        """
        envelope = Envelope(request)
        received = envelope.header
        self._check(received, "train")
        opened = envelope.tensors(self.method.downlink_parts(received.tasks))
        losses: list[float] = []
        images_before = self.trainer.clock.train_images
        config = self.trainer.config

        def together(starts: Mapping[str, Weights]) -> dict[str, Weights]:
            jobs = [
                Job(
                    start, self.tasks[task].train, self.indices[task],
                    stream(self.seed, "batches", received.round, self.name, task),
                )
                for task, start in starts.items()
            ]  # fmt: skip
            found = train_together(self.trainer, jobs, steps=config.local_steps, epochs=config.local_epochs)
            losses.extend(loss for _, loss in found)
            return {task: trained for task, (trained, _) in zip(starts, found, strict=True)}

        samples = {task: len(self.indices[task]) for task in received.tasks}
        local = Local(received.tasks, samples, self.memory, lambda task, start: together({task: start})[task], together)
        tensors, memory = self.method.local_update(local, opened)
        metrics = {"loss": sum(losses) / len(losses), "images": self.trainer.clock.train_images - images_before}
        header = replace(received, kind="update", class_lists=(), samples=tuple(samples.values()), metrics=metrics)
        draw = stream(self.seed, "rounding", received.round, self.name) if self.by_chance else None
        parts = self.method.uplink_parts(received.tasks)
        payload = encode(header, parts, tensors, self.codecs, held=opened, draw=draw)
        self.memory = memory
        return payload

    def measure(self, request: bytes) -> Score:
        """How many of the site's own test images its weights in a message label right.

        Raises
        ------
        DataError
            As above.
        """
        envelope = Envelope(request)
        asked = envelope.header
        self._check(asked, "evaluate")
        opened = envelope.tensors(self.method.downlink_parts(asked.tasks))
        correct = {}
        for task, weights in self.method.weights(asked.tasks, opened, self.memory).items():
            test = self.tasks[task].test
            correct[task] = round(self.trainer.accuracy(weights, test) * len(test.labels)) if len(test.labels) else 0
        return Score(self.name, self.run, asked.round, correct)

    def _check_classes(self, task: str, theirs: str) -> None:
        ours = class_list(self.tasks[task].classes) if task in self.tasks else theirs
        if ours == theirs:
            return
        here, there = ours.partition(":")[0], theirs.partition(":")[0]
        if here != there:
            raise DataError(f"site '{self.name}': task '{task}': {here} classes here, {there} at the server")
        raise DataError(
            f"site '{self.name}': task '{task}': the {here} classes have other names or another order than at the "
            f"server; here they are {', '.join(self.tasks[task].classes)}"
        )

    def _check(self, message: Header, kind: str) -> None:
        expected = {
            "kind": kind, "run": self.run, "method": self.method_name, "site": self.name,
            "fingerprint": self.trainer.model.fingerprint, "tasks": tuple(self.indices),
        }  # fmt: skip
        for task, theirs in zip(message.tasks, message.class_lists, strict=False):
            self._check_classes(task, theirs)
        for name, value in expected.items():
            if getattr(message, name) != value:
                raise DataError(
                    f"site '{self.name}': the server's message has {name} {getattr(message, name)!r}, "
                    f"here it is {value!r}"
                )
