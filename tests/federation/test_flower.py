"""Rounds over Flower's messages, without its processes: the same numbers, and every way to fail."""

import json
import time
from collections.abc import Collection
from pathlib import Path
from threading import Event

import httpx
import pytest
from flower_grid import LocalGrid, Node, app_node
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hostile import LIES, Hostile
from remote import HOLDS, House, run_config

from matu.errors import DataError
from matu.federation.agent import Plan
from matu.federation.flower import records as records_module
from matu.federation.flower.node import client_app
from matu.federation.flower.records import payload_of, plan_of, reply, request
from matu.federation.flower.remote import FlowerRemote
from matu.federation.transport import Failure, Questions
from matu.wire import Envelope
from playing import equal

IDS = {"east": (1 << 63) + 5, "north": 17, "south": (1 << 64) - 2}
"""Beyond what a float, or a signed number, can hold."""


def grid_of(house: House) -> LocalGrid:
    return LocalGrid({
        IDS[name]: app_node(client_app(lambda _, name=name: house.agent(name).ask), IDS[name])
        for name in house.holds
    })  # fmt: skip


def over(grid: LocalGrid, house: House, **changes: object) -> FlowerRemote:
    return FlowerRemote(grid, Plan(house.config).encode(), poll_s=0.01, **changes)


@pytest.mark.parametrize("method", ["matu", "matu_plus", "fedper", "mat_fl"])
def test_the_numbers_are_those_without_flower(tiny_vit: Path, tiny_data: Path, tmp_path: Path, method: str) -> None:
    plain = House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "plain")
    expected = plain.server(plain.nodes(), []).rounds()
    house = House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "flower")
    grid = grid_of(house)
    server = house.server(over(grid, house), [])
    found = server.rounds()
    assert equal(found.state, expected.state)
    assert found.totals.uplink == expected.totals.uplink
    assert [kind for kind, _ in grid.log].count("query") == 3, "a site is asked who it is once"
    assert set(server.measure(found, "finish")) == set(HOLDS)
    assert grid.log[-1][0] == "evaluate.finish"
    assert all((tmp_path / "flower" / site / "artifact/artifact.json").is_file() for site in HOLDS)


