"""The round loop: sample, send, fold in each reply as it comes, aggregate, evaluate, record, save."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from matu.config import DefenceConfig, WireConfig, drawn
from matu.errors import DataError, DivergedError, MatuError, RangeError
from matu.federation.checkpoint import Progress, Totals, count_bytes
from matu.federation.defence import Guard
from matu.federation.transport import Failure, Questions, Transport
from matu.methods import Method, Round, State
from matu.seeds import stream
from matu.wire import Codecs, Envelope, Header, Numbers, encode

LONGEST_REASON = 300
"""Characters of a reason that are kept: it may quote what somebody sent."""
SILENT_ROUNDS = 3
"""Rounds in a row that nobody answers, after which a run stops."""
SILENT_SITES = 5
"""Sites, or all that there are, that must have been asked in these rounds: one that never answers stops nobody."""


@dataclass(frozen=True)
class Federation:
    """What the server knows.

    Attributes
    ----------
    method, method_name
        What is sent and how it is aggregated.
    clients
        Tasks by client; of a deployed run, those that are there now.
    transport
        Carries the messages.
    run
        Which run this is: 32 hex digits.
    fingerprint
        Of the adapter, which all sites must share.
    class_lists
        By task, what tells its ordered class names (`class_list`); empty: none are sent.
    rounds, participation, seed
        How long, what share of the clients each round, and who.
    codecs
        How downlinks travel.
    defence
        Bounds on what one client can do.
    samples
        By client, as many training images a task as it said it has, which every update must repeat; None: not known.
    """

    method: Method
    method_name: str
    clients: Mapping[str, tuple[str, ...]]
    transport: Transport
    run: str
    fingerprint: str
    class_lists: Mapping[str, str]
    rounds: int
    participation: float
    seed: int
    codecs: Codecs = field(default_factory=Codecs)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    samples: Mapping[str, tuple[int, ...]] | None = None

    def sample(self, number: int) -> list[str]:
        """The clients of a round, distinct, in order; at least one."""
        names = sorted(self.clients)
        count = drawn(self.participation, len(names))
        chosen = stream(self.seed, "clients", number).choice(len(names), count, replace=False)
        return [names[i] for i in sorted(chosen)]

    def question(self, state: State, number: int, site: str, kind: str = "train") -> bytes:
        """The message to a site: of a round, or with kind "evaluate" to be measured."""
        tasks, lists = self.clients[site], self.class_lists
        header = Header(
            kind, self.run, number, self.method_name, site, self.fingerprint, tasks,
            class_lists=tuple(lists[task] for task in tasks) if lists else (),
        )  # fmt: skip
        return encode(header, self.method.downlink_parts(tasks), self.method.downlink(state, site, tasks), self.codecs)


def run_rounds(
    federation: Federation,
    progress: Progress,
    *,
    evaluate: Callable[[int, State], Mapping[str, Any] | None],
    record: Callable[[Mapping[str, Any]], None],
    save: Callable[[Progress], None],
    before: Callable[[int], None] = lambda _: None,
) -> Progress:
    """Go on from `progress` to the last round.

    Ahead of each round `before` may bring `federation.clients` up to date. After it, in this order: `evaluate` gives
    what to record of the new state (None: nothing), `record` gets one line, `save` the progress. What is recorded and
    not saved is to be dropped on resume.

    A round that nobody answers changes nothing, and the run goes on.

    Raises
    ------
    DivergedError
        If the numbers leave their range, here or at all sites asked in the last of several silent rounds.
    MatuError
        If nobody answers in several rounds in a row for other reasons.
    """
    mark = time.perf_counter()
    for number in range(progress.round + 1, federation.rounds + 1):
        before(number)
        try:
            progress, line = _one_round(federation, progress, number)
            began = time.perf_counter()
            line |= evaluate(number, progress.state) or {}
        except RangeError as error:
            raise DivergedError(f"round {number}: {error}; what was saved before it is whole") from error
        now = time.perf_counter()
        progress.totals.evaluation_s += now - began
        progress.totals.total_s += now - mark
        mark = now
        silent = progress.totals.silent_rounds
        asked = {site for back in range(silent) for site in federation.sample(number - back)}
        enough = min(SILENT_SITES, len(federation.clients))
        record(line)  # after which clients may be others
        save(progress)
        if silent >= SILENT_ROUNDS and len(asked) >= enough:
            failures: Mapping[str, str] = line["failures"]
            said = f"nobody answered in {silent} rounds in a row; the last reasons: {_by_reason(failures)}"
            if failures and all(reason.startswith("diverged:") for reason in failures.values()):
                raise DivergedError(said)
            raise MatuError(said)
    return progress


def _by_reason(failures: Mapping[str, str]) -> str:
    """Every reason once, after the clients it is of."""
    clients: dict[str, list[str]] = {}
    for client, reason in failures.items():
        clients.setdefault(reason, []).append(client)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in clients.items())


def _one_round(federation: Federation, progress: Progress, number: int) -> tuple[Progress, dict[str, Any]]:
    began = time.perf_counter()
    method, totals = federation.method, copy.deepcopy(progress.totals)
    sites = federation.sample(number)
    asked = _Asked(federation, progress.state, number, totals)
    guard = Guard(method, progress.state, federation.defence) if federation.defence != DefenceConfig() else None
    gathering = guard or method.begin_round(progress.state)
    answers = _Answers(federation, number, Questions(sites, asked), gathering, totals)
    answers.gather()
    state = gathering.finish()
    totals.messages_down += len(asked.bytes)
    totals.failures += len(answers.failures)
    totals.silent_rounds = 0 if answers.losses else totals.silent_rounds + 1
    away = answers.waiting - asked.seconds
    totals.training_s += away
    totals.aggregation_s += time.perf_counter() - began - away
    line = {
        "round": number, "clients": sites, "tasks": _tasks_of(federation, sites),
        "downlink_bytes": sum(asked.bytes.values()),
        "loss": math.fsum(answers.losses) / len(answers.losses) if answers.losses else None,
        "uplink_bytes": answers.uplink, "failures": answers.failures, "bounded": guard.bounded if guard else {},
        "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip
    return Progress(number, state, totals), line


class _Asked:
    """Makes the messages of a round; counts bytes and seconds of each site's once, however often it is made."""

    def __init__(self, federation: Federation, state: State, number: int, totals: Totals) -> None:
        self.federation, self.state, self.number, self.totals = federation, state, number, totals
        self.bytes: dict[str, int] = {}
        self.seconds = 0.0

    def __call__(self, site: str) -> bytes:
        began = time.perf_counter()
        payload = self.federation.question(self.state, self.number, site)
        if site not in self.bytes:  # its sender asks for it; later, who reads the answer
            self.bytes[site] = len(payload)
            parts = self.federation.method.downlink_parts(self.federation.clients[site])
            count_bytes(self.totals.downlink, Envelope(payload).sizes(parts))
            self.seconds += time.perf_counter() - began
        return payload


