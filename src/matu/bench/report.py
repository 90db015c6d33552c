"""Tables of a comparison, in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matu.bench.names import Results, codecs_of, is_reference, label, same_seeds, setting_label
from matu.bench.options import shown, tuning_spec
from matu.words import percent

_INTERVALS = {
    "seeds": "Student's t over seeds",
    "test images": "normal approximation over test images, one seed, so it says nothing about other seeds",
}
_CODECS = "Codecs behind a method's name are those of vectors/heads."
_NOTHING, _UNFINISHED = "–", "not finished"
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$"}
)


@dataclass(frozen=True)
class _Column:
    """One column: `read` gives a mean with its std, or a finished text; only the former have a best value."""

    title: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any] | str | None]


def markdown(results: Results) -> str:
    """The whole comparison: what was compared, the tuning, and two tables a setting."""
    parts = [_opening(results)]
    if results["tuning"]:
        parts.append(_tuning(results["tuning"], results["methods"]))
    for setting in results["settings"]:
        parts.append(f"## {setting_label(results, setting)}")
        for columns in (_accuracy_columns(results), _summary_columns(results, setting)):
            header = ["Method", *(column.title for column in columns)]
            rows = [
                [label(method), *(_bold(cell, best) for cell, best in cells)] if cells
                else [label(method), _without(results, setting, method), *[""] * (len(columns) - 1)]
                for method, cells in _rows(results, setting, columns)
            ]  # fmt: skip
            parts.append(_pipes(header, rows))
        parts.append("\n".join(f"- {note}" for note in _notes(results, setting)))
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """A booktabs table a setting, everything in it."""
    tables = [_latex_table(results, setting) for setting in results["settings"]]
    return "\n".join(["% \\usepackage{booktabs, graphicx}", *tables])


def _opening(results: Results) -> str:
    methods, tasks, seeds, settings = (results[key] for key in ("methods", "tasks", "seeds", "settings"))
    return (
        f"{results['name']}: {_count(methods, 'method')} on {_count(tasks, 'task')} ({', '.join(tasks)}); "
        f"{_plural(seeds, 'seed')} {', '.join(map(str, seeds))}; "
        f"{_plural(settings, 'setting')} {', '.join(setting_label(results, s) for s in settings)}. "
        f"Test accuracy in %.{_untuned(results)}{_messages(results['wire'])}"
    )


def _untuned(results: Results) -> str:
    rates = sorted({cell["learning_rate"] for cell in results["cells"]})
    if results["tuning"] or not rates:
        return ""
    return f" Learning rate {', '.join(f'{rate:g}' for rate in rates)} for every method, not tuned."


def _messages(wire: Mapping[str, Any]) -> str:
    """What is not exact about messages; of a method with codecs of its own its name tells."""
    return f" Messages: {', '.join(f'{name} = {value}' for name, value in wire.items())}." if wire else ""


def _tuning(tuning: Mapping[str, Any], methods: Sequence[str]) -> str:
    rates, chosen, rows = tuning["rates"], {shown(m): rate for m, rate in tuning["chosen"].items()}, []
    # JSON has its own way to write a rate, so they are compared as numbers.
    tried = {shown(m): {float(rate): share for rate, share in row.items()} for m, row in tuning["accuracy"].items()}
    for method in sorted(tried, key=lambda m: methods.index(m) if m in methods else len(methods)):
        cells = (_bold(percent(tried[method].get(rate)), rate == chosen.get(method)) for rate in rates)
        rows.append([label(method), *cells])
    intro = (
        f"Mean accuracy in % after {tuning['rounds']} rounds of setting {tuning['setting']} with seed "
        f"{tuning['seed']}, by learning rate; the chosen rate in bold."
    )
    parts = ["## Learning rates", intro, _pipes(["Method", *(f"{rate:g}" for rate in rates)], rows)]
    ends = {
        end: [label(m) for m, rate in chosen.items() if m in tried and rate == of(tried[m])]
        for end, of in (("smallest", min), ("largest", max))
    }
    if found := [f"the {end} rate is the best of {', '.join(names)}" for end, names in ends.items() if names]:
        parts.append(f"At an end of the grid, beyond which more may be had: {'; '.join(found)}.")
    borrowed: dict[str, list[str]] = {}
    for method in methods:
        if (source := tuning_spec(method)) != method and source in chosen:
            borrowed.setdefault(label(source), []).append(label(method))
    if borrowed:
        found = [f"that of {source} for {', '.join(names)}" for source, names in borrowed.items()]
        parts.append(f"Not tuned by itself, but at the rate of the method without these options: {'; '.join(found)}.")
    return "\n\n".join(parts)


def _accuracy_columns(results: Results) -> list[_Column]:
    tasks = [_Column(task, lambda s, task=task: s["accuracy"].get(task)) for task in results["tasks"]]  # type: ignore[misc]
    return [*tasks, _Column("Average", lambda s: s["average"])]


def _summary_columns(results: Results, setting: str) -> list[_Column]:
    columns = [] if same_seeds(results, setting) else [_Column("Seeds", lambda s: ", ".join(map(str, s["seeds"])))]
    columns += [
        _Column("Normalised", lambda s: s["normalised"]["mean_of_ratios"]),
        _Column("Ratio of means", lambda s: s["normalised"]["ratio_of_means"]),
        _Column("Worst client", lambda s: s["worst_client"]),
        _Column("MB up", lambda s: _number(s["uplink_bytes"], 1e-6)),
        _Column("MB down", lambda s: _number(s["downlink_bytes"], 1e-6)),
        _Column("Paper Mbit", lambda s: _number(s["paper_mbits"])),
        _Column(f"Rounds to {100 * results['target']:.0f} %", lambda s: _target(s["rounds_to_target"])),
    ]
    if any(one["difference"] for found in results["summary"].values() for one in found.values()):
        name = f"Difference to {label(results['baseline'])}"
        columns.append(_Column(name, lambda s: _difference(s["difference"])))
    return columns


def _rows(
    results: Results, setting: str, columns: Sequence[_Column]
) -> list[tuple[str, list[tuple[str, bool]] | None]]:
    """By method: text and whether it is the best, for each column; None where nothing is finished."""
    found = results["summary"].get(setting, {})
    methods = results["methods"]
    compete = [m for m in methods if m in found and not is_reference(m)] if same_seeds(results, setting) else []
    best = [max((_mean(column.read(found[m])) for m in compete), default=-1.0) for column in columns]
    rows: list[tuple[str, list[tuple[str, bool]] | None]] = []
    for method in methods:
        cells = None
        if method in found:
            values = [column.read(found[method]) for column in columns]
            cells = [
                (_text(value), not is_reference(method) and top >= 0 and percent(_mean(value)) == percent(top))
                for value, top in zip(values, best, strict=True)
            ]
        rows.append((method, cells))
    return rows


def _notes(results: Results, setting: str) -> list[str]:
    found = results["summary"].get(setting, {})
    shown = [m for m in results["methods"] if m in found]
    notes = [
        (
            "Best in bold, Individual and Local aside."
            if same_seeds(results, setting)
            else "No best in bold: methods have different seeds, and a seed is another partition, which moves them all."
        )
        + (" ± is the standard deviation over seeds." if any(len(found[m]["seeds"]) > 1 for m in shown) else ""),
        "Normalised is accuracy over Individual's (the mean over its seeds) in %, the mean of the tasks' ratios, then "
        "the ratio of the means. "
        "MB are for a drawn client and round; paper Mbit is the uplink as the paper counts it: 32 bits a number, 1 a "
        "mask entry, times participation. "
        f"Rounds count to {100 * results['target']:.0f} % of Individual's mean accuracy, seen only where accuracy was "
        "measured: on the way, on fewer images, and at the end.",
    ]
    if any(map(codecs_of, shown)):
        notes.append(_CODECS)
    lost = [
        f"{label(c['method'])} {c['failures']}"
        for c in results["cells"]
        if c["setting"] == setting and c.get("failures")
    ]
    if lost:
        notes.append(f"Updates that were left out (a cell's metrics.jsonl says why): {', '.join(lost)}.")
    kinds: dict[str, list[str]] = {}
    for method in shown:
        if difference := found[method]["difference"]:
            kinds.setdefault(difference["kind"], []).append(label(method))
    for kind, methods in kinds.items():
        whose = f" ({', '.join(methods)})" if len(kinds) > 1 else ""
        baseline = label(results["baseline"])
        notes.append(
            f"The difference to {baseline} is in points, over the seeds that both have, with a 95 % interval{whose}: "
            f"{_INTERVALS[kind]}."
        )
    if gone := [
        f"{label(c['method'])} seed {c['seed']}" for c in results["diverged"] if c["setting"] == setting
    ]:  # fmt: skip
        notes.append(f"Diverged, so that a mean is of the seeds that did not: {', '.join(gone)}.")
    mine = [cell for cell in results["cells"] if cell["setting"] == setting]
    if len(precisions := sorted({cell["precision"] for cell in mine})) > 1:
        by_kind = [
            f"{kind} {', '.join(dict.fromkeys(label(c['method']) for c in mine if c['precision'] == kind))}"
            for kind in precisions
        ]
        notes.append(f"Computed in different precisions: {'; '.join(by_kind)}.")
    return notes + _unfinished(results, setting)


def _without(results: Results, setting: str, method: str) -> str:
    """Why a method has no row."""
    gone = {c["seed"] for c in results["diverged"] if (c["setting"], c["method"]) == (setting, method)}
    if gone >= set(results["seeds"]):
        return "diverged"
    tuning = results["tuning"]
    return "not tuned" if tuning and tuning_spec(method) not in map(shown, tuning["chosen"]) else _UNFINISHED


def _unfinished(results: Results, setting: str) -> list[str]:
    """How far the setting is, where it is not done."""
    ended = [*results["cells"], *results["diverged"]]
    seeds = {
        m: {c["seed"] for c in ended if (c["setting"], c["method"]) == (setting, m)} & set(results["seeds"])
        for m in results["methods"]
    }
    done, wanted = sum(map(len, seeds.values())), len(results["methods"]) * len(results["seeds"])
    if done == wanted:
        return []
    total = len(results["seeds"])
    partly = [f"{label(m)} {len(s)} of {total}" for m, s in seeds.items() if 0 < len(s) < total]
    return [f"{done} of {wanted} cells are done" + (f" (seeds: {', '.join(partly)})." if partly else ".")]


def _latex_table(results: Results, setting: str) -> str:
    tasks = len(results["tasks"])
    columns = _accuracy_columns(results) + _summary_columns(results, setting)
    titles = [_escape(column.title) for column in columns]
    titles = [f"\\rotatebox{{90}}{{{title}}}" for title in titles[:tasks]] + titles[tasks:]
    body = []
    for method, cells in _rows(results, setting, columns):
        texts = (
            [f"\\textbf{{{_escape(text)}}}" if best else _escape(text) for text, best in cells] if cells
            else [f"\\multicolumn{{{len(columns)}}}{{l}}{{{_without(results, setting, method)}}}"]
        )  # fmt: skip
        body.append(" & ".join([_escape(label(method)), *texts]) + r" \\")
    caption = _escape(f"{results['name']}, {setting_label(results, setting)}: test accuracy in %.")
    name = re.sub(r"[^a-z0-9]+", "-", f"{results['name']}-{setting}".lower())
    return "\n".join([
        r"\begin{table*}[t]", r"\centering", f"\\caption{{{caption}}}", f"\\label{{tab:{name}}}",
        r"\resizebox{\textwidth}{!}{%", f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule",
        " & ".join(["Method", *titles]) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}}",
        r"\par\smallskip\footnotesize " + " ".join(map(_escape, _notes(results, setting))), r"\end{table*}", "",
    ])  # fmt: skip


def _pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned in the source too."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in table
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _text(value: Mapping[str, Any] | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or _NOTHING
    spread = "" if value["std"] is None else f" ± {percent(value['std'])}"
    return percent(value["mean"]) + spread


def _mean(value: Mapping[str, Any] | str | None) -> float:
    """What columns are ranked by; -1 where there is no rank."""
    return -1.0 if value is None or isinstance(value, str) or value["mean"] is None else value["mean"]


def _number(value: float | None, unit: float = 1.0) -> str:
    return _NOTHING if value is None else f"{value * unit:.2f}"


def _target(found: Mapping[str, Any] | None) -> str:
    if not found:
        return _NOTHING
    if not found["reached"]:
        return "not reached"
    return f"{found['mean']:.0f}" + (
        f" ({found['reached']} of {found['of']})" if found["reached"] < found["of"] else ""
    )


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found:
        return _NOTHING
    # Adding 0.0 turns -0.0 into 0.0.
    mean, low, high = (f"{round(100 * found[k], 1) + 0.0:+.1f}".replace("-", "−") for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _escape(text: str) -> str:
    return text.translate(_LATEX)


def _plural(things: Any, word: str) -> str:
    return word if len(things) == 1 else word + "s"


def _count(things: Any, word: str) -> str:
    return f"{len(things)} {_plural(things, word)}"
