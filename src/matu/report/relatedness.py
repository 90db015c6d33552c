"""What `matu relate` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from matu.report.console import plain_console


def print_relatedness(found: Mapping[str, Any], out: Path) -> None:
    """Correlations of the measures, clusters, groups of tasks for a configuration, and where things lie."""
    console = plain_console()
    r = found["correlations"]
    title = (
        f"Pearson's r over {r['pairs']} pairs of tasks (Mantel's p, {r['permutations']:,} permutations); WTE negated"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("measure")
    for other in r["pearson"]:
        table.add_column(other, justify="right")
    for one, row in r["pearson"].items():
        table.add_row(one, *(_cell(value, r["mantel_p"][one][other]) for other, value in row.items()))
    console.print(table)
    lines = [
        f"cluster {number + 1}: {', '.join(t for t in found['order'] if found['clusters'][t] == number)}"
        for number in sorted(set(found["clusters"].values()))
    ]
    for setting, groups in found["task_groups"].items():
        lines += ["", f"[settings.{setting}]", f"task_groups = {json.dumps(groups)}"]
    lines += [
        "",
        f"{out}: relatedness.json  correlations.csv  <measure>.csv  similarities.png  correlations.png (and .svg)",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _cell(r: float | None, p: float | None) -> str:
    return "-" if r is None else f"{r:.2f}" + ("" if p is None else f" ({p:.2g})")
