"""Flower's SuperLink, which takes orders from its own machine alone.

Everything of a SuperLink is on one port: what sites need (under /v1/fleet/, with their keys) and what starts and stops
runs, for which Flower 1.41 asks nobody who they are. Whoever may start a run may run code at every site, so only the
former is let through from outside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

import uvicorn
from flwr.superlink.cli.flower_superlink import flower_superlink

FOR_SITES = "/v1/fleet/"
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class SitesAlone:
    """An ASGI app behind the rule above.

    Parameters
    ----------
    app
        The SuperLink's.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan" or _is_here(scope) or self._for_sites(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"from this machine only"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _for_sites(self, scope: Scope) -> bool:
        path = str(scope.get("path", ""))
        return scope["type"] == "http" and path.startswith(FOR_SITES) and ".." not in path


def _is_here(scope: Scope) -> bool:
    """From the loopback, or from the very address that is listened on."""
    try:
        client = ip_address(scope["client"][0])
        return client.is_loopback or client == ip_address(scope["server"][0])
    except (TypeError, ValueError, IndexError, KeyError):
        return False


def main() -> None:
    """Run a SuperLink with the arguments of `flower-superlink`."""
    run = uvicorn.run

    def guarded(app: Any, **options: Any) -> None:
        # no X-Forwarded-For: it would be the asker who says where he is
        run(SitesAlone(app), **options | {"proxy_headers": False})

    uvicorn.run = guarded
    flower_superlink()


if __name__ == "__main__":
    main()
