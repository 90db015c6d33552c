"""Merge PEFT LoRA adapters of one base into one vector with a modulator a task, or into one adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matu.errors import ConfigError, DataError
from matu.files import new_folder
from matu.merge.adapters import CONFIG, WEIGHTS, Adapter, require_one_base
from matu.merge.card import card
from matu.merge.factors import product
from matu.merge.forms import Form, SharedStart, WeightChange
from matu.merge.merged import (
    FORMAT,
    HEADS,
    MASK,
    NOTE,
    START,
    TASK_NAME,
    UNIFIED,
    VECTOR,
    Merged,
    sha256,
    write_tensors,
)
from matu.merge.start import Start, read_mark
from matu.vectors.merging import KEEP, SCALE, Trim, agreeing_mean
from matu.vectors.unify import elect
from matu.wire import pack

METHODS = ("unify", "ties", "task_arithmetic", "mean")


def merge(
    folders: Mapping[str, Path],
    to: Path,
    *,
    method: str = "unify",
    rank: int | None = None,
    keep: float | None = None,
    scale: float | None = None,
    shared_start: Path | None = None,
) -> dict[str, Any]:
    """Merge adapters, tensor by tensor, into a new folder.

    Where the start is known to be shared, what is merged are the matrices less the start; otherwise the weight
    changes, in common bases of a stated rank (`forms`).

    Parameters
    ----------
    folders
        A PEFT adapter folder a task, by name.
    to
        A new folder, or an empty one.
    method
        "unify" keeps a mask and a rescaler a task (Eq. 2); "ties", "task_arithmetic" and "mean" give one adapter.
    rank
        Of what comes out, in the weight-change form; None: the largest rank of the adapters.
    keep
        Share of entries that survives the trim of TIES; None: 0.2.
    scale
        Of the merged vector of TIES (None: 1) and task arithmetic (None: 0.3).
    shared_start
        Adapter folder that holds the start of all: the caller vouches for it.

    Returns
    -------
    dict
        Content of `artifact.json`.

    Raises
    ------
    ConfigError
        An option that cannot work.
    DataError
        Adapters that are broken, or do not belong together; nothing is written.
    """
    _check(folders, method, rank, keep, scale)
    with ExitStack() as files, new_folder(to) as out, _one_thread():
        adapters = [Adapter(name, folder, files) for name, folder in folders.items()]
        start = _start(adapters, shared_start, files)
        norms = [_norm(adapter) for adapter in adapters]
        largest = max(adapter.shapes[pair.a][0] for adapter in adapters for pair in adapter.pairs.values())
        if start is not None and rank is not None:
            raise ConfigError("rank: the adapters share their start and keep their rank; leave it out")
        form = SharedStart(adapters, start) if start else WeightChange(adapters, rank or largest, norms)
        note: dict[str, Any] = {
            "format": FORMAT, "kind": "merged", "method": method, "form": form.name,
            "base_model": {key: adapters[0].config.get(at) for key, at in _BASE.items()},
            "adapter_config": form.config,
            "start": asdict(start) if isinstance(start, Start) else None,
            "tasks": {a.name: {"source": a.folder.name, "modules_to_save": a.config.get("modules_to_save")}
                      for a in adapters},
        }  # fmt: skip
        if method == "unify":
            likeness = _unify(form, len(adapters), out)
        else:
            likeness = _merge_into_one(form, _rule(form, method, keep, scale), len(adapters), out)
            (out / CONFIG).write_text(json.dumps(form.config | {"modules_to_save": None}, indent=1))
            if isinstance(start, Start):
                start.mark(out)
        _write_heads(adapters, out)
        (out / NOTE).write_text(json.dumps(note))
        found = zip(likeness, form.errors(), _weight_likeness(adapters, norms, form, out), strict=True)
        for task, (vector, error, weights) in zip(note["tasks"].values(), found, strict=True):
            task |= vector | {"factorisation_error": error} | weights
        note["sizes"] = _sizes(adapters, out)
        note["sha256"] = {str(file.relative_to(out)): sha256(file) for file in sorted(out.rglob("*.safetensors"))}
        (out / NOTE).write_text(json.dumps(note, indent=1))
        (out / "README.md").write_text(card(note))
    return note


@contextmanager
def _one_thread() -> Iterator[None]:
    """The work is many small matrices, for which threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_BASE = {"name": "base_model_name_or_path", "revision": "revision"}


