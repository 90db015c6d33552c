"""What `matu tasks` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from matu.report.console import plain_console
from matu.tasks import Task


def tasks_as_json(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """One object a task: names, counts, content hash."""
    return [
        {
            "name": task.name, "source": task.source, "classes": list(task.classes), "skipped": task.skipped,
            "train": len(task.train.labels), "test": len(task.test.labels), "sha256": task.digest,
            "train_class_counts": np.bincount(task.train.labels, minlength=len(task.classes)).tolist(),
            "test_class_counts": np.bincount(task.test.labels, minlength=len(task.classes)).tolist(),
        }
        for task in tasks
    ]  # fmt: skip


def print_tasks(tasks: Sequence[Task], sheet: Path | None) -> None:
    """A table: classes, counts, the smallest and the largest class, content hash."""
    console = plain_console()
    table = Table()
    table.add_column("task", no_wrap=True)
    for name in ("classes", "train", "test", "train images a class"):
        table.add_column(name, justify="right")
    table.add_column("source")
    table.add_column("sha256")
    for task in tasks:
        counts = np.bincount(task.train.labels, minlength=len(task.classes))
        low, high = counts.min(), counts.max()
        table.add_row(
            task.name, str(len(task.classes)), f"{len(task.train.labels):,}", f"{len(task.test.labels):,}",
            f"{low}" if low == high else f"{low} to {high}", task.source, task.digest[:12],
        )  # fmt: skip
    console.print(table)
    for task in tasks:
        if task.skipped:
            console.print(f"{task.name}: {task.left_out}", markup=False, soft_wrap=True)
    if sheet:
        console.print(f"contact sheet: {sheet}", markup=False, soft_wrap=True)
