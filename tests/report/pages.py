"""A page as a reader of HTML sees it, and run folders to make pages of."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "input", "link", "br", "img", "hr"}


class Reader(HTMLParser):
    """Reads a page and refuses one whose elements do not nest.

    Attributes
    ----------
    elements
        Name and attributes of each, in order.
    tables
        Their rows, each the texts of its cells.
    scripts
        The text of each.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> where {self._open} are open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.tables[-1][-1][-1] += data.strip()

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a name."""
        return [about for name, about in self.elements if name == tag]


def made_up_run(folder: Path, *, tasks: int = 3, clients: int = 4, rounds: int = 6, finished: bool = True) -> Path:
    """A run folder as `matu run` leaves it, with numbers from a formula and a failure in each third round."""
    folder.mkdir(parents=True)
    names, sites = [f"task-{i}" for i in range(tasks)], [f"client-{i:03d}" for i in range(clients)]
    lines = []
    for number in range(1, rounds + 1):
        asked = [site for i, site in enumerate(sites) if (i + number) % 2]
        line: dict[str, Any] = {
            "round": number, "clients": asked, "tasks": names, "loss": 2 / number, "uplink_bytes": 1000 * len(asked),
            "downlink_bytes": 1500 * len(asked), "bounded": {}, "seconds": 2.0,
            "failures": {asked[0]: "error: out of memory"} if number % 3 == 0 else {},
        }  # fmt: skip
        if number % 2 == 0:
            found = {name: round((i + 1) * number / (tasks * rounds + 1), 4) for i, name in enumerate(names)}
            mean = sum(found.values()) / tasks
            line |= {
                "accuracy": {"delivered": found, "server": found}, "mean_accuracy": {"delivered": mean, "server": mean}
            }  # fmt: skip
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"federation": {"method": "matu", "rounds": rounds}, "machine": {"seed": 3}, "tasks": {"tasks": names}}
    if not finished:
        tasks_section = '[tasks]\ntasks = ["demo:digits", "/secret/place/own"]\n'
        (folder / "config.toml").write_text(f'{tasks_section}[federation]\nmethod = "matu"\nrounds = {2 * rounds}\n')
        return folder
    shares = {
        name: {"delivered": 0.5 + i / 100, "server": 0.55, "artifact": None, "individual": 0.8}
        for i, name in enumerate(names)
    }
    mean = sum(one["delivered"] for one in shares.values()) / tasks
    result = {
        "method": "matu", "options": [], "seed": 3, "rounds": rounds,
        "tasks": {n: {"classes": 4, "chance": 0.25, "source": f"demo:{n}", "sha256": "ab" * 32} for n in names},
        "backbone": {"name": "vit-mini", "sha256": "cd" * 32}, "accuracy": shares,
        "mean_accuracy": {"delivered": mean, "server": 0.55, "artifact": None, "individual": 0.8},
        "normalised": {"mean_of_ratios": mean / 0.8, "ratio_of_means": mean / 0.8},
        "worst_client": {"client": sites[1], "tasks": names[:1], "accuracy": 0.5},
        "clients": {site: names[: 1 + i % tasks] for i, site in enumerate(sites)}, "failures": rounds // 3,
        "bytes": {
            "uplink_total": 9000, "downlink_total": 12000, "uplink_per_client_round": 1000.0,
            "downlink_per_client_round": 1500.0, "uplink": {"vectors": 8000, "masks": 1000},
            "downlink": {"vectors": 12000},
        },
        "seconds": {"total": 20.0, "training": 12.0, "aggregation": 1.0, "evaluation": 5.0, "reference": None},
        "config": settings, "versions": {"matu": "0.1.0", "python": "3.11"},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder
