"""Training and evaluation on one machine."""

from matu.training.machine import build_trainer, decide, prepare_machine
from matu.training.stacked import Job, train_together
from matu.training.trainer import Clock, Objective, Trainer, TrainingError, Weights

__all__ = [
    "Clock", "Job", "Objective", "Trainer", "TrainingError", "Weights", "build_trainer", "decide", "prepare_machine",
    "train_together",
]  # fmt: skip
