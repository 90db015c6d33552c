"""How each method of a comparison looks: the same in every figure, and unlike the others."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.colors import to_hex, to_rgb

from matu.bench.names import Results, is_reference, label

# Okabe and Ito's colours, and Tol's where those run out; related methods are near, markers tell them apart.
_LOOKS = {
    "individual": ("#555555", "|"), "local": ("#999999", "H"), "fedavg": ("#0072B2", "o"),
    "per_task_fedavg": ("#56B4E9", "s"), "fedprox": ("#332288", "^"), "fedper": ("#117733", "v"),
    "mat_fl": ("#009E73", "D"), "ntk_fedavg": ("#E69F00", "P"), "task_arithmetic": ("#CC79A7", "X"),
    "ties": ("#882255", "<"), "ffa_lora": ("#999933", ">"), "true_signs": ("#8C6D31", "p"),
    "matu": ("#D55E00", "*"), "matu_plus": ("#000000", "*"),
}  # fmt: skip
_OURS = ("matu", "matu_plus")
_SHADES = (0.0, 0.5, -0.45)
"""Towards white, or black, of every four variants of a method: four is as many as there are kinds of lines."""
_SPARE = (("#4B4B8F", "h"), ("#7A7A7A", "d"), ("#B07AA1", "8"))
NARROW = 28
"""Letters of a legend's line."""


def look_of(results: Results, method: str) -> dict[str, Any]:
    """A method's own colour and marker, the same in all figures."""
    name = method.split()[0]
    unknown = [m for m in dict.fromkeys(m.split()[0] for m in results["methods"]) if m not in _LOOKS]
    colour, marker = _LOOKS[name] if name in _LOOKS else _SPARE[unknown.index(name) % len(_SPARE)]
    size = {"*": 9.0, "P": 6.5, "X": 6.5}.get(marker, 5.0)
    shade = _SHADES[variant_of(results, method) // 4 % len(_SHADES)] if method in results["methods"] else 0.0
    red, green, blue = (part * (1 - abs(shade)) + max(0.0, shade) for part in to_rgb(colour))
    return {
        "color": to_hex((red, green, blue)).upper(),
        "marker": marker,
        "markersize": size,
        "zorder": 4 if name in _OURS else 3,
    }


def line_of(results: Results, method: str) -> dict[str, Any]:
    """Of a curve: references are dashed, variants of a method differ in dashes and shade."""
    if is_reference(method):
        dashes = (0, (5, 3)) if method.startswith("individual") else (0, (1, 2))
        return {"color": look_of(results, method)["color"], "linestyle": dashes, "linewidth": 1.6, "zorder": 2}
    variant = variant_of(results, method)
    return look_of(results, method) | {
        "linestyle": ("-", "--", ":", "-.")[variant % 4],
        "linewidth": 3 if method.split()[0] in _OURS and not variant else 1.5,
        "markeredgecolor": "white", "markeredgewidth": 0.6,
    }  # fmt: skip


def dots_of(results: Results, method: str) -> dict[str, Any]:
    """Of single points: variants of a method are open, or filled by half."""
    if method == "individual":
        return line_of(results, method)
    look, variant = look_of(results, method), variant_of(results, method)
    size = 1.5 * look["markersize"]
    look |= {"linestyle": "none", "markersize": size, "alpha": 0.9, "markeredgecolor": "white"}
    if variant:
        face = {"markerfacecolor": "white" if variant % 4 == 1 else look["color"], "markerfacecoloralt": "white"}
        look |= face | {"markeredgecolor": look["color"], "fillstyle": ("full", "full", "left", "bottom")[variant % 4]}
    return look


def variant_of(results: Results, method: str) -> int:
    """The place of a method among those of its name, which share a colour."""
    return [m for m in results["methods"] if m.split()[0] == method.split()[0]].index(method)


def bar_of(results: Results, method: str) -> dict[str, Any]:
    """Of a bar: variants of a method are hatched."""
    hatch = ("", "///", "...", "xxx")[variant_of(results, method) % 4]
    edge = ("#222222", 1.2) if method.split()[0] in _OURS else ("white", 0.0)
    return {"facecolor": look_of(results, method)["color"], "edgecolor": edge[0], "linewidth": edge[1], "hatch": hatch}


def striped(line: dict[str, Any], place: int, count: int) -> dict[str, Any]:
    """One of `count` lines that lie on each other, in dashes that leave the others visible."""
    if count == 1:
        return line
    return line | {"linestyle": (5 * place, (5, 5 * (count - 1))), "dash_capstyle": "butt", "marker": "none"}


def narrow_label(method: str, more: str = "") -> str:
    """A method's label, and what is to be said besides, in lines that leave room for the panels."""
    return "\n".join(textwrap.wrap(label(method) + more, NARROW, subsequent_indent="  "))
