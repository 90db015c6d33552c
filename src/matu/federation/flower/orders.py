"""Orders to our own SuperLink, as Flower's command line gives them, without a process for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError as Said
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import Run

from matu.errors import ConfigError, MatuError

_Answer = TypeVar("_Answer")


class FlowerError(MatuError):
    """Flower, or one of its processes, failed."""


def public_key_of(path: Path) -> bytes:
    """A site's public key as Flower knows it; ConfigError for a file that holds none."""
    try:
        public = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no public key that can be read ({error})") from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: not a key of matu certs (ECDSA)")
    return public_key_to_bytes(public)


class Orders:
    """A SuperLink's control interface.

    Parameters
    ----------
    address
        host:port.
    certificate
        The authority's, or None for a SuperLink without TLS.
    """

    def __init__(self, address: str, certificate: Path | None) -> None:
        self.client = ControlHttpClient.from_server_address(
            address, certificate is None, str(certificate) if certificate else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )  # fmt: skip

    def admit(self, site: str, key: Path) -> None:
        """Register a site's public key, if it is not yet.

        Raises
        ------
        ConfigError
            For a file that holds no such key.
        FlowerError
            If the SuperLink does not take it.
        """
        request = RegisterNodeRequest(public_key=public_key_of(key), name=site)
        try:
            self._ask(lambda: self.client.RegisterNode(request))
        except FlowerError as error:
            if "already" not in str(error).lower():
                raise FlowerError(f"the key of site '{site}' was not taken: {error}") from error

    def start(self, given: Mapping[str, str]) -> None:
        """Start our run: one pyproject.toml that names the installed matu, and what `server_app` is to read."""
        about = files("matu.federation.flower").joinpath("app/pyproject.toml").read_bytes()
        content = build_fab_from_files({"pyproject.toml": about})[0]
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(given)))
        if not self._ask(lambda: self.client.StartRun(request)).run_id:
            raise FlowerError("Flower did not take the run")

    def state(self) -> str:
        """Of the newest run: "running:", "finished:failed", …; empty if there is none."""
        runs = sorted(self._runs(), key=lambda one: str(one.pending_at))
        return f"{runs[-1].status.status}:{runs[-1].status.sub_status}" if runs else ""

    def traffic(self) -> dict[str, int]:
        """Bytes that went to sites and came from them in all runs of this SuperLink, by Flower's own count."""
        runs = self._runs()
        return {"to_sites": sum(one.bytes_sent for one in runs), "from_sites": sum(one.bytes_recv for one in runs)}

    def _runs(self) -> list[Run]:
        answer = self._ask(lambda: self.client.ListRuns(ListRunsRequest()))
        return [run_from_proto(one) for one in answer.run_dict.values()]

    @staticmethod
    def _ask(call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            said = Said.from_json(error.response.text)
            raise FlowerError(
                str(said.public_details or said.message) if said else f"{error}: {error.response.text[:300]}"
            ) from error
        except httpx.HTTPError as error:
            raise FlowerError(f"the SuperLink does not answer: {error}") from error
