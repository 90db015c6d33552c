"""A site's resident process: bytes through a socket, and no reason of a failure to the server."""

from __future__ import annotations

import contextlib
import os
import threading
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from matu.config import RunConfig
from matu.errors import DataError
from matu.federation.agent import Agent
from matu.federation.flower.resident import Caller, resident
from matu.roots import Roots


class Echo:
    """Says what it was asked; fails where a plan asks for it."""

    made = 0

    def __init__(self) -> None:
        Echo.made += 1

    def ask(self, question: str, plan: bytes, message: bytes) -> bytes:
        if plan == b"data":
            raise DataError("/wards/7/patient-12.png cannot be decoded")
        if plan == b"bug":
            raise KeyError("patient-12")
        return question.encode() + plan + message[::-1]


def test_one_agent_answers_every_caller_with_the_bytes_it_gives() -> None:
    Echo.made = 0
    big = os.urandom(3 << 20)
    with resident(Echo, [].append) as place:
        assert Caller(place)("hello", b"plan", b"") == b"helloplan"
        assert Caller(place)("train", b"", big) == b"train" + big[::-1]
    assert Echo.made == 1


@pytest.mark.parametrize(("plan", "kind"), [(b"data", "DataError"), (b"bug", "KeyError")])
def test_the_site_hears_why_and_the_server_only_that(plan: bytes, kind: str) -> None:
    said: list[str] = []
    with resident(Echo, said.append) as place:
        with pytest.raises(DataError) as told:
            Caller(place)("train", plan, b"")
        assert Caller(place)("train", b"", b"ab") == b"trainba", "it goes on"
    assert "patient-12" in said[0]
    assert kind in str(told.value)
    assert "patient" not in str(told.value)


def test_who_hangs_up_disturbs_nobody() -> None:
    with resident(Echo, [].append) as place:
        with Client(place, "AF_UNIX") as line:
            line.send_bytes(b"train")
        assert Caller(place)("hello", b"", b"") == b"hello"


def test_a_question_that_is_none_of_ours_calls_nothing(tmp_path: Path) -> None:
    agent = Agent("north", RunConfig(), Roots(None, None, tmp_path), tmp_path / "north")
    for question in ("__init__", "_site", "_prepare", "hello ", ""):
        with pytest.raises(DataError, match="expected hello, train, evaluate or finish"):
            agent.ask(question, b"", b"")


def test_other_accounts_cannot_ask_and_a_site_that_is_gone_is_told(tmp_path: Path) -> None:
    with resident(Echo, [].append) as place:
        assert Path(place).parent.stat().st_mode & 0o077 == 0
    with pytest.raises(DataError, match="the site's process is gone"):
        Caller(place)("hello", b"", b"")


def test_a_refusal_is_told_without_an_agent() -> None:
    said: list[str] = []
    Echo.made = 0
    with resident(Echo, said.append) as place:
        Caller(place)("refused", b"", b"nobody knows \x1b[31myou")
    assert said == ["refused by the server: nobody knows  [31myou"]
    assert Echo.made == 0


def test_its_thread_ends_with_the_block_whatever_it_was_doing() -> None:
    """One that went on would take the interpreter from everything else in the process."""
    ready, go_on = threading.Event(), threading.Event()

    class Slow(Echo):
        def ask(self, question: str, plan: bytes, message: bytes) -> bytes:
            ready.set()
            go_on.wait(60)
            return plan

    def ask(place: str) -> None:
        with contextlib.suppress(DataError):
            Caller(place)("hello", b"", b"")

    for agent_of in (Echo, Slow):
        before = set(threading.enumerate())  # those of other tests may be about to end
        with resident(agent_of, [].append) as place:
            (thread,) = [t for t in set(threading.enumerate()) - before if t.name == "resident"]
            if agent_of is Slow:
                threading.Thread(target=ask, args=(place,), daemon=True).start()
                assert ready.wait(60)
        go_on.set()
        thread.join(10)
        assert not thread.is_alive()


def test_an_agent_that_cannot_be_made_is_tried_again() -> None:
    attempts: list[int] = []

    def agent_of() -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise DataError("the disk is away")
        return Echo()

    with resident(agent_of, [].append) as place:
        with pytest.raises(DataError, match="DataError"):
            Caller(place)("hello", b"", b"")
        assert Caller(place)("hello", b"x", b"") == b"hellox"
