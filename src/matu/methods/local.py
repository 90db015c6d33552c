"""Local: every site alone, what it has without anybody; the lower reference.

sent         nothing
trained      each task on the site's own data, for as many epochs as the federation spends on it in the mean
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from matu.methods.reference import Reference, budget_steps, remembered, training_facts
from matu.seeds import stream
from matu.tasks import Task
from matu.training import Trainer, side_by_side

FORMAT = 1


class LocalOnly(Reference):
    """The reference of this file."""

    def accuracies(
        self,
        trainer: Trainer,
        tasks: Mapping[str, Task],
        shares: Mapping[str, Mapping[str, np.ndarray]],
        *,
        cache: Path,
        tell: Callable[[str], None],
    ) -> dict[str, dict[str, float]]:
        def work() -> Iterator[Callable[[Trainer], float]]:
            for number, (site, share) in enumerate(shares.items(), 1):
                tell(f"local: {site} ({number}/{len(shares)}): {', '.join(share)}")
                for task, indices in share.items():
                    yield partial(self._accuracy, tasks[task], site, indices, cache / "local")

        accuracy = iter(list(side_by_side(trainer, work())))
        return {site: {task: next(accuracy) for task in share} for site, share in shares.items()}

    def _accuracy(self, task: Task, site: str, indices: np.ndarray, cache: Path, trainer: Trainer) -> float:
        steps = budget_steps(self.config, len(indices), holders=1)
        seed = self.config.machine.seed

        def compute() -> dict[str, float]:
            draw = stream(seed, "local", site, task.name)
            weights, _ = trainer.train(trainer.untrained(len(task.classes)), task.train, indices, draw, steps=steps)
            return {"accuracy": trainer.accuracy(weights, task.test)}

        share = hashlib.sha256(np.ascontiguousarray(indices, dtype=np.int64).tobytes()).hexdigest()
        model, how = training_facts(trainer, self.config)
        facts = (FORMAT, site, task.name, task.digest, share, steps, *model, *how)
        return float(remembered(cache, facts, compute)["accuracy"])
