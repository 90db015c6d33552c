"""The live view: a run as it goes, from what it writes into its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matu.files import is_held
from matu.report.charts import sized
from matu.report.console import plain_console, span
from matu.report.folder import Curve, RunFolder, number, read_run, table, texts, whole
from matu.words import counted, printable

LOOK_EVERY_S = 1.0
"""Seconds between looks at the folder."""
RECENT = 10
"""Rounds that the time left is judged by."""
SHOWN_FAILURES = 5


def show_once(folder: Path) -> None:
    """Print how a run stands.

    Raises
    ------
    ConfigError, DataError
        For a folder that holds no run, or cannot be read.
    """
    plain_console().print(frame(read_run(folder), at_work=at_work_on(folder)))


def watch_run(folder: Path, console: Console | None = None, every_s: float = LOOK_EVERY_S) -> bool:
    """Follow a run until it ends: a picture on a terminal, a line a round elsewhere.

    Returns
    -------
    bool
        Whether it ended with a result; else nothing is at work on it any more.

    Raises
    ------
    ConfigError, DataError
        For a folder that holds no run, or cannot be read.
    """
    console = console or plain_console()
    run = read_run(folder)
    if console.is_terminal:
        with Live(frame(run, at_work=True), console=console, auto_refresh=False) as live:
            while _goes_on(run, at_work := at_work_on(folder)):
                live.update(frame(run, at_work=at_work), refresh=True)
                time.sleep(every_s)
                run = read_run(folder)
            run = read_run(folder)
            live.update(frame(run, at_work=False), refresh=True)
        return run.finished
    said = 0
    while True:
        at_work = at_work_on(folder)  # before the files are read: what is written last is not missed
        run = read_run(folder)
        said = min(said, run.rounds)  # a resumed run drops rounds that were not saved
        for line in run.lines[said:]:
            console.print(round_line(line, run.planned), markup=False, soft_wrap=True)
        said = len(run.lines)
        if not _goes_on(run, at_work):
            console.print(_ended(run), markup=False, soft_wrap=True)
            return run.finished
        time.sleep(every_s)


def at_work_on(folder: Path) -> bool:
    """Whether a process is at work on a run; a server holds Flower's folder first."""
    return is_held(folder) or is_held(folder / "flower")


def _goes_on(run: RunFolder, at_work: bool) -> bool:
    return at_work and not run.finished


def _ended(run: RunFolder) -> str:
    if run.finished:
        share = run.mean_accuracy("delivered")
        return f"{run.path}: finished" + ("" if share is None else f", delivered {100 * share:.1f} % in the mean")
    return f"{run.path}: not finished, and nothing is at work on it; {_so_far(run)}"


def _so_far(run: RunFolder) -> str:
    return f"round {run.rounds}" + (f" of {run.planned}" if run.planned else "")


def round_line(line: Mapping[str, Any], planned: int | None) -> str:
    """A round in a line."""
    failures, loss = table(line.get("failures")), number(line.get("loss"))
    up, down = (whole(line.get(name)) or 0 for name in ("uplink_bytes", "downlink_bytes"))
    parts = [
        f"round {line['round']}" + (f"/{planned}" if planned else ""),
        "loss -" if loss is None else f"loss {loss:.3f}",
        *(f"{kind} {100 * share:.1f} %" for kind, share in _means(line).items()),
        f"{sized(up)} up, {sized(down)} down",
        f"{len(texts(line.get('clients'))) - len(failures)} answered",
        *([f"{len(failures)} left out: {', '.join(sorted(failures))}"] if failures else []),
    ]
    return printable("  ".join(parts))


def _means(line: Mapping[str, Any]) -> dict[str, float]:
    found = {kind: number(share) for kind, share in table(line.get("mean_accuracy")).items()}
    return {kind: share for kind, share in found.items() if share is not None}


def frame(run: RunFolder, *, at_work: bool) -> RenderableType:
    """How a run stands: head, progress, accuracy by task, the last round, failures."""
    parts: list[RenderableType] = [_head(run, at_work)]
    if run.planned:
        bar = Table.grid()
        bar.add_row(ProgressBar(total=run.planned, completed=run.rounds, width=60))
        parts.append(bar)
    if run.lines:
        parts.append(Text(_last(run)))
    if any(run.accuracy(task, "delivered") is not None for task in run.tasks):
        at = "at the end" if run.finished else f"after round {run.evaluations[-1]['round']}"
        parts += [Text(f"test accuracy in %, {at}"), _accuracies(run)]
    failures = run.failures()
    if failures:
        parts.append(Text(f"{counted(len(failures), 'answer')} left out, the last:", style="bold"))
        parts += [
            Text(printable(f"  round {at}, {client}: {reason}")) for at, client, reason in failures[-SHOWN_FAILURES:]
        ]
    return Group(*parts)


def _head(run: RunFolder, at_work: bool) -> Text:
    state = "finished" if run.finished else "at work" if at_work else "not finished, nothing is at work on it"
    head = Text(printable(run.name), style="bold")
    head.append(f"  {run.method}" if run.method else "", style="not bold")
    head.append(f"  {state}", style="not bold green" if run.finished or at_work else "not bold red")
    head.append(f"  {_so_far(run)}" if run.lines else "  no round done yet", style="not bold")
    if at_work and not run.finished and (left := time_left(run.lines, run.planned)) is not None:
        head.append(f"  about {span(left)} left", style="not bold")
    return head


def time_left(lines: Sequence[Mapping[str, Any]], planned: int | None) -> float | None:
    """Seconds for the rounds to come, by the median of the latest, without evaluation; None if nothing tells."""
    recent = [seconds for line in lines[-RECENT:] if (seconds := number(line.get("seconds"))) is not None]
    return median(recent) * max(0, planned - len(lines)) if recent and planned else None


def _last(run: RunFolder) -> str:
    up, down = (sum(whole(line.get(name)) or 0 for line in run.lines) for name in ("uplink_bytes", "downlink_bytes"))
    said = round_line(run.lines[-1], run.planned)
    return f"{said}\nso far {sized(up)} up, {sized(down)} down, {counted(len(run.failures()), 'failure')}"


def _accuracies(run: RunFolder) -> Table:
    kinds = [k for k in ("delivered", "server") if any(run.accuracy(task, k) is not None for task in run.tasks)]
    shown = Table(show_edge=False)
    shown.add_column("task")
    for kind in kinds:
        shown.add_column(kind, justify="right")
        shown.add_column("change", justify="right")
    for task in run.tasks:
        shown.add_row(Text(printable(task)), *(cell for kind in kinds for cell in _with_change(run.curve(task, kind))))
    shown.add_section()
    shown.add_row("mean", *(cell for kind in kinds for cell in _with_change(run.mean_curve(kind))), style="bold")
    return shown


def _with_change(curve: Curve) -> tuple[Text, Text]:
    """The latest share, and how it differs from the one before."""
    if not curve:
        return Text("-"), Text("")
    latest = Text(f"{100 * curve[-1][1]:.1f}")
    if len(curve) < 2:
        return latest, Text("")
    change = 100 * (curve[-1][1] - curve[-2][1])
    style = "green" if change >= 0.05 else "red" if change <= -0.05 else ""
    return latest, Text(f"{change:+.1f}", style=style)
