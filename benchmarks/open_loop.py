"""What each codec does to the messages of one run: bytes, and accuracy where nothing else changes.

python benchmarks/open_loop.py --run FOLDER --out FILE [--figure PNG] [--images 500]

FOLDER is a stopped run of matu, with config.toml and checkpoint. Its next round is played once, exactly, by all
clients; each row then codes the same messages. Down: the downlinks of the state, coded; accuracy is what clients get of
them. Up: the updates, coded, folded into the next state; accuracy is what clients get of that, exactly. Rows named "a
task" send every task's own vector instead of the unified one: the downlink of one adapter a task, and its update.
Finished rows are kept in the output file, and the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors.torch import load_file, save_file
from torch import Tensor

from matu.federation.evaluation import Evaluator
from matu.methods import State
from matu.methods.matu import Matu
from matu.seeds import stream
from matu.training import Weights
from matu.wire import Codecs, Envelope, Header, Numbers, arrived, encode
from stopped import open_run
from watch import processor

EXACT = Codecs()


def codecs(vectors: str, heads: str, *, change: bool = False, masks: bool = True) -> Codecs:
    """Short for a form."""
    return Codecs(Numbers(vectors, change), Numbers(heads, change), masks)


DOWN = {
    "float32, packed masks (the paper's)": EXACT,
    "bfloat16": codecs("bfloat16", "bfloat16"),
    **{f"{n}bit, heads 8bit": codecs(f"{n}bit", "8bit") for n in (8, 6, 5, 4, 3, 2)},
    "6bit, heads 6bit": codecs("6bit", "6bit"),
    "6bit, heads 4bit": codecs("6bit", "4bit"),
    "ternary, heads 8bit": codecs("ternary", "8bit"),
}
UP = {
    **{
        name: DOWN[name]
        for name in ("float32, packed masks (the paper's)", "bfloat16", "8bit, heads 8bit", "4bit, heads 8bit")
    },
    **{f"{n}bit change, heads 8bit": codecs(f"{n}bit", "8bit", change=True) for n in (8, 4, 3, 2)},
    **{f"{n}bit change, heads 4bit": codecs(f"{n}bit", "4bit", change=True) for n in (4, 3, 2)},
    "ternary change, heads 4bit": codecs("ternary", "4bit", change=True),
    "2bit change, heads 2bit": codecs("2bit", "2bit", change=True),
}
A_TASK = {
    "a task: float32": EXACT,
    **{f"a task: {n}bit, heads 8bit": codecs(f"{n}bit", "8bit") for n in (8, 4, 2)},
    "a task: ternary (as T-Switch), heads 8bit": codecs("ternary", "8bit"),
}
A_TASK_UP = A_TASK | {
    f"a task: {n}bit change, heads 4bit": codecs(f"{n}bit", "4bit", change=True) for n in ("4", "2")
}  # fmt: skip


class Run:
    """The stopped run, and its next round."""

    def __init__(self, folder: Path) -> None:
        run, method, self.trainer, progress = open_run(folder)
        assert isinstance(method, Matu)
        self.config, self.tasks, self.shares, self.clients = run.config, run.tasks, run.shares, run.clients
        self.method, self.round, self.state = method, progress.round, progress.state
        single = dataclasses.replace(run.config, matu=dataclasses.replace(run.config.matu, unification=False))
        self.a_task = Matu(method.problem, single)

    def trained(self, kept: Path) -> dict[str, dict[str, Weights]]:
        """Where every client's training of the next round ends; remembered in a file."""
        if not kept.is_file():
            ends: dict[str, Tensor] = {}
            for site, tasks in self.clients.items():
                starts = self.method.weights(tasks, self.method.downlink(self.state, site, tasks), {})
                for task in tasks:
                    draw = stream(self.config.machine.seed, "batches", self.round + 1, site, task)
                    end, _ = self.trainer.train(
                        starts[task], self.tasks[task].train, self.shares[site][task], draw,
                        steps=self.config.training.local_steps, epochs=self.config.training.local_epochs,
                    )  # fmt: skip
                    ends |= {f"{site}|{task}|vector": end.vector, f"{site}|{task}|head": end.head}
            save_file(ends, kept)
        found = load_file(kept)
        return {
            site: {t: Weights(found[f"{site}|{t}|vector"], found[f"{site}|{t}|head"]) for t in tasks}
            for site, tasks in self.clients.items()
        }

    def accuracy(self, method: Matu, state: State, form: Codecs, images: int) -> dict[str, float]:
        """By task, mean over holders of what clients get."""
        evaluator = Evaluator(method, self.trainer, self.tasks, self.clients, lambda _: {}, 0, form)
        return dict(evaluator.on_the_way(state, images).delivered)

    def down(self, method: Matu, form: Codecs) -> dict[str, float]:
        """Mean bytes of a downlink, by what they are for."""
        sizes = []
        for site, tasks in self.clients.items():
            parts = method.downlink_parts(tasks)
            payload = encode(self._header(site, "train"), parts, method.downlink(self.state, site, tasks), form)
            sizes.append(Envelope(payload).sizes(parts))
        return _means(sizes)

    def up(
        self, method: Matu, form: Codecs, ends: Mapping[str, Mapping[str, Weights]]
    ) -> tuple[dict[str, float], State, float]:
        """Mean bytes of an update, the next state of the sampled clients' updates, and the squared relative error."""
        sizes, errors = [], []
        count = self.config.federation.drawn
        chosen = stream(self.config.machine.seed, "clients", self.round + 1).choice(len(self.clients), count, False)
        gathering = method.begin_round(self.state)
        for number, (site, tasks) in enumerate(self.clients.items()):
            parts = method.uplink_parts(tasks)
            held = arrived(method.downlink_parts(tasks), method.downlink(self.state, site, tasks), EXACT)
            sent = method._pack(ends[site])
            payload = encode(self._header(site, "update"), parts, sent, form, held=held)
            envelope = Envelope(payload)
            got = envelope.tensors(parts, held)
            sizes.append(envelope.sizes(parts))
            errors += [
                float((got[p.name] - sent[p.name]).norm() / sent[p.name].norm()) ** 2
                for p in parts
                if p.name == "vector" or p.name.startswith("adapter")
            ]
            if number in chosen:
                gathering.add(site, tasks, [len(self.shares[site][t]) for t in tasks], got)
        return _means(sizes), gathering.finish(), float(np.mean(errors))

    def _header(self, site: str, kind: str) -> Header:
        tasks = self.clients[site]
        more: dict[str, Any] = (
            {"class_lists": ("10:0123456789abcdef",) * len(tasks)}
            if kind == "train"
            else {"samples": tuple(len(self.shares[site][t]) for t in tasks), "metrics": {"images": 1.0, "loss": 1.0}}
        )
        return Header(kind, "0" * 32, self.round + 1, "matu", site, "0" * 64, tasks, **more)


