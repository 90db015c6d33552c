"""How near each of k task vectors comes back from one message, by the form that the message gives them.

python benchmarks/reconstruction.py [--run FOLDER] --out FILE [--figure FILE.png]

FOLDER is a run of a method whose server keeps an adapter a task, with config.toml and checkpoint; without it the
vectors are independent and Gaussian. Subsets of k tasks are drawn, up to ten a k; each form takes one in and gives k
vectors back, whose cosines to the originals and lengths of error are averaged. Bits are those of one parameter for all
k tasks: as the form states them, and as encoded by our own codecs where the form is one of theirs. What FILE holds of
other vectors is kept, and drawn too.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator
from torch import Tensor

from matu.methods.true_signs import share_magnitudes
from matu.plotting import STYLE, save
from matu.vectors import unify
from matu.wire import Codecs, Envelope, Header, Kind, Numbers, Part, arrived, encode
from stopped import open_run
from watch import processor

DIM, TASKS, SUBSETS, TURNS = 221_184, 30, 10, 20
COUNTS = (1, 2, 3, 4, 5, 8, 16, 22, 30)
BITS = {"ternary": 2.0, "2bit": 2.0, "3bit": 3.0, "4bit": 4.0, "5bit": 5.0, "8bit": 8.0, "float32": 32.0}
Form = Callable[[Tensor], tuple[Tensor, float, float | None]]
"""From k vectors to what comes back of them, bits a parameter as stated, and as encoded."""


def papers(rows: Tensor, codec: str = "float32") -> tuple[Tensor, float, float | None]:
    """Elected sign and largest agreeing magnitude, a mask and a rescaler a task (Eq. 2); the vector in so many bits."""
    u, codecs = unify(rows), Codecs(Numbers(codec), coded_masks=True)
    parts, tensors = unified_parts(u.vector, u.masks, u.rescalers)
    there = {"masks": u.masks, **arrived(parts, tensors, codecs)}
    back = there["rescalers"][:, None] * torch.where(there["masks"], there["vector"], 0)
    return back, BITS[codec] + (len(rows) if len(rows) > 1 else 0), encoded_bits(parts, tensors, codecs)


def true_signs(rows: Tensor) -> tuple[Tensor, float, float | None]:
    """Masks read as signs on a shared magnitude of least squares."""
    vector, masks, rescalers = share_magnitudes(rows)
    parts, tensors = unified_parts(vector, masks, rescalers)
    back = rescalers[:, None] * (2 * masks.to(rows) - 1) * vector
    return back, 32.0 + (len(rows) if len(rows) > 1 else 0), encoded_bits(parts, tensors, Codecs(coded_masks=True))


def two_levels(rows: Tensor) -> tuple[Tensor, float, float | None]:
    """Signs on a shared magnitude, and a bit a task that chooses one of its two levels (least squares, by turns)."""
    if len(rows) == 1:
        return rows, 32.0, None
    sizes, magnitude = rows.abs(), share_magnitudes(rows)[0].abs()
    levels = (sizes @ magnitude / magnitude.dot(magnitude))[:, None] * torch.tensor([0.5, 1.5])  # [k, 2]
    for _ in range(TURNS):
        upper = sizes > levels.mean(1, keepdim=True) * magnitude  # the nearer level
        weight, product = magnitude.square(), magnitude * sizes
        for level, chosen in ((0, ~upper), (1, upper)):
            levels[:, level] = torch.where(chosen, product, 0).sum(1) / (chosen.float() @ weight).clamp(min=1e-30)
        factors = torch.where(upper, levels[:, 1:], levels[:, :1])
        magnitude = (factors * sizes).sum(0) / factors.square().sum(0).clamp(min=1e-30)
    return rows.sign() * factors * magnitude, 32.0 + 2 * len(rows), None


def a_vector_a_task(rows: Tensor, codec: str) -> tuple[Tensor, float, float | None]:
    """Each vector by itself, in so many bits; ternary as T-Switch: sign, what is set to zero, and a scale."""
    parts = [Part(f"vector/{i}", Kind.VECTOR, (rows.shape[1],)) for i in range(len(rows))]
    tensors = {part.name: row for part, row in zip(parts, rows, strict=True)}
    codecs = Codecs(Numbers(codec))
    there = arrived(parts, tensors, codecs)
    back = torch.stack([there[part.name] for part in parts])
    return back, BITS[codec] * len(rows), encoded_bits(parts, tensors, codecs)


def unified_parts(vector: Tensor, masks: Tensor, rescalers: Tensor) -> tuple[list[Part], dict[str, Tensor]]:
    """A message of one vector, and of a mask and a number a task; one task needs no mask."""
    k, dim = masks.shape
    parts = [Part("vector", Kind.VECTOR, (dim,)), Part("masks", Kind.MASKS, (k, dim), of="vector")]
    tensors = {"vector": vector, "masks": masks, "rescalers": rescalers}
    if k == 1:
        parts, tensors = parts[:1], {"vector": vector, "rescalers": rescalers}
    return [*parts, Part("rescalers", Kind.RESCALERS, (k,))], tensors


def encoded_bits(parts: list[Part], tensors: dict[str, Tensor], codecs: Codecs) -> float:
    """Bits a parameter of the message's vectors and masks."""
    header = Header("train", "0" * 32, 1, "matu", "north", "0" * 64, ("a task",))
    sizes = Envelope(encode(header, parts, tensors, codecs)).sizes(parts)
    dim = next(part.shape[-1] for part in parts if part.kind == Kind.VECTOR)
    return 8 * (sizes["vectors"] + sizes["masks"]) / dim


