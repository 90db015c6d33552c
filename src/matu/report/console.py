"""What a person sees: progress on stderr, the final table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from matu.words import counted, percent


class Display:
    """Progress: a live line on a terminal, plain lines elsewhere.

    Parameters
    ----------
    quiet
        Say nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live: Progress | None = None
        self._accuracy = ""
        self._began, self._first = 0.0, 0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start_rounds(self, done: int, total: int) -> None:
        """The rounds begin, `done` of them before."""
        self._began, self._first = time.monotonic(), done
        if self.console.is_terminal and not self.console.quiet:
            self._live = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"), console=self.console,
            )  # fmt: skip
            self._live.start()
            self._live.add_task("rounds", total=total, completed=done, facts="")

    def round(self, line: Mapping[str, Any], total: int, images_per_second: float) -> None:
        """A round is done."""
        number = line["round"]
        if "mean_accuracy" in line:
            self._accuracy = f"accuracy {100 * line['mean_accuracy']['delivered']:.1f} % (round {number})"
        spent = time.monotonic() - self._began
        left = spent / (number - self._first) * (total - number)
        loss = "loss -" if line["loss"] is None else f"loss {line['loss']:.3f}"
        parts = [counted(len(line["tasks"]), "task"), loss, self._accuracy, f"{images_per_second:.0f} images/s"]
        facts = "  ".join([part for part in parts if part] + [f"{span(left)} of rounds left"])
        if self._live:
            self._live.update(self._live.task_ids[0], completed=number, facts=facts)
        else:
            self.say(f"round {number}/{total}  {facts}")
            self._accuracy = ""  # a bar shows the latest; of lines, the one of its round
        for site, reason in line["failures"].items():
            self.say(f"  {site} left out of round {number}: {reason}")

    def end_rounds(self) -> None:
        """The rounds are over, or were stopped."""
        if self._live:
            self._live.stop()
            self._live = None


def span(seconds: float) -> str:
    """Seconds for people: 43 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plain_console() -> Console:
    """For tables on stdout, brackets in names as they are; a pipe has no width, and gets what a wide terminal would."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def print_result(result: Mapping[str, Any], out: Path) -> None:
    """The final table, what it cost, and where everything lies."""
    console = plain_console()
    table = Table(title=_title(result), title_justify="left", title_style="bold")
    table.add_column("task", no_wrap=True)
    shown = ["individual", "server", "delivered", "artifact"]
    shown = [kind for kind in shown if result["mean_accuracy"][kind] is not None]
    for name in ("classes", "chance", *shown):
        table.add_column(name, justify="right")
    for task, about in result["tasks"].items():
        row = [percent(result["accuracy"][task][kind]) for kind in shown]
        table.add_row(task, str(about["classes"]), percent(about["chance"]), *row)
    table.add_section()
    chances = [about["chance"] for about in result["tasks"].values()]
    means = [percent(result["mean_accuracy"][kind]) for kind in shown]
    table.add_row("mean", "", percent(sum(chances) / len(chances)), *means, style="bold")
    console.print(table)
    for line in _footer(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"run folder: {out}", markup=False, soft_wrap=True)
    left = ["result.json", "config.toml"]
    if result["rounds"]:
        left += ["metrics.jsonl", "checkpoint/"]
    if result["mean_accuracy"]["artifact"] is not None:
        left.append("artifact/")
    if (out / "report.html").is_file():
        left.append("report.html")
    console.print(f"  {'  '.join(left)}", markup=False)


def _title(result: Mapping[str, Any]) -> str:
    return (
        f"{result['method']}: {counted(len(result['tasks']), 'task')}, {counted(len(result['clients']), 'client')}, "
        + (counted(result["rounds"], "round") if result["rounds"] else "nothing sent")
        + "; test accuracy in %"
    )


def _footer(result: Mapping[str, Any]) -> list[str]:
    sent, seconds, lines = result["bytes"], result["seconds"], []
    if result["normalised"]["mean_of_ratios"] is not None:
        lines.append(
            f"delivered / individual: {percent(result['normalised']['mean_of_ratios'])} % (mean of ratios), "
            f"{percent(result['normalised']['ratio_of_means'])} % (ratio of means)"
        )
    worst = result["worst_client"]
    lines += [
        f"worst client: {worst['client']}, {percent(worst['accuracy'])} % (delivered, mean of its "
        f"{counted(len(worst['tasks']), 'task')}: {', '.join(worst['tasks'])})",
    ]
    if result["rounds"]:
        lines += [
            f"per client and round: {sent['uplink_per_client_round'] / 1e3:,.0f} kB up, "
            f"{sent['downlink_per_client_round'] / 1e3:,.0f} kB down",
            f"uplink as the paper counts it: {result['paper_mbits']:.2f} Mbit "
            "(32 bits a number, 1 a mask entry, times participation)",
        ]
    rate = result["images_per_second"]
    lines.append(
        f"time: {seconds['total']:.0f} s, of it training {seconds['training']:.0f}, evaluation "
        f"{seconds['evaluation']:.0f}, aggregation {seconds['aggregation']:.0f}"
        + (f"; {rate:.0f} training images/s" if rate else "")
        + (f"; the individual reference {seconds['reference']:.0f} s" if seconds["reference"] is not None else "")
    )
    if result["failures"]:
        lines.append(f"failures: {counted(result['failures'], 'client round')} left out; metrics.jsonl says why")
    return lines
