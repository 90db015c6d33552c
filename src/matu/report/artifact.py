"""What `matu inspect`, `matu predict` and `matu evaluate` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from matu.report.console import plain_console
from matu.words import counted, printable_path

if TYPE_CHECKING:
    from matu.artifact.predict import Prediction


def print_inspection(found: Mapping[str, Any]) -> None:
    """Sizes, a table of tasks, and one of how alike their vectors are."""
    console, size, made = plain_console(), found["bytes"], found["provenance"]
    lora, tasks = found["lora"], found["tasks"]
    files = ", ".join(f"{name} {_kb(count)}" for name, count in size["files"].items())
    for line in (
        f"{counted(len(tasks), 'task')} on {found['backbone']['name']}, {found['form']}; "
        f"images of {found['image_size']} px",
        f"LoRA of rank {lora['rank']} on {', '.join(lora['targets'])}: {found['dim']:,} numbers",
        f"by {made['method']} of matu {made['matu']}, {counted(made['rounds'], 'round')}, seed {made['seed']}, "
        + "; ".join([made["date"], *made["changes"]]),
        f"{_kb(size['total'])} on disk: {files}",
        f"as float32 adapters with heads: {_kb(size['float32'])}, {size['float32'] / size['total']:.1f} times as much",
    ):
        console.print(line, markup=False, soft_wrap=True)
    console.print(_tasks_table(tasks))
    if len(tasks) > 1:
        console.print(_similarity_table(tuple(tasks), found["similarity"]))
        if found["form"] == "unified":
            console.print("pieces of one vector: alike by construction", markup=False)


def _tasks_table(tasks: Mapping[str, Any]) -> Table:
    kinds = list(dict.fromkeys(kind for one in tasks.values() for kind in one["accuracy"]))
    masked = any(one["mask_density"] is not None for one in tasks.values())
    table = Table()
    table.add_column("task", no_wrap=True)
    for name in ("classes", "bytes", *(("mask",) if masked else ()), "rescaler", "norm", *kinds):
        table.add_column(name, justify="right")
    for task, one in tasks.items():
        density = [f"{100 * one['mask_density']:.1f} %"] if masked else []
        accuracy = [f"{100 * one['accuracy'][kind]:.1f}" if kind in one["accuracy"] else "-" for kind in kinds]
        row = (_kb(one["bytes"]), *density, f"{one['rescaler']:.3f}", f"{one['norm']:.3g}", *accuracy)
        table.add_row(task, str(len(one["classes"])), *row)
    return table


def _similarity_table(names: Sequence[str], similarity: Mapping[str, Sequence[Sequence[float]]]) -> Table:
    """Signs above the diagonal, cosines below it."""
    title = "similarity of vectors: above the diagonal signs (Eq. 5, 0.5 is chance), below it cosine"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for i, name in enumerate(names):
        cells = [similarity["sign" if j > i else "cosine"][i][j] for j in range(len(names))]
        table.add_row(name, *("" if j == i else f"{cell:.2f}" for j, cell in enumerate(cells)))
    return table


def print_predictions(task: str, found: Sequence[Prediction]) -> None:
    """A line an image."""
    if not found:
        return
    table = Table(title=f"task {task}", title_justify="left")
    table.add_column("image", overflow="fold")
    for _ in found[0].top:
        table.add_column("class")
        table.add_column("%", justify="right")
    for one in found:
        cells = [cell for label, share in one.top for cell in (label, f"{100 * share:.1f}")]
        table.add_row(printable_path(one.image), *cells)
    plain_console().print(table)


def print_evaluation(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A line a task, beside what the run itself measured."""
    table = Table(title="test accuracy in %", title_justify="left")
    table.add_column("task", no_wrap=True)
    for name in ("images", "here", "stated by the run"):
        table.add_column(name, justify="right")
    for task, one in found.items():
        stated = "-" if one["stated"] is None else f"{100 * one['stated']:.1f}"
        table.add_row(task, f"{one['images']:,}", f"{100 * one['accuracy']:.1f}", stated)
    plain_console().print(table)


def _kb(count: int) -> str:
    return f"{count / 1e3:,.1f} kB"
