"""Many-task federated fine-tuning via unified task vectors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matu.vectors import RoundAccumulator, Unified, similarity, transfer, unify

__all__ = ["RoundAccumulator", "Unified", "similarity", "transfer", "unify"]


def __getattr__(name: str) -> Any:
    """Import the mathematics, and torch with it, when it is first asked for: `matu --help` needs neither."""
    if name in __all__:
        return getattr(import_module("matu.vectors"), name)
    raise AttributeError(f"module 'matu' has no attribute '{name}'")
