"""Where a server listens."""

from __future__ import annotations

from matu.errors import ConfigError

HERE = ("127.0.0.1", "localhost", "::1")


def host_port(text: str, where: str) -> tuple[str, int]:
    """The host and the port of "host:port"; ConfigError, naming `where`, for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{where} {text!r}, expected host:port")
    return host, int(port)


def require_here(host: str, *, anywhere: bool) -> None:
    """ConfigError for `--insecure` with another machine, unless that too was asked for."""
    if not anywhere and host not in HERE:
        raise ConfigError(f"--insecure: only on 127.0.0.1, and the address is {host}; or also --insecure-anywhere")
