import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from matu.config import RunConfig, WireConfig
from matu.errors import DataError, MatuError
from matu.federation.checkpoint import Progress
from matu.federation.rounds import Federation, codecs_of, run_rounds
from matu.federation.transport import Failure, InProcess
from matu.methods import Local
from matu.methods.matu import Matu
from matu.training import Weights
from matu.wire import Codecs, Envelope, Header, Kind, arrived, encode
from playing import one_by_one
from world import tiny_problem

RUN, PRINT = "ab" * 16, "cd" * 32
PROBLEM = tiny_problem({"a": 2, "b": 3}, dim=9, features=3)
METHOD = Matu(PROBLEM, RunConfig())
CLIENTS = {f"client-{n}": tasks for n, tasks in enumerate([("a", "b"), ("a",), ("b",), ("a", "b")])}


class FakeSite:
    """Answers like a site; its training adds noise that depends on round, site and task alone."""

    def __init__(self, name: str, **changes: object) -> None:
        self.name, self.changes = name, changes

    def __call__(self, payload: bytes) -> bytes:
        envelope = Envelope(payload)
        message, opened = envelope.header, envelope.tensors(METHOD.downlink_parts(envelope.header.tasks))

        def train(task: str, start: Weights) -> Weights:
            draw = torch.Generator().manual_seed(random.Random(f"{message.round} {self.name} {task}").getrandbits(60))
            return Weights(
                start.vector + torch.randn(start.vector.shape, generator=draw),
                start.head + torch.randn(start.head.shape, generator=draw),
            )

        local = Local(message.tasks, dict.fromkeys(message.tasks, 10), {}, one_by_one(train))
        tensors, _ = METHOD.local_update(local, opened)
        fields = {
            "method": "matu", "run": RUN, "kind": "update", "round": message.round, "site": self.name,
            "fingerprint": PRINT, "tasks": message.tasks, "samples": tuple(10 for _ in message.tasks),
            "metrics": {"loss": 1.0, "images": 10},
        } | self.changes  # fmt: skip
        parts = fields.pop("parts", METHOD.uplink_parts(message.tasks))
        sent = {part.name: tensors[part.name] for part in parts}
        return encode(Header(**fields), parts, sent, Codecs())  # type: ignore[arg-type]


class Shuffled:
    """A transport whose replies arrive in another order every time."""

    def __init__(self, inner: InProcess) -> None:
        self.inner = inner

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        replies = list(self.inner.exchange(payloads))
        random.shuffle(replies)
        return iter(replies)


def federation(sites: Mapping[str, object] | None = None, *, rounds: int = 3, participation: float = 1.0, **changes):
    handlers = {name: FakeSite(name) for name in CLIENTS} | dict(sites or {})
    options = {"transport": InProcess(handlers)} | changes
    return Federation(
        METHOD,
        "matu",
        CLIENTS,
        run=RUN,
        fingerprint=PRINT,
        class_lists={"a": "2:x", "b": "3:y"},
        rounds=rounds,
        participation=participation,
        seed=0,
        **options,
    )


def play(federation: Federation, start: Progress | None = None, until=None):
    lines: list[dict] = []
    saved: list[Progress] = []
    progress = run_rounds(
        federation, start or Progress(0, METHOD.start()),
        evaluate=lambda number, state: {"accuracy": number} if number == 2 else None,
        record=lines.append, save=saved.append,
    )  # fmt: skip
    return progress, lines, saved


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_state_does_not_depend_on_the_order_of_arrival() -> None:
    plain = play(federation())[0]
    for _ in range(3):
        inner = InProcess({name: FakeSite(name) for name in CLIENTS})
        assert same(play(federation(transport=Shuffled(inner)))[0].state, plain.state)


def test_what_is_under_way_ends_with_the_round_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    class Working(InProcess):
        def exchange(self, payloads):
            try:
                yield from super().exchange(payloads)
            finally:
                ended.append(True)

    class BrokenRound:
        def add(self, *_: object) -> None:
            raise RuntimeError("a bug in somebody's method")

    broken = federation(transport=Working({name: FakeSite(name) for name in CLIENTS}))
    monkeypatch.setattr(broken.method, "begin_round", lambda state: BrokenRound())
    with pytest.raises(RuntimeError, match="a bug") as kept:
        play(broken)
    assert ended == [True], "at once, though the error and its frames are kept"
    assert kept.value is not None


def test_going_on_from_any_round_gives_the_same_end() -> None:
    end, _, saved = play(federation(rounds=4))
    for reached in saved:
        assert same(play(federation(rounds=4), reached)[0].state, end.state)


