"""Merge PEFT LoRA adapters without any federation, and give them back."""

from matu.merge.merge import METHODS, merge
from matu.merge.merged import is_merged, merged_tasks, restore
from matu.merge.start import mark_start

__all__ = ["METHODS", "is_merged", "mark_start", "merge", "merged_tasks", "restore"]
