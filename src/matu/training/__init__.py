"""Training and evaluation on one machine."""

from matu.training.crew import Clock
from matu.training.machine import build_trainer, decide, parallel_jobs, prepare_machine
from matu.training.side_by_side import side_by_side
from matu.training.stacked import Job, train_together
from matu.training.trainer import Objective, Trainer, Weights

__all__ = [
    "Clock",
    "Job",
    "Objective",
    "Trainer",
    "Weights",
    "build_trainer",
    "decide",
    "parallel_jobs",
    "prepare_machine",
    "side_by_side",
    "train_together",
]  # fmt: skip