@dataclass
class _Answers:
    """A round's answers: what they are folded into, and what is known of them."""

    federation: Federation
    number: int
    asked: Mapping[str, bytes]
    into: Round | Guard
    totals: Totals
    failures: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    uplink: int = 0
    waiting: float = 0.0

    def gather(self) -> None:
        """Fold in each as it comes."""
        with contextlib.ExitStack() as at_the_end:
            replies = iter(self.federation.transport.exchange(self.asked))
            if isinstance(replies, Generator):  # interrupted here, what is under way there ends now
                at_the_end.callback(replies.close)
            while True:
                began = time.perf_counter()
                arrived = next(replies, None)
                self.waiting += time.perf_counter() - began
                if arrived is None:
                    return
                self._fold_in(*arrived)

    def _fold_in(self, site: str, reply: bytes | Failure) -> None:
        if isinstance(reply, Failure):
            self.failures[site] = f"{reply.code}: {reply.reason}"[:LONGEST_REASON]
            return
        self.uplink += len(reply)
        self.totals.messages_up += 1
        try:
            update, tensors, sizes = open_update(self.federation, self.number, site, reply, self.asked)
            self.into.add(site, update.tasks, update.samples, tensors)
        except ValueError as error:  # of a message: its sender is left out, the round goes on
            self.failures[site] = f"message: {error}"[:LONGEST_REASON]
            count_bytes(self.totals.uplink, {"refused": len(reply)})
            return
        count_bytes(self.totals.uplink, sizes)
        self.losses.append(update.metrics.get("loss", 0.0))
        self.totals.images += int(update.metrics.get("images", 0))


def _tasks_of(federation: Federation, sites: Iterable[str]) -> list[str]:
    """The tasks that some of the sites hold, each once."""
    return sorted({task for site in sites for task in federation.clients[site]})


def open_update(
    federation: Federation, number: int, site: str, reply: bytes, questions: Mapping[str, bytes]
) -> tuple[Header, dict[str, Tensor], dict[str, int]]:
    """A site's reply to its question, checked to be this site's for this round.

    Returns
    -------
    tuple
        Its header, its tensors, and its bytes by what they are for.

    Raises
    ------
    DataError
        For anything else; nothing in a reply is trusted.
    """
    envelope, method, tasks = Envelope(reply), federation.method, federation.clients[site]
    update = envelope.header
    expected = {
        "kind": "update", "run": federation.run, "method": federation.method_name, "round": number, "site": site,
        "fingerprint": federation.fingerprint, "tasks": tasks,
    }  # fmt: skip
    for name, value in expected.items():
        if getattr(update, name) != value:
            raise DataError(f"{name} {getattr(update, name)!r}, expected {value!r}")
    if update.metrics.get("images", 0) < 0:
        raise DataError(f"metrics: {update.metrics['images']:.6g} images, expected 0 or more")
    if not update.samples:
        raise DataError(f"no sample counts, expected one for each of {len(tasks)} tasks")
    if federation.samples is not None and update.samples != federation.samples[site]:
        raise DataError(f"samples {update.samples[:9]}, it said it has {federation.samples[site][:9]}")
    parts, held = method.uplink_parts(tasks), None
    if envelope.needs_held(parts):  # as the site holds it: changes are counted from it
        held = Envelope(questions[site]).tensors(method.downlink_parts(tasks))
    return update, envelope.tensors(parts, held), envelope.sizes(parts)


def codecs_of(config: WireConfig) -> tuple[Codecs, Codecs]:
    """How uplinks and downlinks travel."""
    up = Codecs(
        Numbers(config.uplink, config.uplink_change), Numbers(config.uplink_heads, config.uplink_change),
        config.coded_masks,
    )  # fmt: skip
    return up, Codecs(Numbers(config.downlink), Numbers(config.downlink_heads), config.coded_masks)
