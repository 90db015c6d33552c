"""Sites behind a Flower grid, known by the name they say and never by the id of their node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from matu.errors import DataError
from matu.federation.flower.records import payload_of, request
from matu.federation.server import Admit
from matu.federation.transport import Failure

QUESTIONS = {
    "hello": "query", "refused": "query.refused", "train": "train", "evaluate": "evaluate", "finish": "evaluate.finish",
}  # fmt: skip
"""Flower's type of message for each question of the server; "refused" is one that only tells."""
_RAISED = re.compile(r"<class '[^']*'>:<'(.*)'>", re.DOTALL)
"""How Flower writes what an app raised."""
LONGEST_REASON = 500
"""Bytes of a reason that a node is told."""
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
        `min_sites` have. 0: there is no deadline.
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

    def look(self, admit: Admit) -> set[str]:
        """Ask new nodes who they are, take in who has answered, tell the others why not; the sites that are there."""
        there = set(self.grid.get_node_ids())
        gone = (set(self.names) | self._refused) - there
        for node in gone:
            self.names.pop(node, None)
        if gone:  # a name may be free again
            self._refused.clear()
        asked = set(self._greeted.values())
        new = sorted(there - set(self.names) - self._refused - asked)
        self._greeted |= self._push("hello", dict.fromkeys(new, b""))
        for node, answer in self._replies(self._greeted):
            if node in there:
                try:
                    self.names[node] = admit(str(node), answer, self._owner(node))
                except DataError as error:
                    self._refused.add(node)
                    if not isinstance(answer, Failure):  # of a failure it has the reason itself
                        self._push("refused", {node: str(error).encode()[:LONGEST_REASON]})
        return set(self.names.values())

    def ask(self, question: str, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply as they arrive; sites that are late, or not there, fail."""
        nodes = {name: node for node, name in self.names.items()}
        for site in sorted(set(payloads) - set(nodes)):
            yield site, Failure("gone", "not there")
        asked = {node for site, node in nodes.items() if site in payloads}
        pending: dict[str, int] = {}
        for site in [site for site in payloads if site in nodes]:  # one by one: only one is in memory at a time
            pending |= self._push(question, {nodes[site]: payloads[site]})
        sites, answered, began = dict(self.names), 0, time.monotonic()
        for node in sorted(asked - set(pending.values())):
            yield sites[node], Failure("gone", "Flower took no message for its node")
        while pending:
            before = len(pending)
            for node, answer in self._replies(pending):
                answered += not isinstance(answer, Failure)
                yield sites[node], answer
            if self.deadline_s and answered >= self.min_sites and time.monotonic() - began >= self.deadline_s:
                break
            if len(pending) == before:
                time.sleep(self.poll_s)
        for node in sorted(pending.values()):
            yield sites[node], Failure("late", f"no answer in {self.deadline_s:g} s")

    def _owner(self, node: int) -> str | None:
        """The site whose key a node has; empty: nobody's."""
        if self.keys is None:
            return None
        found = [self.keys.get(one.public_key, "") for one in self.grid.get_nodes() if one.node_id == node]
        return found[0] if found else ""

    def forget(self, site: str) -> None:
        """The next `look` asks its node anew who it is."""
        self.names = {node: name for node, name in self.names.items() if name != site}

    def _push(self, question: str, payloads: Mapping[int, bytes]) -> dict[str, int]:
        """Send to nodes; message id -> node."""
        if not payloads:
            return {}
        kind = QUESTIONS[question]
        messages = [request(kind, self.plan, payload, node) for node, payload in payloads.items()]
        ids = list(self.grid.push_messages(messages))  # a list: the deployed grid goes through it twice
        return {one: node for one, node in zip(ids, payloads, strict=True) if one}

    def _replies(self, pending: dict[str, int]) -> Iterator[tuple[int, bytes | Failure]]:
        """What has arrived, taken out of `pending`. Flower's own errors name no sender: the question does."""
        messages = list(self.grid.pull_messages(list(pending))) if pending else []
        while messages:
            message = messages.pop(0)  # the list would keep it until all are read
            node, answer = pending.pop(message.metadata.reply_to_message_id, None), _answer(message)
            del message  # its pieces are in the answer
            if node is not None:
                yield node, answer


def _answer(message: Message) -> bytes | Failure:
    if message.has_error():
        reason = message.error.reason or f"code {message.error.code}"
        raised = _RAISED.fullmatch(reason)
        return Failure(_CODES.get(message.error.code, "flower"), raised[1] if raised else reason)
    try:
        return payload_of(message)
    except DataError as error:
        return Failure("message", str(error))
