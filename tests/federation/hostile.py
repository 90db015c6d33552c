"""A site that lies, another lie each round: `python hostile.py site --config FILE` runs it over Flower."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import matu.federation.agent
from matu.federation.agent import Agent
from matu.wire import Codecs, Envelope, encode


@dataclass
class Told:
    """What a liar works with: the honest update, opened, and the round's message."""

    reply: bytes
    parts: Any
    tensors: Any

    @property
    def body(self) -> bytes:
        return self.reply[:-16]

    def again(self, **changes: Any) -> bytes:
        return encode(replace(Envelope(self.reply).header, **changes), self.parts, self.tensors, Codecs())


def signed(body: bytes) -> bytes:
    """A checksum that fits."""
    return body + hashlib.blake2b(body, digest_size=16).digest()


def extra_task(told: Told) -> bytes:
    header = Envelope(told.reply).header
    return told.again(tasks=(*header.tasks, "middle"), samples=(*header.samples, 10))


LIES: dict[str, Callable[[Told], bytes]] = {
    "honest, to have something to replay": lambda told: told.reply,
    "replayed": lambda told: told.reply,  # replaced by the first
    "cut off": lambda told: told.reply[: len(told.reply) // 2],
    "cut off, checksum made to fit": lambda told: signed(told.body[:-100]),
    "8 MiB too long": lambda told: signed(told.body + bytes(8 << 20)),
    "a part that says it has 4 GiB": lambda told: signed(told.body[:-100] + struct.pack("<I", 0xFFFFFFFF) * 25),
    "parts in another order": lambda told: encode(
        Envelope(told.reply).header, (told.parts[-1], *told.parts[:-1]), told.tensors, Codecs()
    ),
    "not finite": lambda told: signed(told.again()[:-20] + struct.pack("<f", float("nan"))),
    "a JSON text": lambda told: json.dumps({"vector": [1.0]}).encode(),
    "empty": lambda told: b"",
    "a thousand times the samples": lambda told: told.again(
        samples=tuple(1000 * count for count in Envelope(told.reply).header.samples)
    ),
    "a task more": extra_task,
    "in the name of another site": lambda told: told.again(site="north"),
    "of the next round": lambda told: told.again(round=Envelope(told.reply).header.round + 1),
    "as if it were the server's": lambda told: told.again(kind="train", samples=(), metrics={}),
}
"""By name, what is sent in the rounds 1, 2, ..."""


class Hostile(Agent):
    """Tells the lie of each round, and more right labels than it has images."""

    first = b""

    def train(self, plan: bytes, message: bytes) -> bytes:
        reply = super().train(plan, message)
        number, tasks = Envelope(message).header.round, Envelope(message).header.tasks
        method = self._prepare(plan)[2]
        held = Envelope(message).tensors(method.downlink_parts(tasks))
        parts = method.uplink_parts(tasks)
        name = list(LIES)[number - 1]
        if name == "replayed":
            return Hostile.first
        Hostile.first = Hostile.first or reply
        return LIES[name](Told(reply, parts, Envelope(reply).tensors(parts, held)))

    def finish(self, plan: bytes, message: bytes) -> bytes:
        score = json.loads(super().finish(plan, message))
        return json.dumps(score | {"correct": dict.fromkeys(score["correct"], 1 << 20)}).encode()


if __name__ == "__main__":
    matu.federation.agent.Agent = Hostile
    from matu.cli import main

    main()
