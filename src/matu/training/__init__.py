"""Training and evaluation on one machine."""

from matu.training.machine import build_trainer, decide, prepare_machine
from matu.training.trainer import Clock, Objective, Trainer, TrainingError, Weights

__all__ = ["Clock", "Objective", "Trainer", "TrainingError", "Weights", "build_trainer", "decide", "prepare_machine"]
