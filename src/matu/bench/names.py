"""What methods and settings of a comparison are called, and which of its methods compete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "individual": "Individual", "local": "Local", "fedavg": "FedAvg", "per_task_fedavg": "Per-task FedAvg",
    "fedprox": "FedProx", "fedper": "FedPer", "mat_fl": "MaT-FL", "ntk_fedavg": "NTK-FedAvg",
    "task_arithmetic": "Task arithmetic", "ties": "TIES", "ffa_lora": "FFA-LoRA", "matu": "MaTU",
    "true_signs": "True signs", "matu_plus": "MaTU+",
}  # fmt: skip
REFERENCES = ("individual", "local")  # they send nothing, so they do not compete
_WAYS = ("uplink", "downlink", "uplink_heads", "downlink_heads")

Results = Mapping[str, Any]


def label(method: str) -> str:
    """A method's name as people write it, then its options; all its codecs as vectors/heads, up and down."""
    name, *options = method.split()
    if codecs := codecs_of(method):
        options = [word for word in options if word.partition("=")[0] not in codecs]
        for way, to in (("uplink", "up"), ("downlink", "down")):
            options.append(f"{codecs[way]}/{codecs[f'{way}_heads']} {to}")
    return LABELS.get(name, name) + (f" ({', '.join(map(_in_words, options))})" if options else "")


def _in_words(option: str) -> str:
    """`balanced=true` as "balanced", `unification=false` as "no unification"; any other as it is."""
    key, _, value = option.partition("=")
    return {"true": "", "false": "no "}[value] + key.replace("_", " ") if value in ("true", "false") else option


def codecs_of(method: str) -> dict[str, str]:
    """How a method's vectors and heads travel, if its options say it of all of them."""
    found = {key: value for key, _, value in (word.partition("=") for word in method.split()[1:]) if key in _WAYS}
    return found if len(found) == len(_WAYS) else {}


def is_reference(method: str) -> bool:
    """Whether the method is a bar to compare with, and not a competitor."""
    return method.split()[0] in REFERENCES


def same_seeds(results: Results, setting: str) -> bool:
    """Whether all that compete in a setting have the same seeds; means over different ones are no ranking."""
    found = results["summary"].get(setting, {})
    return len({tuple(found[m]["seeds"]) for m in found if not is_reference(m)}) < 2


def setting_label(results: Results, setting: str) -> str:
    """A setting's name, and what it differs in."""
    options = ", ".join(f"{key} = {value}" for key, value in results["settings"][setting].items())
    return f"{setting} ({options})" if options else setting
