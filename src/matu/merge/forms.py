"""What is merged, in parts: task vectors from a shared start, or weight changes in common bases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from matu.errors import DataError
from matu.merge.adapters import Adapter, Pair
from matu.merge.factors import common_columns, common_rows, product, truncate
from matu.merge.start import Start


@dataclass(frozen=True)
class Part:
    """One matrix of the tasks' vectors, float32 [T, *shape], and what they are added to.

    Attributes
    ----------
    name : str
        Of the matrix, in PEFT's file.
    start : float32 [*shape]
        Of this matrix.
    bases : dict of str to float32 tensors
        Matrices that a merged folder has to hold beside the vectors, by name.
    """

    name: str
    vectors: Tensor
    start: Tensor
    bases: Mapping[str, Tensor] = field(default_factory=dict)


class Form(Protocol):
    """One way to see adapters as task vectors."""

    name: str
    config: dict[str, Any]
    """`adapter_config.json` of what comes out, without `modules_to_save`."""
    pairs: dict[str, Pair]
    """Of what comes out, in the order of the parts."""

    def parts(self, *, exact: bool) -> Iterator[Part]:
        """All parts, sorted by name; anew in every call. `exact`: nothing is lost, whatever the size."""

    def whole(self, part: Part, merged: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The matrices of one adapter for all tasks, from an exact part's merged vector [*shape]."""

    def errors(self) -> list[float]:
        """‖what a lower rank leaves out‖ / ‖what was there‖, by task or once for all, of the last pass."""


