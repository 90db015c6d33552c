"""Commands that look at run folders: matu report, matu watch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from matu.cli.common import DONE, FAILED, read_options
from matu.errors import MatuError


@dataclass(frozen=True)
class ReportArguments:
    """Make a page of a run, or pages that put several side by side.

    Its index.html needs nothing else and no network.

    Examples:
        matu report runs/garden --to page
        matu report runs/garden runs/orchard --to both
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, finished or not; the folder of a comparison stands for all of its runs."""
    to: Path
    """Folder for the pages; made if missing."""


@dataclass(frozen=True)
class WatchArguments:
    """Follow a run in the terminal until it ends; code 1 if it ends unfinished.

    The run is this machine's, or that of a server on this machine.

    Example:
        matu watch runs/garden
    """

    run: tyro.conf.Positional[Path]
    """Its run folder."""
    once: bool = False
    """Show how things stand, and end."""


def report(arguments: list[str]) -> int:
    """matu report."""
    asked = read_options(ReportArguments, arguments, "report")
    from matu.report.page import write_report

    pages = write_report(asked.runs, asked.to)
    print(f"{pages[0]}" + (f" and {len(pages) - 1} more, one a run" if len(pages) > 1 else ""))
    return DONE


def watch(arguments: list[str]) -> int:
    """matu watch."""
    asked = read_options(WatchArguments, arguments, "watch")
    from matu.report.watch import show_once, watch_run

    if asked.once:
        show_once(asked.run)
        return DONE
    return DONE if watch_run(asked.run) else FAILED


def leave_report(out: Path) -> None:
    """Put `report.html` into a run folder; what goes wrong is told, and the run stays finished."""
    from matu.report.page import run_report

    try:
        run_report(out)
    except (MatuError, OSError) as error:
        reason = str(error)
    except Exception as error:  # a page is no reason to fail a run that has ended well
        reason = f"{type(error).__name__}: {error}"
    else:
        return
    print(f"matu: no report.html ({reason}); matu report {out} --to DIR makes one", file=sys.stderr)
