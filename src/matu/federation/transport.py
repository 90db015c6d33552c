"""How messages travel: a transport carries opaque bytes and knows nothing of what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from matu.errors import MatuError


@dataclass(frozen=True)
class Failure:
    """A site that did not answer.

    Attributes
    ----------
    code
        "site" (it raised an error) or "deadline" (it was too late).
    reason
        For people.
    """

    code: str
    reason: str


class Transport(Protocol):
    """Gives every named site its bytes and hands back replies as they arrive."""

    def exchange(
        self, payloads: Mapping[str, bytes], *, deadline_s: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply, each site once, in order of arrival."""


class InProcess:
    """Sites in this process, called one after another: no server, no ports.

    Parameters
    ----------
    sites
        By name, what answers a payload.
    """

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.sites = sites

    def exchange(
        self, payloads: Mapping[str, bytes], *, deadline_s: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        began = time.monotonic()
        for name, payload in payloads.items():
            if deadline_s is not None and time.monotonic() - began > deadline_s:
                yield name, Failure("deadline", f"its turn had not come after {deadline_s} s")
                continue
            try:
                reply: bytes | Failure = self.sites[name](payload)
            except MatuError as error:
                reply = Failure("site", str(error))
            yield name, reply
