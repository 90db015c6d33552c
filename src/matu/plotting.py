"""The look of every figure, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222", "axes.axisbelow": True, "axes.grid": True, "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444", "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "matu",
    "figure.constrained_layout.h_pad": 0.1, "figure.constrained_layout.w_pad": 0.08,
}  # fmt: skip


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg, the same to the byte for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg"))
    figure.savefig(png, dpi=160, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(svg, bbox_inches="tight", metadata={"Date": None})
    return [png, svg]