def _means(sizes: list[dict[str, int]]) -> dict[str, float]:
    found = {share: sum(one[share] for one in sizes) / len(sizes) for share in sizes[0]}
    return found | {"total": sum(found.values())}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Change of accuracy over bytes, a panel a direction; numbers are bits of vectors / heads."""
    families = {"a task": ("#0072B2", "s"), "change": ("#009E73", "^"), "unified": ("#D55E00", "o")}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, way in zip(figure.subplots(1, 2, sharey=True), ("down", "up"), strict=True):
        rows = {
            name.removeprefix(f"{way}, "): row for name, row in found["rows"].items() if name.startswith(f"{way}, ")
        }
        exact = next(iter(rows.values()))["mean_accuracy"]
        for name, row in rows.items():
            colour, marker = next(look for family, look in families.items() if family in name or family == "unified")
            words = re.findall(r"float32|bfloat16|ternary|\d(?=bit)", name)
            short = "/".join({"float32": "32", "bfloat16": "16", "ternary": "t"}.get(word, word) for word in words)
            x, y = row["bytes"]["total"] / 1e3, 100 * (row["mean_accuracy"] - exact)
            axes.plot(x, max(y, -3.0), marker if y > -3 else "v", color=colour, markersize=5)
            below = {"xytext": (0, 6 if marker == "^" else -12), "textcoords": "offset points"}
            axes.annotate(short, (x, max(y, -3.0)), **below, fontsize=7, ha="center", color=colour)
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_xscale("log")
        axes.set(title=way, xlabel="kB of a client's message", ylim=(-3.4, 2.0))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("change of mean accuracy in points (at -3: or less)")
    names = {"unified": "one unified vector", "change": "the same, as a change", "a task": "a vector a task"}
    handles = [
        Line2D([], [], linestyle="none", color=families[one][0], marker=families[one][1], label=names[one])
        for one in names
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=140, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="without it the figure alone is drawn")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    asked = parser.parse_args()
    if not asked.run:
        draw(json.loads(asked.out.read_text()), asked.figure)
        return
    run = Run(asked.run)
    rows: dict[str, Any] = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else {}
    kept = Path(tempfile.gettempdir()) / f"open-loop-{run.round}-{run.config.digest()[:12]}.safetensors"
    ends = run.trained(kept)
    work = [(f"down, {name}", run.method, form) for name, form in DOWN.items()]
    work += [(f"down, {name}", run.a_task, form) for name, form in A_TASK.items()]
    work += [(f"up, {name}", run.method, form) for name, form in UP.items()]
    work += [(f"up, {name}", run.a_task, form) for name, form in A_TASK_UP.items()]
    for name, method, form in work:
        if name in rows:
            continue
        row: dict[str, Any] = {}
        if name.startswith("down"):
            row["bytes"] = run.down(method, form)
            row["accuracy"] = run.accuracy(method, run.state, form, asked.images)
        else:
            row["bytes"], state, row["squared_error"] = run.up(method, form, ends)
            row["accuracy"] = run.accuracy(method, state, EXACT, asked.images)
        row["mean_accuracy"] = sum(row["accuracy"].values()) / len(row["accuracy"])
        rows[name] = row
        print(f"{name:48} {row['bytes']['total'] / 1e3:9.1f} kB  {100 * row['mean_accuracy']:6.2f} %", flush=True)
        found = {
            "round": run.round, "images": asked.images, "config": dataclasses.asdict(run.config) | {"model": None},
            "processor": processor(), "rows": rows,
        }  # fmt: skip
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
