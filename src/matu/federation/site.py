"""A site: some tasks with their local data, and the answer to a server's message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from matu.errors import DataError
from matu.federation.hello import Score
from matu.federation.transport import Failure, reply_of
from matu.methods import Local, Method, State
from matu.seeds import stream
from matu.tasks import Split, Task, class_list
from matu.training import Clock, Job, Trainer, Weights, side_by_side, train_together
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
        Trains, if `answer` is not given another; sites in one process share it.
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
        """As `answer`, by its own trainer."""
        return self.answer(request, self.trainer)

    def answer(self, request: bytes, trainer: Trainer) -> bytes:
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
        trainer, clock = replace(trainer, clock=Clock()), trainer.clock
        config = trainer.config

        def train(starts: Mapping[str, Weights]) -> dict[str, Weights]:
            jobs = [
                Job(
                    start, self.tasks[task].train, self.indices[task],
                    stream(self.seed, "batches", received.round, self.name, task),
                )
                for task, start in starts.items()
            ]  # fmt: skip
            found = train_together(trainer, jobs, steps=config.local_steps, epochs=config.local_epochs)
            losses.extend(loss for _, loss in found)
            return {task: trained for task, (trained, _) in zip(starts, found, strict=True)}

        samples = {task: len(self.indices[task]) for task in received.tasks}
        local = Local(received.tasks, samples, self.memory, train)
        tensors, memory = self.method.local_update(local, opened)
        metrics = {"loss": sum(losses) / len(losses), "images": trainer.clock.train_images}
        clock.add(trainer.clock)
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
        weights = self.method.weights(asked.tasks, opened, self.memory)
        work = [partial(_correct, one, self.tasks[task].test) for task, one in weights.items()]
        correct = dict(zip(weights, side_by_side(self.trainer, work), strict=True))
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


def _correct(weights: Weights, test: Split, trainer: Trainer) -> int:
    return round(trainer.accuracy(weights, test) * len(test.labels)) if len(test.labels) else 0


class SideBySide:
    """Sites in this process whose trainings are at work side by side (`Transport`).

    Parameters
    ----------
    sites
        By name.
    trainer
        Whose crew trains them.
    """

    def __init__(self, sites: Mapping[str, Site], trainer: Trainer) -> None:
        self.sites, self.trainer = sites, trainer

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply; sites with most images first, so that none of them is left to the end."""

        def asked(name: str, payload: bytes) -> Callable[[Trainer], tuple[str, bytes | Failure]]:
            return lambda trainer: (name, reply_of(lambda message: self.sites[name].answer(message, trainer), payload))

        images = {name: sum(map(len, self.sites[name].indices.values())) for name in payloads}
        order = sorted(payloads, key=lambda name: -images[name])
        return side_by_side(self.trainer, (asked(name, payloads[name]) for name in order), split=True)