def test_a_site_that_lies_changes_nothing_but_that_it_is_left_out(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """East lies in every round but the first; the others end as if it had been away since."""
    config = run_config(tiny_vit, method="matu", participation=1.0, rounds=len(LIES))
    house = House(config, tiny_data, tmp_path / "lies")
    grid = grid_of(house)
    liar = Hostile("east", house.agent("east").own, house.agent("east").roots, tmp_path / "lies" / "east")
    grid.nodes[IDS["east"]] = app_node(client_app(lambda _: liar.ask), IDS["east"])
    said: list[str] = []
    server = house.server(over(grid, house), said, admitted={name: frozenset(held) for name, held in HOLDS.items()})
    found = server.rounds()
    plain = House(config, tiny_data, tmp_path / "plain")
    nodes = plain.nodes()
    nodes.meddle = lambda question, site, reply: (
        Failure("late", "") if question == "train" and site == "east" and Envelope(reply).header.round > 1 else reply
    )
    expected = plain.server(nodes, []).rounds()
    assert equal(found.state, expected.state)
    lines = [json.loads(line) for line in (tmp_path / "lies/server/metrics.jsonl").read_text().splitlines()]
    assert [list(line["failures"]) for line in lines] == [[], *[["east"]] * (len(LIES) - 1)]
    reasons = dict(zip(LIES, (line["failures"].get("east", "") for line in lines), strict=True))
    for lie, reason in {
        "replayed": "round 1, expected 2", "cut off": "checksum", "8 MiB too long": "too many",
        "a part that says it has 4 GiB": "bytes", "parts in another order": "", "not finite": "finite",
        "a JSON text": "checksum", "empty": "checksum", "a thousand times the samples": "samples",
        "a task more": "tasks", "in the name of another site": "site 'north'", "of the next round": "round 15",
        "as if it were the server's": "kind 'train'",
    }.items():  # fmt: skip
        assert reason in reasons[lie], (lie, reasons[lie])
        assert any(reasons[lie] in line for line in said), "the log says what it did"
    scores = server.measure(found, "finish")
    assert set(scores) == {"north", "south"}


def echo(message: Message) -> Message:
    return reply(payload_of(message) + b"!", message)


def named(nodes: dict[str, Node], **changes: object) -> tuple[FlowerRemote, LocalGrid]:
    """A remote whose nodes have been admitted under these names."""
    ids = {name: 10 + i for i, name in enumerate(nodes)}
    grid = LocalGrid({ids[name]: node for name, node in nodes.items()})
    remote = FlowerRemote(grid, b"plan", poll_s=0.01, **changes)
    remote.names = {node: name for name, node in ids.items()}
    return remote, grid


def test_replies_are_told_apart_by_the_question_and_not_by_who_says_he_sent_them() -> None:
    remote, grid = named({"a": echo, "b": echo, "c": echo})
    grid.lost = {11}  # Flower's own errors name node 1 as their sender
    found = dict(remote.ask("train", {"a": b"1", "b": b"2", "c": b"3"}))
    assert found == {"a": b"1!", "b": Failure("gone", "Node unavailable"), "c": b"3!"}


def test_a_late_site_is_left_out_once_enough_have_answered() -> None:
    remote, _ = named({"a": echo, "b": lambda _: None, "c": echo}, min_sites=2, deadline_s=0.2)
    began = time.monotonic()
    found = dict(remote.ask("train", dict.fromkeys("abc", b"")))
    assert 0.2 <= time.monotonic() - began < 2
    assert found == {"a": b"!", "b": Failure("late", "no answer in 0.2 s"), "c": b"!"}


def test_too_few_answers_are_waited_for_beyond_the_deadline() -> None:
    began = time.monotonic()

    def slow(message: Message) -> Message | None:
        return echo(message) if time.monotonic() - began > 0.5 else None

    remote, _ = named({"a": echo, "b": slow, "c": lambda _: None}, min_sites=2, deadline_s=0.1)
    found = dict(remote.ask("train", dict.fromkeys("abc", b"")))
    assert time.monotonic() - began >= 0.5
    assert found["b"] == b"!"
    assert isinstance(found["c"], Failure)


def test_a_question_ends_in_the_end_however_few_answer() -> None:
    """Fewer may be asked than min_sites says, and one of them may be silent on purpose."""
    remote, _ = named({"a": echo, "b": lambda _: None}, min_sites=3, deadline_s=0.05)
    began = time.monotonic()
    found = dict(remote.ask("train", dict.fromkeys("ab", b"")))
    assert 0.5 <= time.monotonic() - began < 3
    assert found == {"a": b"!", "b": Failure("late", "no answer in 0.5 s")}


def test_a_message_that_is_announced_and_never_sent_holds_nobody_up() -> None:
    held = Event()

    def withheld(_: Message) -> None:
        held.wait(30)

    remote, _ = named({"a": withheld, "b": echo}, min_sites=1, deadline_s=0.3)
    began = time.monotonic()
    found = dict(remote.ask("train", dict.fromkeys("ab", b"")))
    assert time.monotonic() - began < 5
    assert found == {"b": b"!", "a": Failure("late", "no answer in 0.3 s")}
    held.set()


@pytest.mark.parametrize("raised", [KeyError("c" * 64), TypeError("'int' object is not iterable")])
def test_what_flower_cannot_unpack_is_its_senders_failure_alone(raised: Exception) -> None:
    def nonsense(_: Message) -> Message:
        raise raised

    remote, _ = named({"a": nonsense, "b": echo})
    found = dict(remote.ask("train", dict.fromkeys("ab", b"")))
    assert found["b"] == b"!"
    assert found["a"].code == "message"
    assert f"({type(raised).__name__}: " in found["a"].reason


def test_a_reply_without_what_is_expected_in_it_is_a_failure() -> None:
    remote, _ = named({"a": lambda message: Message(RecordDict(), reply_to=message), "b": echo})
    found = dict(remote.ask("train", dict.fromkeys("ab", b"")))
    assert (found["a"].code, found["b"]) == ("message", b"!")


def test_a_superlink_that_is_gone_is_not_the_nodes_failure() -> None:
    def broken(_: Message) -> Message:
        raise httpx.ConnectError("connection refused")

    remote, _ = named({"a": broken})
    with pytest.raises(httpx.ConnectError):
        dict(remote.ask("train", {"a": b""}))


def test_reasons_of_strangers_have_no_lines_and_no_escapes() -> None:
    from flwr.app import Error

    remote, _ = named({"a": lambda message: Message(Error(0, "\x1b[2Jx\nround 2/3: evil answered"), reply_to=message)})
    assert dict(remote.ask("train", {"a": b""})) == {"a": Failure("flower", " [2Jx round 2/3: evil answered")}


def test_all_answers_end_a_question_at_once() -> None:
    remote, _ = named({"a": echo}, min_sites=1, deadline_s=60)
    began = time.monotonic()
    assert dict(remote.ask("train", {"a": b""})) == {"a": b"!"}
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("code", "expected"), [(2, "site"), (3, "gone"), (5, "gone"), (8, "killed"), (0, "flower")])
def test_every_code_of_flower_has_a_name(code: int, expected: str) -> None:
    from flwr.app import Error

    remote, _ = named({"a": lambda message: Message(Error(code, "why"), reply_to=message)})
    assert dict(remote.ask("train", {"a": b""})) == {"a": Failure(expected, "why")}


