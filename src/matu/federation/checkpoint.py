"""The state of a run on disk after each round: whole, or the round before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from matu.errors import ConfigError, DataError
from matu.files import finish_before_interrupt, whole_or_none, write_atomic
from matu.methods import State

FORMAT = 4


@dataclass
class Totals:
    """Sums over the rounds so far.

    `uplink` and `downlink` are bytes by what they were for; `silent_rounds` counts the latest rounds in a row that
    nobody answered.
    """

    uplink: dict[str, int] = field(default_factory=dict)
    downlink: dict[str, int] = field(default_factory=dict)
    messages_up: int = 0
    messages_down: int = 0
    failures: int = 0
    silent_rounds: int = 0
    images: int = 0
    total_s: float = 0.0
    training_s: float = 0.0
    aggregation_s: float = 0.0
    evaluation_s: float = 0.0


def count_bytes(into: dict[str, int], sizes: Mapping[str, int]) -> None:
    """Add bytes by what they were for."""
    for share, count in sizes.items():
        into[share] = into.get(share, 0) + count


@dataclass
class Progress:
    """How far a run has come: everything the next round depends on.

    Attributes
    ----------
    round
        Rounds done.
    state
        The server's.
    totals
        Of the rounds done.
    memories
        By site, what the method keeps there (where the sites live in this process).
    """

    round: int
    state: State
    totals: Totals = field(default_factory=Totals)
    memories: Mapping[str, State] = field(default_factory=dict)


def save_checkpoint(folder: Path, progress: Progress, identity: str) -> None:
    """Write the state, then the pointer to it, then drop older states: a kill between any two loses nothing.

    `identity` tells the run (its configuration, data and backbone) from others.
    """
    state = f"state-{progress.round:06d}.safetensors"
    tensors = {f"server|{name}": tensor for name, tensor in progress.state.items()}
    for site, memory in progress.memories.items():
        tensors |= {f"site|{site}|{name}": tensor for name, tensor in memory.items()}
    with finish_before_interrupt():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_or_none(folder / state) as part:
            save_file(tensors, part)
            digest = _digest(part)
        note = {
            "format": FORMAT,
            "run": identity,
            "round": progress.round,
            "state": state,
            "sha256": digest,
            "totals": asdict(progress.totals),
        }
        write_atomic(folder / "checkpoint.json", json.dumps(note, indent=1).encode())
        for old in (*folder.glob("state-*.safetensors"), *folder.glob(".*")):  # hidden: of a kill in a save
            if old.name != state:
                old.unlink()


def load_checkpoint(folder: Path, identity: str) -> Progress | None:
    """The progress in a folder, or None where no round was finished.

    Raises
    ------
    ConfigError
        If it belongs to another run: another configuration, other data, another backbone.
    DataError
        If the state is missing or not the one that was written.
    """
    pointer = folder / "checkpoint.json"
    if not pointer.is_file():
        return None
    try:
        note = json.loads(pointer.read_text())
        if note["format"] != FORMAT:
            raise DataError(f"{pointer}: format {note['format']}, this version of matu reads {FORMAT}")
        if note["run"] != identity:
            raise ConfigError(
                f"{pointer}: the checkpoint was made with another configuration (config.toml), other data, another "
                "backbone or another version of the method's file; restore what it was made with, or start a new run"
            )
        state = folder / Path(note["state"]).name
        if _digest(state) != note["sha256"]:
            raise DataError(f"{state}: not the bytes that were saved; the file is damaged")
        return _restored(note["round"], load_file(state), Totals(**note["totals"]))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, (ConfigError, DataError)):
            raise
        raise DataError(f"{pointer}: the checkpoint cannot be read ({error})") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _restored(number: int, tensors: Mapping[str, Tensor], totals: Totals) -> Progress:
    state: dict[str, Tensor] = {}
    memories: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition("|")
        if owner == "server":
            state[rest] = tensor
        else:
            site, _, inner = rest.partition("|")
            memories.setdefault(site, {})[inner] = tensor
    return Progress(number, state, totals, memories)
