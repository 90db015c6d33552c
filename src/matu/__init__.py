"""Many-task federated fine-tuning via unified task vectors."""

from matu.vectors import RoundAccumulator, Unified, similarity, transfer, unify

__all__ = ["RoundAccumulator", "Unified", "similarity", "transfer", "unify"]
