"""Every hostile message of attacks/ is refused with its reason, and the round goes on without it."""

import importlib.util
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest

from matu.config import RunConfig
from matu.errors import DataError
from matu.federation.rounds import Federation, open_update
from matu.methods.matu import Matu
from matu.wire import Codecs, Header, encode
from world import tiny_problem

FOLDER = Path(__file__).parent / "attacks"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("attacks_make", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MAKE = load(FOLDER / "make.py")
TASKS = ("a", "b")
METHOD = Matu(tiny_problem({"a": 2, "b": 3}, dim=MAKE.D, features=MAKE.FEATURES), RunConfig())
FEDERATION = Federation(
    METHOD, "matu", {"north": TASKS, "south": TASKS}, None, "ab" * 16, "cd" * 32, {"a": "2:x", "b": "3:y"},  # type: ignore[arg-type]
    rounds=9, participation=1.0, seed=0,
)  # fmt: skip
REQUEST = encode(
    Header("train", "ab" * 16, 7, "matu", "north", "cd" * 32, TASKS),
    METHOD.downlink_parts(TASKS), METHOD.downlink({}, "north", TASKS), Codecs(),
)  # fmt: skip
LIMIT = 1 << 20
"""Bytes that opening any of these may take at a time: none holds more than 3 kB of numbers."""


def test_the_folder_holds_what_was_built() -> None:
    assert {path.stem: path.read_bytes() for path in FOLDER.glob("*.bin")} == {
        name: data for name, (data, _) in MAKE.ATTACKS.items()
    }


@pytest.mark.parametrize("name", MAKE.ATTACKS)
def test_a_hostile_message_is_refused(name: str) -> None:
    payload, said = (FOLDER / f"{name}.bin").read_bytes(), MAKE.ATTACKS[name][1]
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=said):
            open_update(FEDERATION, 7, "north", payload, {"north": REQUEST})
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_the_message_that_they_are_made_from_is_taken() -> None:
    update, tensors, sizes = open_update(FEDERATION, 7, "north", MAKE.message(), {"north": REQUEST})
    assert update.samples == (5, 6)
    assert tensors["masks"].all()
    assert sum(sizes.values()) == len(MAKE.message())
