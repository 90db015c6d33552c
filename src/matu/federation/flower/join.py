"""A site's side of a deployed federation: Flower's SuperNode, kept running, and what answers for it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from matu.errors import ConfigError
from matu.federation.address import host_port, require_here
from matu.federation.flower.certificates import greet
from matu.federation.flower.orders import FlowerError
from matu.federation.flower.processes import last_lines, process_of, size_of, text_of, tool
from matu.federation.flower.resident import REFUSED, resident
from matu.federation.site_file import SiteFile
from matu.tasks.loading import find_tasks

TURNED_AWAY = "[code: 2004]"
GIVEN_UP = "SSL/TLS handshake error detected"
"""What a SuperNode says before it hangs: a connection that was cut while it was being made is enough for it."""
PAUSE_S = 5.0
"""Seconds until a site whose connection broke tries again."""
QUICK_END_S = 15.0
"""A node that ends sooner was never let in, or cannot run."""
SLOW_START_S = 120.0
"""The same for a node that says it was turned away, which on a busy machine it may say late."""
TRIES = 30
"""Times in a row that a site which was let in once is turned away before it ends: for a while it counts as there."""


def run_site(
    file: Path, site: SiteFile, *, insecure: bool, anywhere: bool, tell: Callable[[str], None]
) -> None:  # fmt: skip
    """Take part until the process is ended; a node of Flower's that ends is started again.

    Raises
    ------
    ConfigError
        For a key or certificate that is not there, or a server that is not the one it should be.
    FlowerError
        If the server does not let this site in, or Flower's node cannot run.
    """
    secured = ["--insecure"]
    if insecure:
        require_here(host_port(site.server, "server")[0], anywhere=anywhere)
    else:
        for name in ("certificate", "key"):
            path = getattr(site, name)
            if path is None or not path.is_file():
                what = f"{path}: no such file" if path else "is missing"
                raise ConfigError(f"{file}: {name} {what}; the people of the server send it (matu certs)")
        _require_key(file, site.key)
        secured = ["--root-certificates", str(site.certificate), "--auth-supernode-private-key", str(site.key)]
    find_tasks(site.config.tasks.tasks, site.roots.data)  # what is not there is told before anybody is asked
    site.folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, answered = site.folder / "supernode.log", threading.Event()
    unable: list[str] = []
    tell(f"site '{site.name}' connects to {site.server}; {log} has what Flower says")

    def note(text: str) -> None:
        answered.set()
        tell(text)
        if text.startswith(("hello: no answer: ", REFUSED)):
            unable.append(text.removeprefix("hello: no answer: "))
        if text.startswith("finish: answered"):
            tell(f"the run is over: {site.folder / 'artifact'} has what came of it; here for another run until Ctrl-C")

    with resident(site.agent, note) as place:
        command = [
            tool("flower-supernode"), "--superlink", site.server, "--port", str(port),
            "--node-config", f"site={json.dumps(place)}", *secured,
        ]  # fmt: skip
        was_let_in, turned_away = False, 0
        while True:  # whatever ends Flower's node is not an end for the site: a network that was cut heals
            _await_server(site, insecure, tell)
            began, since = size_of(log), time.monotonic()
            answered.clear()
            with process_of(command, log, site.folder / "flower") as process:
                code = _until_it_ends(process, log, began, unable)
            if unable:
                raise ConfigError(f"site '{site.name}' cannot take part: {unable[-1]}")
            said = text_of(log, began)
            lasted = time.monotonic() - since
            if answered.is_set() or lasted > (SLOW_START_S if TURNED_AWAY in said else QUICK_END_S):
                was_let_in, turned_away = True, 0
            else:
                turned_away += 1
            if not was_let_in or turned_away >= TRIES:
                raise FlowerError(_why(site, said, code))
            why = (
                " (turned away: its key still counts as there, or another process has it)"
                if TURNED_AWAY in said
                else ""
            )
            tell(f"Flower's node ended after {lasted:.0f} s{why}; again in {PAUSE_S:g} s")
            time.sleep(PAUSE_S)


def _until_it_ends(process: subprocess.Popen[bytes], log: Path, began: int, unable: list[str]) -> int:
    """The exit code of a SuperNode; 1 once the site is unable to take part, and for a node that has given up and stays.

    It does that at any trouble with TLS.
    """
    while not unable:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(2.0)
        if GIVEN_UP in text_of(log, began):
            return 1
    time.sleep(PAUSE_S)  # for the server to hear it
    return 1


def _require_key(file: Path, key: Path | None) -> None:
    """ConfigError unless the file holds a private key of `matu certs`."""
    assert key is not None
    try:
        found = load_ssh_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: key {key}: no private key that can be read ({error})") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file}: key {key}: not a key of matu certs (ECDSA)")


def _await_server(site: SiteFile, insecure: bool, tell: Callable[[str], None]) -> None:
    """Until the server, known by its certificate, is there; ConfigError if somebody else is."""
    told = None
    while not insecure and site.certificate is not None:
        absent = greet(site.server, site.certificate)
        if absent is None:
            return
        if told != absent:
            tell(f"no server at {site.server} yet ({absent}); trying until there is one")
        told = absent
        time.sleep(PAUSE_S)


def _why(site: SiteFile, said: str, code: int) -> str:
    if TURNED_AWAY in said:
        return (
            f"the server at {site.server} does not let site '{site.name}' in: it does not know {site.key}, another "
            "process takes part with this key, or this site was killed within the last minute and still counts as "
            "there: then try again"
        )
    return f"Flower's node ended ({code}): {last_lines(said)}"
