"""PEFT LoRA adapters on disk: opened, checked, and read one tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from matu.errors import DataError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the base model's own names."""

MAX_NUMBER, MAX_REPEATS = 1e6, 2
"""Of ranks and alphas; of `*`, `+` and `{` in a key of `rank_pattern` or `alpha_pattern`."""

_PAIRS = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora", "velora_config",
}  # fmt: skip
"""Keys of the config that leave the weight change at scale · B · A, or are looked at here."""
_STARTS_AT_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to start that change nothing in the base model; others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take part of it."""


@dataclass(frozen=True)
class Pair:
    """The two matrices of one module: their names in the file, and the factor of their product."""

    a: str
    b: str
    scale: float


class Adapter:
    """One adapter folder, open.

    Parameters
    ----------
    name
        Of its task.
    folder
        With `adapter_config.json` and `adapter_model.safetensors`.
    files
        Closes the file.

    Attributes
    ----------
    config : dict
        `adapter_config.json`.
    pairs : dict of str to Pair
        By the module's name, sorted by the names of the A matrices.
    kept : list of str
        Names of whole weights, such as heads, that are no part of the low-rank change.

    Raises
    ------
    DataError
        What is there is no LoRA adapter whose weight change is scale · B · A.
    """

    def __init__(self, name: str, folder: Path, files: ExitStack) -> None:
        self.name, self.folder, self.path = name, folder, folder / WEIGHTS
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected that of a PEFT adapter")
        self.config = _read_config(folder / CONFIG)
        if not self.path.is_file():
            pickled = folder / "adapter_model.bin"
            raise DataError(
                f"{pickled}: a pickle, which may run any code when read; where it came from, load it with PEFT and "
                "save it again: PeftModel.from_pretrained(base_model, folder).save_pretrained(folder)"
                if pickled.exists()
                else f"{folder}: no {WEIGHTS}; expected the folder of a PEFT adapter"
            )
        try:
            self._file = files.enter_context(safe_open(self.path, "pt"))
        except safetensors.SafetensorError as error:
            raise DataError(f"{self.path}: no safetensors file ({error})") from error
        keys = sorted(self._file.keys())
        self.shapes = {key: tuple(self._file.get_slice(key).get_shape()) for key in keys}
        self.kept = [key for key in keys if "lora_" not in key]
        self.pairs: dict[str, Pair] = {}
        for key in keys:
            if key not in self.kept:
                self._take(key)
        if not self.pairs:
            raise DataError(f"{self.path}: no LoRA matrices")

    def _take(self, key: str) -> None:
        """Note the pair of a matrix A; refuse what belongs to no pair."""
        for first, second in (*_PAIRS.items(), *((b, a) for a, b in _PAIRS.items())):
            if key.endswith(f".{first}"):
                partner = key.removesuffix(first) + second
                if partner not in self.shapes:
                    raise DataError(f"{self.path}: {key} without {partner}")
                if first in _PAIRS:
                    module = key.removesuffix(f".{first}").removeprefix(PREFIX)
                    self.pairs[module] = Pair(key, partner, self._scale(module, key, partner))
                return
        raise DataError(
            f"{self.path}: {key}: no part of scale · B · A; expected lora_A and lora_B, or lora_embedding_A and _B"
        )

    def _scale(self, module: str, a: str, b: str) -> float:
        rank = self._of_pattern("rank_pattern", module, self.config["r"])
        alpha = self._of_pattern("alpha_pattern", module, self.config["lora_alpha"])
        left, right = self.shapes[b], self.shapes[a]
        if len(left) < 2 or len(right) < 2 or left[1] != rank or right[0] != rank or math.prod(left[2:]) != 1:
            raise DataError(
                f"{self.path}: {module}: A {list(right)} and B {list(left)} are not of rank {rank}, which {CONFIG} says"
            )
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _of_pattern(self, pattern: str, module: str, otherwise: float) -> float:
        """PEFT's rule: the first key that is the module's name, or its end after a dot, as a regular expression."""
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return otherwise

    def raw(self, key: str) -> Tensor:
        """A tensor as it is in the file; DataError if it is of a type that torch lacks."""
        try:
            found: Tensor = self._file.get_tensor(key)
        except (KeyError, safetensors.SafetensorError) as error:
            raise DataError(f"{self.path}: {key}: cannot be read ({error})") from error
        return found

    def tensor(self, key: str) -> Tensor:
        """A LoRA matrix, float32; DataError if it is not of finite floating-point numbers."""
        found = self.raw(key)
        if found.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise DataError(f"{self.path}: {key}: {found.dtype}, expected float32, float16 or bfloat16")
        found = found.float()
        if not torch.isfinite(found).all():
            raise DataError(f"{self.path}: {key}: numbers that are not finite")
        return found

    def factors(self, module: str) -> tuple[Tensor, Tensor] | None:
        """scale · B, float64 [m, r], and A, [r, n], of a module's weight change; None for a module without one."""
        pair = self.pairs.get(module)
        if pair is None:
            return None
        return pair.scale * self.tensor(pair.b).double().flatten(1), self.tensor(pair.a).double().flatten(1)


