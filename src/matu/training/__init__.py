"""Training and evaluation on one machine."""

from matu.training.machine import build_trainer, decide, prepare_machine
from matu.training.trainer import Clock, Trainer, TrainingError, Weights

__all__ = ["Clock", "Trainer", "TrainingError", "Weights", "build_trainer", "decide", "prepare_machine"]