def test_every_round_is_recorded_then_saved() -> None:
    progress, lines, saved = play(federation())
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert [p.round for p in saved] == [1, 2, 3]
    assert [("accuracy" in line) for line in lines] == [False, True, False]
    assert progress.totals.messages_up == progress.totals.messages_down == 12
    assert progress.totals.images == 120


def test_bytes_are_those_of_the_messages() -> None:
    sent, received = [], []

    class Counting(InProcess):
        def exchange(self, payloads):
            sent.extend(map(len, payloads.values()))
            for site, reply in super().exchange(payloads):
                received.append(len(reply))
                yield site, reply

    progress, lines, _ = play(federation(transport=Counting({name: FakeSite(name) for name in CLIENTS})))
    down, up = progress.totals.downlink, progress.totals.uplink
    assert sum(down.values()) == sum(sent) == sum(line["downlink_bytes"] for line in lines)
    assert sum(up.values()) == sum(received) == sum(line["uplink_bytes"] for line in lines)
    numbers = {kind: sum(p.size for tasks in CLIENTS.values() for p in METHOD.uplink_parts(tasks) if p.kind == kind)
               for kind in Kind}  # fmt: skip
    assert up["vectors"] == 3 * 4 * numbers[Kind.VECTOR]
    assert up["heads"] == 3 * 4 * numbers[Kind.HEAD]
    assert up["rescalers"] == 3 * 4 * numbers[Kind.RESCALERS]
    assert up["masks"] == 3 * 2 * -(-2 * 9 // 8)  # two clients of two tasks, packed
    assert up["header"] > 0


def test_a_message_that_nobody_is_sent_counts_no_bytes_and_one_made_twice_counts_once() -> None:
    class Without(InProcess):
        def exchange(self, payloads):
            yield "client-1", Failure("gone", "not there")
            there = {name: payloads[name] for name in payloads if name != "client-1"}
            assert there == {name: payloads[name] for name in there}, "made anew, of the same bytes"
            yield from super().exchange(there)

    progress, lines, _ = play(federation(transport=Without({name: FakeSite(name) for name in CLIENTS}), rounds=1))
    whole, all_lines, _ = play(federation(rounds=1))
    alone, alone_lines, _ = play(federation({n: broken for n in CLIENTS if n != "client-1"}, rounds=1))
    assert progress.totals.messages_down == 3
    assert sum(progress.totals.downlink.values()) == lines[0]["downlink_bytes"] < all_lines[0]["downlink_bytes"]
    assert whole.totals.messages_down == alone.totals.messages_down == 4, "who fails was asked"
    assert alone_lines[0]["downlink_bytes"] == all_lines[0]["downlink_bytes"]


def test_participation_draws_distinct_clients_anew_each_round() -> None:
    f = federation(participation=0.5)
    drawn = [f.sample(number) for number in range(1, 30)]
    assert all(len(set(names)) == 2 for names in drawn)
    assert {name for names in drawn for name in names} == set(CLIENTS)
    assert drawn == [f.sample(number) for number in range(1, 30)]
    assert federation(participation=0.01).sample(1)


def broken(payload: bytes) -> bytes:
    raise DataError("the disk of this site is gone")


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (broken, "site: the disk of this site is gone"),
        (lambda payload: b"garbage", "message: "),
        (FakeSite("client-2"), "site 'client-2', expected 'client-1'"),
        (FakeSite("client-1", round=7), "round 7"),
        (FakeSite("client-1", method="fedavg"), "method 'fedavg'"),
        (FakeSite("client-1", kind="train"), "kind 'train'"),
        (FakeSite("client-1", fingerprint="0" * 64), "fingerprint '0000"),
        (FakeSite("client-1", run="0" * 32), "run '0000"),
        (FakeSite("client-1", tasks=("b",), samples=(1,)), r"tasks \('b',\)"),
        (FakeSite("client-1", samples=()), "no sample counts, expected one for each of 1 tasks"),
        (FakeSite("client-1", parts=METHOD.uplink_parts(("a",))[:1]), "1 parts, expected 3: vector, rescalers, head/a"),
    ],
)
def test_a_site_that_fails_is_left_out_with_a_reason_and_the_round_goes_on(site, said: str) -> None:
    progress, lines, _ = play(federation({"client-1": site}, rounds=1))
    assert progress.totals.failures == 1
    assert list(lines[0]["failures"]) == ["client-1"]
    assert sum(progress.totals.uplink.values()) == lines[0]["uplink_bytes"]
    assert re.search(said, lines[0]["failures"]["client-1"])
    without = federation(rounds=1, transport=InProcess({n: FakeSite(n) for n in CLIENTS if n != "client-1"} | {
        "client-1": broken}))  # fmt: skip
    assert same(progress.state, play(without)[0].state)


