"""What the people of a server write down: the run, where it listens, and who may take part (`server.toml`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matu.config import RunConfig, config_of
from matu.errors import ConfigError
from matu.federation.address import host_port
from matu.tables import from_table, read_table
from matu.wire import is_name


@dataclass(frozen=True)
class Listening:
    """The section [server]."""

    address: str = "127.0.0.1:8000"
    """host:port that sites connect to."""
    certificates: str = "certs"
    """Folder of `matu certs`: ca.crt, server.pem, server.key, and a public key of each site."""
    min_sites: int = 2
    """Sites that must be there before a round begins, and must have answered before it may end at the deadline."""
    deadline_s: float = 0.0
    """Seconds after which a round ends without the sites that are late; 0: it waits for all."""


@dataclass(frozen=True)
class ServerFile:
    """A server, as its file says.

    Attributes
    ----------
    config
        The run. Of its tasks only the image size is meant: tasks come with the sites.
    listening
        Address, certificates, quorum.
    sites
        By admitted site, the tasks that it may hold.
    place
        Folder of the file; relative paths are from here.
    """

    config: RunConfig
    listening: Listening
    sites: dict[str, tuple[str, ...]] = field(default_factory=dict)
    place: Path = Path()

    @property
    def certificates(self) -> Path:
        """Folder of keys and certificates."""
        return self.place / self.listening.certificates

    def check(self) -> None:
        """Raise ConfigError for what cannot work."""
        self.config.check()
        host_port(self.listening.address, "[server] address")
        if self.listening.min_sites < 1 or not 0 <= self.listening.deadline_s < float("inf"):
            raise ConfigError(
                f"[server] min_sites {self.listening.min_sites}, deadline_s {self.listening.deadline_s}: expected 1 or "
                "more, and 0 (none) or more"
            )
        if not self.sites:
            raise ConfigError('[sites]: nobody is admitted; expected lines such as north = ["flowers", "birds"]')
        if len(self.sites) < self.listening.min_sites:
            raise ConfigError(f"[sites]: {len(self.sites)} admitted, min_sites is {self.listening.min_sites}")


def read_server(path: Path) -> ServerFile:
    """A server's file.

    Raises
    ------
    ConfigError
        For a missing or broken file, or an unknown section, entry or value.
    """
    table = read_table(path)
    listening, sites = table.pop("server", {}), table.pop("sites", {})
    found = ServerFile(
        config_of(table, str(path)),
        from_table(Listening, listening, f"{path} [server]"),
        _sites(sites, path),
        path.resolve().parent,
    )
    found.check()
    return found


def _sites(table: Any, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(table, dict):
        raise ConfigError(f'{path}: sites = {table!r}, expected a section [sites] of lines such as north = ["flowers"]')
    for name, tasks in table.items():
        if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) and is_name(t) for t in tasks):
            raise ConfigError(f"{path} [sites]: {name} = {tasks!r}, expected the names of its tasks in a list")
        if not is_name(name):
            raise ConfigError(f"{path} [sites]: {name!r}, expected 1 to 255 bytes of printable text")
    return {name: tuple(tasks) for name, tasks in table.items()}