def _check(folders: Mapping[str, Path], method: str, rank: int | None, keep: float | None, scale: float | None) -> None:
    if not folders:
        raise ConfigError("no adapters; expected the folders of PEFT adapters")
    for name in folders:
        if not TASK_NAME.fullmatch(name):
            raise ConfigError(f"task name {name!r}: expected letters, digits, '.', '_', '+' or '-'; name it: NAME=DIR")
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank {rank}: expected at least 1")
    if keep is not None and (method != "ties" or not 0 < keep <= 1):
        raise ConfigError(f"keep {keep}: expected more than 0, at most 1, with ties")
    if scale is not None and (method not in ("ties", "task_arithmetic") or not math.isfinite(scale)):
        raise ConfigError(f"scale {scale}: expected a finite number, with ties or task_arithmetic")


def _start(adapters: Sequence[Adapter], shared: Path | None, files: ExitStack) -> Start | Adapter | None:
    """The start that all adapters share: vouched for, or proved by equal marks; None where neither is so."""
    if shared is not None:
        vouched = Adapter("the start", shared, files)
        require_one_base([vouched, *adapters])
        _norm(vouched)
        return vouched
    require_one_base(adapters)
    marks = [read_mark(adapter.folder) for adapter in adapters]
    return marks[0] if all(mark == marks[0] for mark in marks) else None


def _norm(adapter: Adapter) -> float:
    """‖ΔW‖ over all modules; every number of the adapter is looked at."""
    squares = [product(f, f) for module in adapter.pairs if (f := adapter.factors(module)) is not None]
    for key in adapter.kept:
        whole = adapter.raw(key)
        if whole.is_floating_point() and not torch.isfinite(whole.double()).all():
            raise DataError(f"{adapter.path}: {key}: numbers that are not finite")
    return math.sqrt(math.fsum(squares))


class _Likeness:
    """Sums over parts of how task vectors v and what comes out of them, λ · u, compare."""

    def __init__(self, count: int) -> None:
        self._sums = torch.zeros(5, count, dtype=torch.float64)

    def add(self, vectors: Tensor, found: Iterable[Tensor]) -> None:
        """Part of all vectors v, [T, n], and of the u, T times [n]."""
        for t, (one, other) in enumerate(zip(vectors, found, strict=True)):
            v, u = one.double(), other.double()
            self._sums[:, t] += torch.stack([v.abs().sum(), u.abs().sum(), v @ v, u @ u, v @ u])

    def rescalers(self) -> list[float]:
        """λ = Σ|v| / Σ|u|, 0 where that is 0 (section 3.2)."""
        mass, kept = self._sums[:2].tolist()
        return [a / b if b else 0.0 for a, b in zip(mass, kept, strict=True)]

    def by_task(self, rescalers: Sequence[float]) -> list[dict[str, float | None]]:
        """Cosine of v and u, and ‖λ u‖ / ‖v‖; None where they have none."""
        squares, found, inner = self._sums[2:].tolist()
        return [compared("vector", *numbers) for numbers in zip(squares, found, inner, rescalers, strict=True)]


def compared(what: str, square: float, found: float, inner: float, scale: float = 1.0) -> dict[str, float | None]:
    """Cosine and ratio of norms, from ‖v‖², ‖u‖², ⟨v, u⟩ and u's scale."""
    lengths = math.sqrt(square) * math.sqrt(found)
    return {
        f"{what}_cosine": inner / lengths if lengths else None,
        f"{what}_norm_ratio": scale * math.sqrt(found / square) if square else None,
    }


