"""One table of the benchmarks' small forms: what, ours, the rival's, their ratio, the floor.

python benchmarks/table.py [--only NAME ...] [--out FILE]

Each benchmark is a process of its own, one at a time, and measures both sides in it. A ratio above 1 is in our favour.
The floor is what no program can do without: every byte read and written once, the matrix products,
or the backbone alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One line; `more` is better, or less. None where there is no floor."""

    what: str
    unit: str
    ours: float
    against: str
    rival: float
    more: bool = False
    floor: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.rival if self.more else self.rival / self.ours


def server_round(found: dict[str, Any]) -> Iterator[Row]:
    ms = {name: 1e3 * seconds for name, seconds in found["seconds"].items()}
    what = f"server: {found['clients']} updates to {found['tasks']} new vectors, d = {found['dim']:,}"
    floor = ms["every byte read and written once"]
    yield Row(what, "ms", ms["matu, whole round"], "plain NumPy", ms["plain NumPy, whole round"], floor=floor)


def local_training(found: dict[str, Any]) -> Iterator[Row]:
    speed = found["images_a_second"]
    ours, plain = speed["ours"]["processor"], speed["plain"]["processor"]
    what = f"training, {found['backbone']}, {found['precision']}, one thread"
    products_alone = ours / found["step"]["share_in_products"]
    yield Row(what, "images/s", ours, "plain PEFT loop, float32", plain, more=True, floor=products_alone)


def serving(found: dict[str, Any]) -> Iterator[Row]:
    for row in found["rows"]:
        more = row["unit"] == "images/s"
        yield Row(f"serving: {row['what']}", row["unit"], row["ours"], "PEFT", row["rival"], more, row["floor"])


def simulation(found: dict[str, Any]) -> Iterator[Row]:
    programs = found["programs"]
    ours = programs["matu run, fedavg"]
    for name, rival in programs.items():
        if not name.startswith("matu"):
            work = f"{found['rounds']} rounds of FedAvg, {sum(found['images']):,} images"
            yield Row(work, "s", ours["wall_s"], name, rival["wall_s"])
            yield Row(work, "processor s", ours["processor_s"], name, rival["processor_s"])
            yield Row(work, "MB", ours["peak_pss_mb"], name, rival["peak_pss_mb"])


def merge(found: dict[str, Any]) -> Iterator[Row]:
    ways = {way["what"]: way for way in found["shared"]["ways"]}
    what, mb = f"merging {found['tasks']} adapters", 1e-6
    ours, rival = ways["matu"], ways["peft ties"]
    yield Row(f"{what}: memory", "MB", ours["peak_bytes"] * mb, "PEFT's TIES", rival["peak_bytes"] * mb)
    whole = found["shared"]["adapters_float32_bytes"]
    yield Row(f"{what}: size", "MB", ours["merged_bytes"] * mb, "the adapters", whole * mb)
    cosines = (way["mean"]["weight_cosine"] for way in (ours, rival))
    yield Row(f"{what}: cosine of weight changes", "", next(cosines), "PEFT's TIES", next(cosines), more=True)


PARTS: dict[str, tuple[list[str], Callable[[dict[str, Any]], Iterator[Row]]]] = {
    "server_round": (["--repeats", "9"], server_round),
    "local_training": ([], local_training),
    "serving": (["--small"], serving),
    "merge": (["--tasks", "8"], merge),
    "simulation": (["--small"], simulation),
}
"""By script, the words for its small form, and what its record says."""
FOLDERS = ("local_training", "simulation")
"""The scripts whose `--out` is a folder, with one JSON file in it."""


def record_of(script: str, words: list[str]) -> dict[str, Any]:
    """Run a benchmark, and read what it recorded; SystemExit with its words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / (script if script in FOLDERS else f"{script}.json")
        path = Path(__file__).with_name(f"{script}.py")
        done = subprocess.run([sys.executable, path, *words, "--out", out], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{path.name} {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(next(out.glob("*.json") if out.is_dir() else iter([out])).read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, help="JSON file for the rows and the records that they are from")
    args = parser.parse_args()
    console = Console(width=150)
    table = Table(title="a ratio above 1 is in our favour")
    for name in ("what", "unit", "ours", "rival", "rival's", "ratio", "floor"):
        table.add_column(name, justify="left" if name in ("what", "unit", "rival") else "right")
    records, rows = {}, []
    for script in args.only:
        words, read = PARTS[script]
        began = time.perf_counter()
        records[script] = record_of(script, words)
        console.print(f"{script} {' '.join(words)}: {time.perf_counter() - began:.0f} s")
        for row in read(records[script]):
            rows.append(row._asdict() | {"ratio": row.ratio})
            floor = "" if row.floor is None else f"{row.floor:.4g}"
            numbers = f"{row.ours:.4g}", row.against, f"{row.rival:.4g}", f"{row.ratio:.2f}", floor
            table.add_row(row.what, row.unit, *numbers)
    console.print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rows": rows, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
