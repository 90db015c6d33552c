"""What the people of a site write down: its name, its tasks, where the server is (`site.toml`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matu.config import RunConfig, config_of
from matu.errors import ConfigError
from matu.federation.address import host_port
from matu.roots import Roots, find_roots
from matu.tables import read_table
from matu.tasks.sources import is_path
from matu.wire import is_name

if TYPE_CHECKING:
    from matu.federation.agent import Agent

_TEXT = ("name", "server", "folder", "certificate", "key", "data_root", "models_root", "cache")


@dataclass(frozen=True)
class SiteFile:
    """A site, as its file says. Relative paths are from the folder of the file.

    Attributes
    ----------
    name
        How the server knows it.
    server
        host:port.
    folder
        Where the site keeps what methods leave with it, and what it gets at the end.
    certificate, key
        The authority's certificate, and the site's private key; None only without TLS.
    config
        The site's tasks and machine; the other sections are the server's.
    roots
        Its folders of data, models and cache: of the file, or MATU_DATA, MATU_MODELS and MATU_CACHE of the environment.
    """

    name: str
    server: str
    folder: Path
    certificate: Path | None
    key: Path | None
    config: RunConfig
    roots: Roots

    def agent(self) -> Agent:
        """What answers for it."""
        from matu.federation.agent import Agent  # and torch with it

        return Agent(self.name, self.config, self.roots, self.folder)


def read_site(path: Path) -> SiteFile:
    """A site's file.

    Raises
    ------
    ConfigError
        For a missing or broken file, an unknown or missing entry, or a value of another type.
    """
    table = read_table(path)
    known = {*_TEXT, "tasks", "machine"}
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigError(
            f"{path}: unknown {', '.join(unknown)}; known are {', '.join((*_TEXT, '[tasks]', '[machine]'))}"
        )
    for name in _TEXT:
        if name in table and not isinstance(table[name], str):
            raise ConfigError(f"{path}: {name} = {table[name]!r}, expected text")
    missing = [name for name in ("name", "server", "tasks") if name not in table]
    if missing:
        raise ConfigError(f"{path}: {', '.join(missing)} missing; a site has a name, a server (host:port) and [tasks]")
    if not is_name(table["name"]):
        raise ConfigError(f"{path}: name {table['name']!r}, expected 1 to 255 bytes of printable text")
    host_port(table["server"], f"{path}: server")
    here = path.resolve().parent

    def place(name: str) -> Path | None:
        return here / table[name] if name in table else None

    config = config_of({name: table[name] for name in ("tasks", "machine") if name in table}, str(path))
    if not table["tasks"].get("tasks"):
        raise ConfigError(f'{path}: [tasks] names none; expected for example tasks = ["./flowers", "./birds"]')
    tasks = tuple(str(here / Path(task).expanduser()) if is_path(task) else task for task in config.tasks.tasks)
    config = dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, tasks=tasks))
    try:
        roots = find_roots(place("data_root"), place("models_root"), place("cache"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    folder = place("folder") or here / "state"
    return SiteFile(table["name"], table["server"], folder, place("certificate"), place("key"), config, roots)
