"""Sites behind a Flower grid, known by the name they say and never by the id of their node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from matu.errors import DataError
from matu.federation.flower.records import payload_of, request
from matu.federation.server import Admit
from matu.federation.transport import Failure
from matu.words import printable

_RAISED = re.compile(r"<class '[^']*'>:<'(.*)'>", re.DOTALL)
"""How Flower writes what an app raised."""
LONGEST_REASON = 500
"""Bytes of a reason that a node is told."""
SLOW_S = 20.0
"""Seconds that a message which is being fetched keeps others from being fetched: a node may announce what it never
sends, and Flower waits for that for minutes."""
PATIENCE = 10
"""Deadlines after which a question ends however few have answered."""
_CODES = {2: "site", 3: "gone", 5: "gone", 8: "killed"}
"""Flower's error codes: the app raised; the message, or the node, is not there; its process ended."""


@dataclass
class FlowerRemote:
    """Questions to sites over Flower (`matu.federation.server.Remote`).

    Attributes
    ----------
    grid
        Flower's way to its nodes.
    plan
        Goes with every question.
    min_sites, deadline_s
        A question to several sites ends when all have answered, or, `deadline_s` after it was put, when at least
        `min_sites` of them have (all but those that fail, where fewer were asked), and at the latest `PATIENCE` times
        as late. 0: there is no deadline.
    poll_s
        Seconds between looks for replies.
    names
        Of the sites by node, as far as they are known.
    keys
        The site that each public key belongs to; None: nodes have none.
    """

    grid: Grid
    plan: bytes
    min_sites: int = 1
    deadline_s: float = 0.0
    poll_s: float = 0.2
    names: dict[int, str] = field(default_factory=dict)
    keys: Mapping[bytes, str] | None = None
    _refused: set[int] = field(default_factory=set)
    _greeted: dict[str, int] = field(default_factory=dict)
    """Hellos under way: message id -> node."""
    _owed: dict[str, int] = field(default_factory=dict)
    """Questions given up as late, which their nodes may still be at: message id -> node."""
    _since: dict[int, str] = field(default_factory=dict)
    """When each node that is there was started, in Flower's words."""
    _fetches: dict[str, Future[list[Message]]] = field(default_factory=dict)
    """Looks for replies that have not come back: message id -> what was found."""

    def look(self, admit: Admit) -> set[str]:
        """Ask new nodes who they are, take in who has answered, tell the others why not; the sites that are there."""
        nodes = {one.node_id: one for one in self.grid.get_nodes()}
        since = {node: one.last_activated_at for node, one in nodes.items()}
        gone = {node for node in self._since if since.get(node) != self._since[node]}  # also who has started anew
        self._since = since
        for node in gone:
            self.names.pop(node, None)
        for asked in (self._greeted, self._owed):
            for one in [one for one, node in asked.items() if node in gone]:
                del asked[one]
                self._fetches.pop(one, None)
        if gone:  # a name may be free again
            self._refused.clear()
        new = sorted(set(nodes) - set(self.names) - self._refused - set(self._greeted.values()))
        self._greeted |= self._push("hello", dict.fromkeys(new, b""))
        for node, answer in self._replies(self._greeted):
            if node in nodes:
                owner = None if self.keys is None else self.keys.get(nodes[node].public_key, "")
                try:
                    self.names[node] = admit(str(node), answer, owner, set(self.names.values()))
                except DataError as error:
                    self._refused.add(node)
                    if not isinstance(answer, Failure):  # of a failure it has the reason itself
                        self._push("refused", {node: str(error).encode()[:LONGEST_REASON]})
        return set(self.names.values())

    def ask(self, question: str, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply as they arrive; sites that are late, or not there, fail.

        Who still owes the answer to an earlier question is asked when it has come: nodes answer in order, and one that
        was slow once would be late forever.
        """
        sites, nodes = dict(self.names), {name: node for node, name in self.names.items()}
        for site in sorted(set(payloads) - set(nodes)):
            yield site, Failure("gone", "not there")
        waiting = [nodes[site] for site in payloads if site in nodes]
        pending: dict[str, int] = {}
        count, answered, failed, began = len(waiting), 0, 0, time.monotonic()
        late, limit = began + self.deadline_s if self.deadline_s else None, PATIENCE * self.deadline_s
        while waiting or pending:
            before = len(waiting), len(pending)
            for node in self._free(waiting, late):  # one by one: only one message is in memory at a time
                waiting.remove(node)
                pending |= (sent := self._push(question, {node: payloads[sites[node]]}))
                if not sent:
                    failed += 1
                    yield sites[node], Failure("gone", "Flower took no message for its node")
            for node, answer in self._replies(pending, late):
                failed += isinstance(answer, Failure)
                answered += not isinstance(answer, Failure)
                yield sites[node], answer
            if answered and answered >= min(self.min_sites, count - failed):
                limit = self.deadline_s
            if limit and time.monotonic() - began >= limit:
                break
            if (len(waiting), len(pending)) == before:
                time.sleep(self.poll_s)
        self._owed |= pending
        for node in sorted(pending.values()):
            yield sites[node], Failure("late", f"no answer in {limit:g} s")
        for node in waiting:
            yield sites[node], Failure("late", f"still at an earlier question after {limit:g} s")

    def _free(self, nodes: Iterable[int], late: float | None) -> list[int]:
        """The nodes that owe no answer; one that comes now is too late for its question."""
        for _ in self._replies(self._owed, late):
            pass
        return [node for node in nodes if node not in self._owed.values()]

    def forget(self, site: str) -> None:
        """The next `look` asks its node anew who it is."""
        self.names = {node: name for node, name in self.names.items() if name != site}

    def _push(self, question: str, payloads: Mapping[int, bytes]) -> dict[str, int]:
        """Send to nodes; message id -> node."""
        if not payloads:
            return {}
        messages = [request(question, self.plan, payload, node) for node, payload in payloads.items()]
        ids = list(self.grid.push_messages(messages))  # a list: the deployed grid goes through it twice
        return {one: node for one, node in zip(ids, payloads, strict=True) if one}

    def _replies(self, pending: dict[str, int], late: float | None = None) -> Iterator[tuple[int, bytes | Failure]]:
        """What has arrived, taken out of `pending`: question by question, so that one node's nonsense is its own.

        Flower's own errors name no sender, and what a reply says of itself is not asked: the question tells.
        """
        for one, node in list(pending.items()):
            answer = self._fetched(one, late)
            if answer is not None:
                del pending[one]
                yield node, answer

    def _fetched(self, one: str, late: float | None) -> bytes | Failure | None:
        """The answer to a question, None if it has not arrived. Waits for a fetch under way, but not for long."""
        fetch, wait = self._fetches.get(one), 0.0
        if fetch is None:
            fetch = self._fetches[one] = Future()
            # a daemon: nobody waits for one that hangs
            Thread(target=self._fetch, args=(one, fetch), name="fetch", daemon=True).start()
            wait = SLOW_S if late is None else min(SLOW_S, max(0.0, late - time.monotonic()))
        try:
            error = fetch.exception(wait)
        except TimeoutError:
            return None
        del self._fetches[one]
        if isinstance(error, httpx.TransportError):  # the SuperLink is away: not the node's fault
            raise error
        if error is not None:  # Flower unpacks what a stranger has packed
            return Failure("message", printable(f"its message cannot be read ({type(error).__name__}: {error})"))
        messages = fetch.result()
        return _answer(messages.pop()) if messages else None

    def _fetch(self, one: str, found: Future[list[Message]]) -> None:
        try:
            found.set_result(list(self.grid.pull_messages([one])))
        except BaseException as error:
            found.set_exception(error)


def _answer(message: Message) -> bytes | Failure:
    if message.has_error():
        reason = message.error.reason or f"code {message.error.code}"
        raised = _RAISED.fullmatch(reason)
        return Failure(_CODES.get(message.error.code, "flower"), printable(raised[1] if raised else reason))
    try:
        return payload_of(message)
    except DataError as error:
        return Failure("message", printable(str(error)))
    except Exception as error:  # of what a stranger has packed
        return Failure("message", printable(f"its message cannot be read ({type(error).__name__}: {error})"))
