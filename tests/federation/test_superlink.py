"""From outside, a SuperLink is there for sites and takes no orders."""

import asyncio
from typing import Any

import pytest

from matu.federation.flower.superlink import SitesAlone


def ask(client: Any, path: str, kind: str = "http") -> tuple[bool, list[Any]]:
    """Whether the request was let through, and what was sent if not."""
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(
        SitesAlone(app)({"type": kind, "client": client, "server": ("198.51.100.5", 8000), "path": path}, receive, send)
    )
    return bool(reached), sent


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/runtime/pull", "/docs", "/", "/v1/fleet/../control/x", ""]
)
def test_from_outside_orders_are_refused(path: str) -> None:
    for client in (("192.0.2.7", 4000), ("2001:db8::1", 4000), None, ("unix", 0), ()):
        through, sent = ask(client, path)
        assert not through
        assert sent[0]["status"] == 403


def test_sites_are_let_through_from_anywhere_and_this_machine_everywhere() -> None:
    assert ask(("192.0.2.7", 4000), "/v1/fleet/pull-messages") == (True, [])
    for here in ("127.0.0.1", "127.0.0.9", "::1", "198.51.100.5"):
        assert ask((here, 4000), "/v1/control/start-run") == (True, [])


def test_a_socket_that_stays_open_is_no_way_around() -> None:
    through, sent = ask(("192.0.2.7", 4000), "/v1/fleet/x", "websocket")
    assert not through
    assert sent[0]["type"] == "websocket.close"