FORMS: dict[str, Form] = {
    "the paper's": papers, "the paper's, vector in 5 bits": partial(papers, codec="5bit"),
    "true signs": true_signs, "true signs, two levels": two_levels,
    "a vector a task, ternary": partial(a_vector_a_task, codec="ternary"),
    **{f"a vector a task, {bits} bits": partial(a_vector_a_task, codec=f"{bits}bit") for bits in (2, 3, 4, 5, 8)},
}  # fmt: skip
LOOKS = {
    "the paper's": ("#D55E00", "-o"), "true signs": ("#8C6D31", "-s"), "true signs, two levels": ("#8C6D31", "--s"),
    "a vector a task, ternary": ("#882255", "--"), "a vector a task, 2 bits": ("#56B4E9", "--"),
    "a vector a task, 3 bits": ("#0072B2", "--"), "a vector a task, 4 bits": ("#332288", "--"),
}  # fmt: skip


def measure(rows: Tensor) -> dict[str, dict[str, Any]]:
    """By form and number of tasks: mean and least cosine, mean relative error, bits."""
    draw = np.random.default_rng(0)
    found: dict[str, dict[str, Any]] = {name: {} for name in FORMS}
    for count in (count for count in COUNTS if count <= len(rows)):
        every = itertools.islice(itertools.combinations(range(len(rows)), count), SUBSETS + 1)
        subsets = list(every)
        if len(subsets) > SUBSETS:
            subsets = [tuple(sorted(draw.choice(len(rows), count, replace=False))) for _ in range(SUBSETS)]
        for name, form in FORMS.items():
            cosines, errors, coded = [], [], []
            for subset in subsets:
                some = rows[list(subset)]
                back, stated, encoded = form(some)
                cosines += torch.nn.functional.cosine_similarity(back.double(), some.double()).tolist()
                errors += ((back - some).double().norm(dim=1) / some.double().norm(dim=1)).tolist()
                coded += [] if encoded is None else [encoded]
            found[name][str(count)] = {
                "cosine": float(np.mean(cosines)), "least_cosine": min(cosines), "error": float(np.mean(errors)),
                "bits_stated": stated, "bits_encoded": float(np.mean(coded)) if coded else None,
            }  # fmt: skip
    return found


@rc_context(STYLE)
def draw(found: Mapping[str, Any], path: Path) -> None:
    """Cosine over the number of tasks, a panel a kind of vectors."""
    figure = Figure(figsize=(4.6 * len(found) + 2.2, 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(found), sharey=True))
    for axes, (title, about) in zip(panels, found.items(), strict=True):
        for name, (colour, style) in LOOKS.items():
            points = [(int(k), one["cosine"]) for k, one in about["forms"][name].items()]
            axes.plot(*zip(*points, strict=True), style, color=colour, label=name, markersize=4, linewidth=1.5)
        axes.set(title=title, xlabel="tasks in one message", xscale="log")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 30]))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(NullLocator())
    figure.axes[0].set_ylabel("cosine of what comes back")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    save(figure, path.with_suffix(""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.run:
        run, method, _, progress = open_run(asked.run)
        kept = method.server_weights(progress.state)
        if kept is None:
            raise SystemExit(f"{asked.run}: the server of '{run.config.federation.method}' has no weights of its own")
        rows = torch.stack([weights.vector for weights in kept.values()])
        key = f"{run.config.federation.method}, round {progress.round}, {len(rows)} tasks"
    else:
        rows, key = torch.randn(TASKS, DIM, generator=torch.Generator().manual_seed(0)), "independent, Gaussian"
    found = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    found[key] = {"machine": processor(), "dim": rows.shape[1], "forms": measure(rows)}
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.figure:
        draw(found, asked.figure)
    for name, by_count in found[key]["forms"].items():
        print(f"{name:32}" + "".join(f"{k:>4}: {one['cosine']:.3f}" for k, one in by_count.items()))


if __name__ == "__main__":
    main()
