"""The model card of a merged folder."""

from __future__ import annotations

from typing import Any

FIGURES = {
    "vector_cosine": "vector cosine",
    "vector_norm_ratio": "vector norm ratio",
    "factorisation_error": "factorisation error",
    "weight_cosine": "weight cosine",
    "weight_norm_ratio": "weight norm ratio",
}
"""What `artifact.json` tells of each task, and what it is called."""


def card(note: dict[str, Any]) -> str:
    """`README.md` with the metadata of the Hugging Face hub, from the content of `artifact.json`."""
    base = note["base_model"]["name"]
    named = [f"base_model: {base}"] if base and not base.startswith((".", "/", "~")) else []
    head = "\n".join(["---", "library_name: peft", *named, "tags:", "- lora", "- model-merging", "- matu", "---"])
    rows = [["task", *FIGURES.values()], ["---"] * (1 + len(FIGURES))]
    rows += [[name, *(number(task[key]) for key in FIGURES)] for name, task in note["tasks"].items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    sizes = note["sizes"]
    what = {
        "unify": "One vector, and a mask and a rescaler for every task. Give a task's adapter back with "
        "`matu.merge.restore(folder, task, to)`; plain PEFT loads it.",
    }.get(note["method"], "One PEFT adapter for all tasks. Their own whole weights, such as heads, are in `heads/`.")
    return f"""{head}

# {len(note["tasks"])} LoRA adapters, merged by {note["method"]} ({note["form"]})

{what}

Base model: {base or "not stated"}, revision {note["base_model"]["revision"] or "not stated"}.
Before {sizes["adapters_bytes"]:,} bytes, now {sizes["merged_bytes"]:,}, of them {sizes["heads_bytes"]:,} heads.

How far each task's adapter comes back: cosine and ratio of norms of the vectors that were merged, relative error of the
factorisation, and cosine and ratio of norms of the weight change scale · B · A.

{table}
"""


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
