"""How messages travel: a transport carries opaque bytes and knows nothing of what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from matu.errors import DivergedError, MatuError


@dataclass(frozen=True)
class Failure:
    """A site that did not answer.

    Attributes
    ----------
    code
        "site": it raised an error; "diverged": its numbers left their range; "gone": it is not there; "killed": its
        process ended; "late": it took too long; "message": its answer cannot be read; "flower": any other of Flower's
        errors.
    reason
        For people.
    """

    code: str
    reason: str


class Questions(Mapping[str, bytes]):
    """A message for each of some sites, made whenever it is asked for and never kept: all together may be large.

    Parameters
    ----------
    sites
        Whom there is a message for.
    make
        Makes the message of a site, of the same bytes each time.
    """

    def __init__(self, sites: Iterable[str], make: Callable[[str], bytes]) -> None:
        self._sites, self._make = dict.fromkeys(sites), make

    def __getitem__(self, site: str) -> bytes:
        if site not in self._sites:
            raise KeyError(site)
        return self._make(site)

    def __contains__(self, site: object) -> bool:
        return site in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


class Transport(Protocol):
    """Gives every named site its bytes, and hands back replies as they arrive."""

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
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

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        for name, payload in payloads.items():
            yield name, reply_of(self.sites[name], payload)


def reply_of(site: Callable[[bytes], bytes], payload: bytes) -> bytes | Failure:
    """What a site in this process answers, or why not: its data or its numbers; anything else is a bug, and stops."""
    try:
        return site(payload)
    except DivergedError as error:
        return Failure("diverged", str(error))
    except MatuError as error:
        return Failure("site", str(error))