def _unify(form: Form, count: int, out: Path) -> list[dict[str, float | None]]:
    """Write `unified.safetensors`: what `matu.unify` makes of all parts in a row, part by part."""
    likeness = _Likeness(count)
    found: dict[str, Tensor] = {}
    for part in form.parts(exact=False):
        vectors = part.vectors.flatten(1)
        vector, masks = elect(vectors)
        likeness.add(vectors, (torch.where(mask, vector, 0) for mask in masks))
        found |= {START + name: base for name, base in part.bases.items()}
        found[VECTOR + part.name] = vector.view(part.start.shape)
        bits = b"".join(pack(mask.numpy()) for mask in masks)
        found[MASK + part.name] = torch.frombuffer(bytearray(bits), dtype=torch.uint8).view(count, -1)
    found["rescalers"] = rescalers = torch.tensor(likeness.rescalers(), dtype=torch.float32)
    if not torch.isfinite(rescalers).all():
        raise DataError("the adapters are too unlike in size: a rescaler is beyond float32")
    write_tensors(out / UNIFIED, found)
    return likeness.by_task(rescalers.tolist())


def _rule(form: Form, method: str, keep: float | None, scale: float | None) -> Callable[[Tensor], Tensor]:
    """How the next part of all task vectors, [T, n], becomes one, [n]."""
    if method == "mean":
        return lambda vectors: vectors.mean(dim=0)
    if method == "task_arithmetic":
        return lambda vectors: (SCALE if scale is None else scale) * vectors.sum(dim=0)
    trim = Trim(lambda: (part.vectors.flatten(1) for part in form.parts(exact=True)), keep or KEEP)
    return lambda vectors: (1.0 if scale is None else scale) * agreeing_mean(trim(vectors))


def _merge_into_one(
    form: Form, rule: Callable[[Tensor], Tensor], count: int, out: Path
) -> list[dict[str, float | None]]:
    """Write one adapter for all tasks."""
    likeness, found = _Likeness(count), dict[str, Tensor]()
    for part in form.parts(exact=True):
        vectors = part.vectors.flatten(1)
        merged = rule(vectors)
        likeness.add(vectors, repeat(merged, count))
        found |= form.whole(part, merged.view(part.start.shape))
    write_tensors(out / WEIGHTS, found)
    return likeness.by_task([1.0] * count)


def _write_heads(adapters: Sequence[Adapter], out: Path) -> None:
    """Whole weights that a task has beside its low-rank change are kept as they are."""
    for adapter in adapters:
        if adapter.kept:
            (out / HEADS).mkdir(exist_ok=True)
            write_tensors(out / HEADS / f"{adapter.name}.safetensors", {key: adapter.raw(key) for key in adapter.kept})


def _weight_likeness(
    adapters: Sequence[Adapter], norms: Sequence[float], form: Form, out: Path
) -> list[dict[str, float | None]]:
    """Compare the weight changes of what was written, read back, with the adapters'."""
    sums = torch.zeros(2, len(adapters), dtype=torch.float64)
    with ExitStack() as files:
        merged = Merged(out, files)
        modules = _in_pairs(merged.matrices(merged.tasks))
        for (module, pair), (all_a, all_b) in zip(form.pairs.items(), modules, strict=True):
            for t, adapter in enumerate(adapters):
                found = pair.scale * all_b[t].double().flatten(1), all_a[t].double().flatten(1)
                original = adapter.factors(module)
                sums[0, t] += product(found, found)
                sums[1, t] += product(original, found) if original else 0.0
    return [compared("weight", norm**2, *numbers) for norm, numbers in zip(norms, sums.T.tolist(), strict=True)]


def _in_pairs(matrices: Iterator[tuple[str, list[Tensor]]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Sorted by name, a module's A and B are neighbours."""
    for _, all_a in matrices:
        _, all_b = next(matrices)
        yield all_a, all_b


def _sizes(adapters: Sequence[Adapter], out: Path) -> dict[str, int]:
    heads = sum(path.stat().st_size for path in (out / HEADS).glob("*"))
    merged = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return {
        "adapters_bytes": sum(adapter.path.stat().st_size for adapter in adapters),
        "merged_bytes": merged + heads, "heads_bytes": heads,
    }  # fmt: skip