def test_a_round_that_nobody_answers_changes_nothing_and_the_run_goes_on() -> None:
    deaf_in = {2}

    class Deaf(FakeSite):
        def __call__(self, payload: bytes) -> bytes:
            return broken(payload) if Envelope(payload).header.round in deaf_in else super().__call__(payload)

    _, lines, saved = play(federation({name: Deaf(name) for name in CLIENTS}))
    assert same(saved[0].state, saved[1].state)
    assert not same(saved[1].state, saved[2].state)
    assert [line["loss"] for line in lines] == [1.0, None, 1.0]
    assert [p.totals.silent_rounds for p in saved] == [0, 1, 0]


def test_a_run_that_nobody_answers_stops() -> None:
    with pytest.raises(MatuError, match="nobody answered in 3 rounds in a row") as stopped:
        play(federation(dict.fromkeys(CLIENTS, broken), rounds=9))
    assert str(stopped.value).count("the disk of this site is gone") == 1  # once for all who say so
    assert all(client in str(stopped.value) for client in CLIENTS)


def test_all_clients_may_leave_after_a_round() -> None:
    """As a server lets those go that sent what it refuses; others may be there for the next round."""
    run = federation(dict.fromkeys(CLIENTS, FakeSite("client-9", samples=(1,))), rounds=1)
    run = replace(run, clients=dict(run.clients))
    progress = run_rounds(
        run, Progress(0, METHOD.start()), evaluate=lambda *_: None, record=lambda _: run.clients.clear(),
        save=lambda _: None,
    )  # fmt: skip
    assert progress.totals.silent_rounds == 1


def extreme(vector: float, rescaler: float) -> FakeSite:
    """Sends numbers at the very limit in the first round, and honest ones later."""

    class Extreme(FakeSite):
        def __call__(self, payload: bytes) -> bytes:
            reply = super().__call__(payload)
            envelope = Envelope(reply)
            parts = METHOD.uplink_parts(envelope.header.tasks)
            if envelope.header.round > 1:
                return reply
            tensors = envelope.tensors(parts) | {"vector": torch.full((9,), vector)}
            tensors |= {"rescalers": torch.full((len(envelope.header.tasks),), rescaler)}
            return encode(envelope.header, parts, tensors, Codecs())

    return Extreme("client-1")


@pytest.mark.parametrize(("vector", "rescaler"), [(2.0**40, 1.0), (-(2.0**20), 2.0**20), (2.0**-140, 2.0**20)])
@pytest.mark.parametrize("wire", [WireConfig(), WireConfig.exact()], ids=["default", "exact"])
def test_a_message_at_the_limit_does_not_end_the_run(vector: float, rescaler: float, wire: WireConfig) -> None:
    down = codecs_of(wire)[1]
    progress, lines, _ = play(federation({"client-1": extreme(vector, rescaler)}, rounds=4, codecs=down))
    assert [line["failures"] for line in lines] == [{}] * 4
    for tasks in CLIENTS.values():
        arrived(METHOD.downlink_parts(tasks), METHOD.downlink(progress.state, "", tasks), down)


def test_losses_that_overflow_a_sum_are_refused() -> None:
    with pytest.raises(DataError, match="finite numbers up to"):
        FakeSite("client-1", metrics={"loss": 1.7e308})(_request())
    _, lines, _ = play(federation({"client-1": FakeSite("client-1", metrics={"images": -5.0})}, rounds=1))
    assert "-5 images, expected 0 or more" in lines[0]["failures"]["client-1"]


def _request() -> bytes:
    kept: list[bytes] = []

    class Keeping(InProcess):
        def exchange(self, payloads):
            kept.append(payloads["client-1"])
            yield from super().exchange(payloads)

    play(federation(rounds=1, transport=Keeping({name: FakeSite(name) for name in CLIENTS})))
    return kept[0]


def test_a_reason_is_cut_where_it_quotes_too_much() -> None:
    _, lines, _ = play(federation({"client-1": lambda _: broken_at_length()}, rounds=1))
    assert len(lines[0]["failures"]["client-1"]) == 300


def broken_at_length() -> bytes:
    raise DataError("long " * 1000)
