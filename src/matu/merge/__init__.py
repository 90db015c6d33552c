"""Merge PEFT LoRA adapters without any federation, and give them back."""

from matu.merge.merge import METHODS, merge
from matu.merge.merged import restore
from matu.merge.start import mark_start

__all__ = ["METHODS", "mark_start", "merge", "restore"]