def _read_config(path: Path) -> dict[str, Any]:
    """`adapter_config.json`; DataError unless it is of a LoRA adapter that can be merged."""
    try:
        config = json.loads(path.read_text())
        if config["peft_type"] != "LORA":
            raise DataError(f"{path}: peft_type {config['peft_type']}, expected LORA")
        _check_numbers(config)
        patterns = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
        for pattern in patterns:
            for key, value in pattern.items():
                _check_pattern(key)
                _check_numbers({"r": value, "lora_alpha": value})
        for key in ("base_model_name_or_path", "revision"):
            if not isinstance(text := config.get(key) or "", str) or not text.isprintable():
                raise ValueError(f"{key} {text!r}, expected printable text")
    except DataError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, re.error
    ) as error:  # fmt: skip
        raise DataError(
            f"{path}: no readable config of a PEFT LoRA adapter ({type(error).__name__}: {error})"
        ) from error
    if config.get("bias", "none") != "none":
        raise DataError(f"{path}: bias {config['bias']!r}: biases of the base model that were trained cannot be merged")
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in _STARTS_AT_THE_BASE:
        raise DataError(
            f"{path}: init_lora_weights {init!r} takes part of the base model's weights, so that B · A is no change of "
            "them; save the adapter as plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    strange = sorted(
        key for key, value in config.items() if key not in _KNOWN and value not in (None, False, [], {}, "")
    )
    if strange:
        raise DataError(
            f"{path}: {', '.join(strange)}: the weight change is not scale · B · A, which is all that is merged"
        )
    return config


def _check_pattern(key: str) -> None:
    """A regular expression that a stranger wrote: one that may take for ever is refused."""
    re.compile(key)
    if re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+{]", key)) > MAX_REPEATS:
        raise ValueError(f"pattern {key[:80]!r}, expected no repeated group, and at most {MAX_REPEATS} repeats")


def _check_numbers(config: dict[str, Any]) -> None:
    for key in ("r", "lora_alpha"):
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            raise ValueError(f"{key} {str(value)[:20]}, expected a number, at most {MAX_NUMBER:g}")
    if config["r"] < 1:
        raise ValueError(f"r {config['r']}, expected at least 1")


def require_one_base(adapters: Sequence[Adapter]) -> None:
    """DataError unless all adapters state the same base model and orientation of its weights."""
    first = adapters[0]
    for key in ("base_model_name_or_path", "revision", "fan_in_fan_out"):
        for other in adapters[1:]:
            mine, theirs = first.config.get(key) or None, other.config.get(key) or None
            if mine != theirs:
                raise DataError(
                    f"{other.folder / CONFIG}: {key} {theirs!r}, but {mine!r} in {first.folder}; "
                    "expected adapters of one base"
                )