class SharedStart:
    """Task vectors: an adapter's matrices less those of the start that all share.

    Parameters
    ----------
    adapters
        Of equal names, shapes and scales.
    start
        Drawn from a seed, or another adapter.

    Raises
    ------
    DataError
        The adapters do not fit each other, or the start.
    """

    name = "shared_start"

    def __init__(self, adapters: Sequence[Adapter], start: Start | Adapter) -> None:
        self._adapters, self._start = adapters, start
        first = adapters[0]
        others = [*adapters[1:], start] if isinstance(start, Adapter) else adapters[1:]
        for other in others:
            for module in sorted({*first.pairs, *other.pairs}):
                if _facts(first, module) != _facts(other, module):
                    raise DataError(
                        f"{other.folder}: {module} is not as in {first.folder}; adapters of one start have the same "
                        "modules, ranks and scales"
                    )
        self.config = {key: value for key, value in first.config.items() if key != "modules_to_save"}
        self.pairs = first.pairs
        self._shapes = {key: first.shapes[key] for pair in self.pairs.values() for key in (pair.a, pair.b)}
        if isinstance(start, Start):
            start.check(self._shapes, first.folder)

    def _starts(self) -> Iterator[tuple[str, Tensor]]:
        """Names, sorted, and start of all matrices."""
        if isinstance(self._start, Start):
            yield from self._start.draw(self._shapes)
        else:
            yield from ((name, self._start.tensor(name)) for name in sorted(self._shapes))

    def parts(self, *, exact: bool) -> Iterator[Part]:
        for name, start in self._starts():
            vectors = torch.stack([adapter.tensor(name) - start for adapter in self._adapters])
            held = isinstance(self._start, Adapter) and bool(start.any())
            yield Part(name, vectors, start, {name: start} if held else {})

    def whole(self, part: Part, merged: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield part.name, part.start + merged

    def errors(self) -> list[float]:
        return [0.0] * len(self._adapters)


class WeightChange:
    """Weight changes scale · B · A, each module's in a basis that all tasks share.

    Matrices A of different starts have no entry in common, but their products with B are changes of the same weight.
    Orthonormal rows V [R, n] are chosen for all tasks, ΔW_t ≈ C_t V with C_t = ΔW_t Vᵀ, and the C_t are the task
    vectors: what comes out has A = V and B = C. Where common columns lose less, ΔW_t ≈ U C_t in the same way.

    Parameters
    ----------
    adapters
        Of one base; ranks and modules may differ. A module that one lacks is a change of zero.
    rank
        R at most.
    norms
        ‖ΔW_t‖ of each adapter over all modules: losses are counted relative to them.
    """

    name = "weight_change"

    def __init__(self, adapters: Sequence[Adapter], rank: int, norms: Sequence[float]) -> None:
        self._adapters, self._rank, self._norms = adapters, rank, norms
        self._shapes = _common_shapes(adapters)
        self.pairs = {module: pair for module, (pair, _, _) in self._shapes.items()}
        ranks = {module: min(rank, self._limit(module)) for module in self.pairs}
        largest = max(ranks.values())
        smaller = {module: r for module, r in ranks.items() if r < largest}
        copied = ("task_type", "base_model_name_or_path", "revision", "fan_in_fan_out", "auto_mapping")
        self.config = {key: adapters[0].config.get(key) for key in copied} | {
            "peft_type": "LORA", "inference_mode": True, "r": largest, "lora_alpha": largest, "lora_dropout": 0.0,
            "bias": "none", "rank_pattern": smaller, "alpha_pattern": smaller, "target_modules": list(self.pairs),
        }  # fmt: skip
        self._squares = torch.zeros(2, len(adapters), dtype=torch.float64)
        """Of what there was and of what a lower rank kept, in the last pass."""
        self._whole = torch.zeros(2, dtype=torch.float64)
        """The same of the one adapter for all tasks."""

    def _rows_there(self, module: str) -> int:
        """Rows that hold all tasks' changes of a module, in which nothing is lost before they are merged."""
        _, a, (outputs, *_) = self._shapes[module]
        ranks = [adapter.shapes[adapter.pairs[module].a][0] for adapter in self._adapters if module in adapter.pairs]
        return min(math.prod(a), sum(min(outputs, rank) for rank in ranks))

    def _limit(self, module: str) -> int:
        """The rank at which nothing of a module's one change, or of all its changes by rows or columns, is lost."""
        return min(self._shapes[module][2][0], self._rows_there(module))

    def parts(self, *, exact: bool) -> Iterator[Part]:
        self._squares.zero_()
        self._whole.zero_()
        for module in self.pairs:
            yield self._part(module, exact=exact)

    def _part(self, module: str, *, exact: bool) -> Part:
        pair, a, b = self._shapes[module]
        changes = {t: factors for t, adapter in enumerate(self._adapters) if (factors := adapter.factors(module))}
        weights = [1 / norm if (norm := self._norms[t]) else 0.0 for t in changes]
        rank = self._rows_there(module) if exact else min(self._rank, self._limit(module))
        rows, by_rows = common_rows(list(changes.values()), weights, rank)
        columns, by_columns = (rows, 0.0) if exact else common_columns(list(changes.values()), weights, rank)
        a_shape, b_shape = (rank, *a), (b[0], rank, *b[1:])
        if by_rows >= by_columns:
            name, shape, bases = pair.b, b_shape, {pair.a: rows.float().view(a_shape)}
        else:
            name, shape, bases = pair.a, a_shape, {pair.b: columns.float().view(b_shape)}
        vectors = torch.zeros(len(self._adapters), *shape)
        for t, (left, right) in changes.items():
            found = left @ (right @ rows.T) if name == pair.b else (columns.T @ left) @ right
            vectors[t] = found.view(shape)
            self._squares[:, t] += torch.tensor([product((left, right), (left, right)), float(found.square().sum())])
        return Part(name, vectors, torch.zeros(shape), bases)

    def whole(self, part: Part, merged: Tensor) -> Iterator[tuple[str, Tensor]]:
        ((a, rows),) = part.bases.items()
        change = merged.double().flatten(1), rows.double().flatten(1)
        left, right = truncate(change, self._rank)
        self._whole += torch.tensor([product(change, change), product((left, right), (left, right))])
        yield a, right.float().view(len(right), *rows.shape[1:])
        yield part.name, left.float().view(len(merged), len(right), *merged.shape[2:])

    def errors(self) -> list[float]:
        there, kept = self._whole[:, None].expand_as(self._squares) if self._whole.any() else self._squares
        return (1 - kept / there).clamp(min=0).sqrt().nan_to_num().tolist()


def _common_shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[Pair, tuple[int, ...], tuple[int, ...]]]:
    """By module, sorted by A's name: names with scale 1, and the shapes of A and B without the rank."""
    found: dict[str, tuple[Pair, tuple[int, ...], tuple[int, ...]]] = {}
    for adapter in adapters:
        for module, pair in adapter.pairs.items():
            a, b = adapter.shapes[pair.a], adapter.shapes[pair.b]
            here = Pair(pair.a, pair.b, 1.0), a[1:], (b[0], *b[2:])
            if here != found.setdefault(module, here):
                raise DataError(
                    f"{adapter.path}: {module} is a change of {here[2]} by {here[1]}, elsewhere of "
                    f"{found[module][2]} by {found[module][1]}; expected adapters of one base"
                )
    return dict(sorted(found.items(), key=lambda item: item[1][0].a))


def _facts(adapter: Adapter, module: str) -> tuple[Pair, tuple[int, ...], tuple[int, ...]] | None:
    pair = adapter.pairs.get(module)
    return None if pair is None else (pair, adapter.shapes[pair.a], adapter.shapes[pair.b])