def test_who_is_not_there_fails_at_once() -> None:
    remote, grid = named({"a": echo, "b": echo})
    del grid.nodes[11]
    found = dict(remote.ask("train", {"a": b"", "b": b"", "z": b""}))
    assert found == {
        "a": b"!", "b": Failure("gone", "Flower took no message for its node"), "z": Failure("gone", "not there"),
    }  # fmt: skip


def test_messages_are_made_and_sent_one_by_one_and_none_for_who_is_not_there() -> None:
    remote, grid = named({"a": echo, "b": echo})
    sent_before: dict[str, int] = {}

    def make(site: str) -> bytes:
        sent_before[site] = len(grid.log)
        return site.encode()

    assert dict(remote.ask("train", Questions("abz", make))) == {
        "a": b"a!",
        "b": b"b!",
        "z": Failure("gone", "not there"),
    }
    assert sent_before == {"a": 0, "b": 1}


def test_a_site_is_known_by_its_key_and_may_not_take_the_name_of_another(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    house, said = House(run_config(tiny_vit), tiny_data, tmp_path), []
    grid = grid_of(house)
    grid.keys = {IDS["north"]: b"n", IDS["south"]: b"e"}  # south's node has east's key, east's has one of nobody
    keys = {b"n": "north", b"e": "east"}
    server = house.server(over(grid, house, keys=keys), said, min_sites=1)
    server.gather(1)
    while len([line for line in said if "refused" in line]) < 2:
        server.gather(1)
    assert set(server.roster.clients) == {"north"}
    assert {line for line in said if "refused" in line} == {
        "site 'south' is refused: its key is that of site 'east'",
        "site 'east' is refused: its key is of no site of [sites]",
    }


@pytest.mark.parametrize("size", [0, 1, 10, 11, 25])
def test_a_large_message_travels_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(records_module, "PIECE_BYTES", 10)
    message = bytes(range(size))
    asked = request("train", b"", message, 1)
    assert len(asked.content.array_records["message"]) == max(1, -(-size // 10))
    assert payload_of(asked) == message
    moved = Message(
        RecordDict({"message": ArrayRecord(dict(reversed(asked.content["message"].items())))}), reply_to=asked
    )
    assert payload_of(moved) == message, "their names say their order"


def test_a_site_that_comes_back_has_another_node_and_the_same_name() -> None:
    told: list[tuple[str, bytes]] = []

    def node(message: Message) -> Message:
        told.append((message.metadata.message_type, payload_of(message)))
        return reply(b"north", message)

    grid = LocalGrid({1: node, 2: node})
    remote = FlowerRemote(grid, b"", poll_s=0.01)

    def admit(node: str, answer: bytes | Failure, owner: str | None, there: Collection[str]) -> str:
        assert isinstance(answer, bytes)
        assert owner is None, "nodes without keys"
        if answer.decode() in there:
            raise DataError("one is there")
        return answer.decode()

    assert remote.look(admit) == {"north"}
    held = next(iter(remote.names))
    assert remote.look(admit) == {"north"}
    assert [kind for kind, _ in grid.log] == ["query", "query", "query.refused"], "nobody is asked again"
    assert list(grid.pull_messages([f"message-{i}" for i in range(3)]))
    assert told[-1] == ("query.refused", b"one is there")
    del grid.nodes[held]
    assert remote.look(admit) == {"north"}
    assert set(remote.names) == set(grid.nodes)


def test_a_site_that_starts_anew_with_its_old_key_is_asked_anew(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """With keys a node is the same after a restart, which may fall between two looks."""
    house, said = House(run_config(tiny_vit), tiny_data, tmp_path), []
    grid = grid_of(house)
    apps = dict(grid.nodes)

    def broken(*_: object) -> Message:
        raise OSError("the disk is not mounted")

    def restart(site: str, node: Node) -> None:
        grid.nodes[IDS[site]], grid.started[IDS[site]] = node, f"start {len(said)}"

    grid.nodes[IDS["east"]] = app_node(broken, IDS["east"])
    grid.nodes[IDS["north"]] = lambda _: None  # it ends before it has said who it is
    server = house.server(over(grid, house), said, min_sites=1)
    server.gather(1)
    server.gather(2)
    assert set(server.roster.clients) == {"south"}
    assert any("the disk is not mounted" in line for line in said)
    restart("east", apps[IDS["east"]])
    restart("north", apps[IDS["north"]])
    server.gather(3)
    assert set(server.roster.clients) == {"south", "east", "north"}
    house.holds = {**HOLDS, "east": ("middle",)}
    server.gather(4)
    assert server.roster.clients["east"] == ("left", "right"), "a site is asked who it is once"
    restart("east", apps[IDS["east"]])
    server.gather(5)
    assert server.roster.clients["east"] == ("middle",)
    assert not any("there already" in line for line in said)


def test_a_site_that_was_slow_once_is_not_late_forever() -> None:
    stalled = Event()
    remote, grid = named({"a": echo, "b": lambda m: echo(m) if stalled.is_set() else None}, min_sites=1, deadline_s=0.1)
    assert dict(remote.ask("train", {"a": b"1", "b": b"1"}))["b"] == Failure("late", "no answer in 0.1 s")
    found = dict(remote.ask("train", {"a": b"2", "b": b"2"}))
    assert found == {"a": b"2!", "b": Failure("late", "still at an earlier question after 0.1 s")}
    assert [node for _, node in grid.log].count(11) == 1, "no second question waits behind the first"
    stalled.set()
    assert dict(remote.ask("train", {"a": b"3", "b": b"3"})) == {"a": b"3!", "b": b"3!"}


def test_who_was_late_and_starts_anew_owes_nothing() -> None:
    remote, grid = named({"a": echo, "b": lambda _: None}, min_sites=1, deadline_s=0.1)
    remote.look(lambda *_: "")
    dict(remote.ask("train", {"a": b"1", "b": b"1"}))
    # what the old process was asked, the new one never hears of
    grid.nodes[11] = lambda message: None if payload_of(message) == b"1" else echo(message)
    grid.started[11] = "later"
    assert remote.look(lambda node, *_: "ab"[int(node) - 10]) == {"a", "b"}
    assert dict(remote.ask("train", {"a": b"2", "b": b"2"})) == {"a": b"2!", "b": b"2!"}


def records(**changes: object) -> RecordDict:
    return RecordDict({"message": ArrayRecord({"0": Array("uint8", (2,), "raw", b"ab")})} | changes)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"message": b"ab"})}),
        RecordDict({"message": ArrayRecord({"other": Array("uint8", (2,), "raw", b"ab")})}),
        RecordDict({"message": ArrayRecord({"0": Array("uint8", (3,), "raw", b"ab")})}),
        RecordDict({"message": ArrayRecord({"0": Array("float32", (2,), "raw", b"ab")})}),
        RecordDict({"message": ArrayRecord({"0": Array("uint8", (2,), "numpy.ndarray", b"ab")})}),
        records(more=MetricRecord({"x": 1.0})),
        RecordDict({"message": ArrayRecord({name: Array("uint8", (2,), "raw", b"ab") for name in ("0", "more")})}),
    ],
)
def test_another_content_is_a_failure_of_its_sender(content: RecordDict) -> None:
    remote, _ = named({"a": lambda message: Message(content, reply_to=message), "b": echo})
    found = dict(remote.ask("train", {"a": b"", "b": b""}))
    assert isinstance(found["a"], Failure)
    assert found["a"].code == "message"
    assert found["b"] == b"!"


def test_a_request_holds_what_was_put_into_it() -> None:
    LocalGrid({})
    message = request("train", b"the plan", b"\x00\xffpayload", (1 << 64) - 1)
    assert plan_of(message) == b"the plan"
    assert payload_of(message) == b"\x00\xffpayload"
    assert message.metadata.dst_node_id == (1 << 64) - 1
    with pytest.raises(DataError, match="plan"):
        plan_of(reply(b"", message))
