"""Several trainings or evaluations at work at a time on a CPU, each with a model and on a thread of its own.

The products of small models are too short to be shared between cores: two threads at one product may well be slower
than one. Two threads at two products are not. What a job gives does not depend on the jobs beside it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from matu.training.crew import Clock, Halt
from matu.training.trainer import Trainer

T = TypeVar("T")
Work = Callable[[Trainer], T]
"""What is to be done, with the trainer that is given."""


def side_by_side(trainer: Trainer, jobs: Iterable[Work[T]], *, split: bool = False) -> Iterator[T]:
    """What each job gives, in their order.

    A job is drawn when it is about to begin, so that what many need is not in memory at once: at most two a model of
    the trainer's crew are drawn whose results have not been taken. Whoever stops taking, or is interrupted, stops
    what is under way after its step. Without a crew, or where the objective is linearised (forward-mode derivatives
    of two threads would meet), jobs are done in turn.

    Parameters
    ----------
    trainer
        Its crew's models are lent; its clock counts what is done, in the end, and no more seconds than went by.
    jobs
        Called with a trainer of this objective whose model nobody else uses meanwhile.
    split
        Jobs train nothing but by `side_by_side`, with the trainer that they are given: models are lent to the parts.

    Raises
    ------
    Exception
        Whatever a job raises, when its turn comes.
    """
    crew = trainer.crew
    if crew is None or trainer.objective.linearised:
        alone = trainer if crew is None else dataclasses.replace(trainer, crew=None)
        for job in jobs:
            yield job(alone)
        return
    halt, count = Halt(trainer.halt), len(crew.models)

    def work(job: Work[T]) -> tuple[T, Clock]:
        given = dataclasses.replace(trainer, clock=Clock(), halt=halt)
        if split:
            return job(given), given.clock
        with crew.lent() as model:
            return job(dataclasses.replace(given, model=model, crew=None)), given.clock

    began, spent = time.perf_counter(), Clock()

    def taken(result: Future[tuple[T, Clock]]) -> T:
        found, clock = result.result()
        spent.add(clock)
        return found

    waiting: deque[Future[tuple[T, Clock]]] = deque()
    pool = ThreadPoolExecutor(count + split, "matu-train", torch.set_num_threads, (torch.get_num_threads(),))
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) == 2 * count:
                yield taken(waiting.popleft())
        while waiting:
            yield taken(waiting.popleft())
    finally:
        halt.now = True
        pool.shutdown(cancel_futures=True)
        busy = spent.train_s + spent.evaluate_s
        trainer.clock.add(spent, share=min(1.0, (time.perf_counter() - began) / max(busy, 1e-9)))
