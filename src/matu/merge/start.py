"""The mark of an adapter's start: what makes it provable that adapters began as one and the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from matu.errors import DataError
from matu.files import write_atomic
from matu.merge.adapters import WEIGHTS
from matu.vectors import draw_start

MARK = "matu.json"
"""Lies beside `adapter_config.json`: {"format": 1, "start": {"fingerprint", "seed", "start_b", "sha256"}}."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Start:
    """How a start is drawn again.

    Attributes
    ----------
    fingerprint : str
        Of the adapter, as sites compare it: backbone, layout, rank, seed.
    seed : int
        Of `draw_start`.
    start_b : float
        Bound of B's draw, 0 for B = 0.
    sha256 : str
        Over the bytes of the drawn matrices, in sorted order of names.
    """

    fingerprint: str
    seed: int
    start_b: float
    sha256: str

    def draw(self, shapes: Shapes) -> Iterable[tuple[str, Tensor]]:
        """Names, sorted, and start of LoRA matrices, float32."""
        return draw_start(sorted(shapes.items()), self.seed, self.start_b)

    def check(self, shapes: Shapes, where: Path) -> None:
        """DataError unless what is drawn here is what was drawn there."""
        if _digest(self.draw(shapes)) != self.sha256:
            raise DataError(f"{where}: the start drawn from seed {self.seed} is not the one its sha256 tells")

    def mark(self, folder: Path) -> None:
        """Write `matu.json` into an adapter folder."""
        write_atomic(folder / MARK, json.dumps({"format": 1, "start": asdict(self)}, indent=1).encode())


def mark_start(folder: Path, *, fingerprint: str, seed: int, start_b: float) -> None:
    """Write the mark into an adapter folder whose training began at `draw_start` of this seed.

    Parameters
    ----------
    folder
        With `adapter_model.safetensors`.
    fingerprint
        `AdaptedModel.fingerprint`.
    seed, start_b
        `adapter_seed` and `start_b` of the model's settings.
    """
    with safe_open(folder / WEIGHTS, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys()) if "lora_" in key}
    unsigned = Start(fingerprint, seed, start_b, "")
    replace(unsigned, sha256=_digest(unsigned.draw(shapes))).mark(folder)


def read_mark(folder: Path) -> Start | None:
    """The start that an adapter folder is marked with, None without a mark; DataError for one that is broken."""
    path = folder / MARK
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}, this version of matu reads 1")
        return start_of(content["start"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no readable mark of a start ({type(error).__name__}: {error})") from error


def start_of(content: Mapping[str, Any]) -> Start:
    """A start from its JSON; KeyError, TypeError or ValueError for anything else."""
    fingerprint, seed, start_b, sha256 = (content[key] for key in ("fingerprint", "seed", "start_b", "sha256"))
    if not isinstance(fingerprint, str) or not isinstance(sha256, str):
        raise TypeError("fingerprint and sha256: expected text")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise ValueError(f"seed {seed!r}, expected a whole number of at least 0")
    if not isinstance(start_b, int | float) or not math.isfinite(start_b) or start_b < 0:
        raise ValueError(f"start_b {start_b!r}, expected a number of at least 0")
    return Start(fingerprint, seed, float(start_b), sha256)


def _digest(start: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for _, tensor in start:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
