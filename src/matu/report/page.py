"""The report: a page of a run, or of several side by side, in HTML that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matu.errors import ConfigError
from matu.files import write_atomic
from matu.report.comparison import comparison_page, distinct_names
from matu.report.folder import read_run
from matu.report.run_page import run_page


def write_report(folders: Sequence[Path], to: Path) -> list[Path]:
    """Write `index.html`; of several runs it compares them, and each has a page of its own beside it.

    Parameters
    ----------
    folders
        Run folders, finished or not; that of a comparison stands for its cells.
    to
        Folder for the pages; made if missing.

    Returns
    -------
    list of Path
        The pages.

    Raises
    ------
    ConfigError, DataError
        Before anything is written, for a folder that holds no run, or one that cannot be read.
    """
    if to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to}: there already, and no folder")
    if _is_foreign(to / "index.html"):
        raise ConfigError(f"--to {to}: holds an index.html that is no report of matu's; take another folder")
    runs = [read_run(folder) for folder in _opened(folders)]
    if len(runs) == 1:
        pages = {"index.html": run_page(runs[0])}
    else:
        names = distinct_names(runs)
        files = [f"{at:02d}-{re.sub('[^a-z0-9]+', '-', name.lower())[:60]}.html" for at, name in enumerate(names, 1)]
        pages = {"index.html": comparison_page(runs, names, files)}
        for run, name, file in zip(runs, names, files, strict=True):
            pages[file] = run_page(run, name, "index.html")
    to.mkdir(parents=True, exist_ok=True)
    for file, page in pages.items():
        write_atomic(to / file, _encoded(page))
    return [to / file for file in pages]


def _is_foreign(page: Path) -> bool:
    return page.is_file() and b"matu report</title>" not in page.read_bytes()


def run_report(folder: Path) -> Path:
    """Write `report.html` into the folder of one run."""
    page = folder / "report.html"
    write_atomic(page, _encoded(run_page(read_run(folder))))
    return page


def _encoded(page: str) -> bytes:
    return page.encode("utf-8", "replace")  # JSON may hold halves of characters


def _opened(folders: Sequence[Path]) -> list[Path]:
    """The run folders, with the cells of comparisons in their places."""
    if not folders:
        raise ConfigError("no run folder named; expected matu report RUN… --to DIR")
    found: list[Path] = []
    for folder in folders:
        cells = folder / "cells"
        found += sorted(cell for cell in cells.iterdir() if cell.is_dir()) if cells.is_dir() else [folder]
    return found
