"""The processes of a deployed federation: Flower's SuperLink with our run on it, and a site's SuperNode."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu.errors import ConfigError, MatuError
from matu.federation.flower import ENVIRONMENT
from matu.federation.flower.certificates import check_server, greet
from matu.federation.flower.orders import FlowerError, Orders
from matu.federation.flower.resident import resident
from matu.federation.server_file import ServerFile
from matu.federation.site_file import SiteFile
from matu.files import only_one, write_atomic
from matu.tasks.loading import find_tasks

START_S = 60.0
"""Seconds that a SuperLink may take until it listens."""
STOP_S = 20.0
"""Seconds that Flower's processes get to end by themselves."""
LAST_LINES = 15
TURNED_AWAY = "[code: 2004]"
GIVEN_UP = "SSL/TLS handshake error detected"
"""What a SuperNode says before it hangs: a connection that was cut while it was being made is enough for it."""
PAUSE_S = 5.0
"""Seconds until a site whose connection broke tries again."""
QUICK_END_S = 15.0
"""A node that ends sooner was never let in, or cannot run."""
TRIES = 30
"""Times in a row that a site which was let in once is turned away before it ends: for a while it counts as there."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Deployment:
    """A server's run and where it lives.

    Attributes
    ----------
    file
        Its server.toml.
    server
        The same, read.
    folder
        The run folder; Flower's own files are in `flower/`.
    models
        Folder of backbones.
    insecure, anywhere
        No TLS and no keys: whoever reaches the port takes part; on other addresses than 127.0.0.1 too.
    tell
        Takes a line for people.
    """

    file: Path
    server: ServerFile
    folder: Path
    models: Path | None
    insecure: bool
    anywhere: bool
    tell: Callable[[str], None]

    @property
    def home(self) -> Path:
        """Flower's own folder."""
        return self.folder / "flower"

    @property
    def log(self) -> Path:
        """What the SuperLink says."""
        return self.folder / "flower" / "superlink.log"

    def run(self) -> dict[str, Any]:
        """Run, or go on with, the federation to its end; the content of `result.json`.

        Raises
        ------
        ConfigError, MatuError
            For what keeps it from starting, or ended it.
        """
        finished = self.folder / "result.json"
        if finished.is_file():
            self.tell(f"{self.folder} is complete; nothing to do")
            return dict(json.loads(finished.read_text()))
        self.home.mkdir(parents=True, exist_ok=True)
        with only_one(self.home):  # before anything of a run that is under way can be touched
            self._check()
            (self.folder / "failed.json").unlink(missing_ok=True)
            try:
                return self._run(finished)
            finally:
                self._forget_messages(finished.is_file())

    def _run(self, finished: Path) -> dict[str, Any]:
        with self._superlink() as superlink, self._telling_of_a_stop():
            orders = self._orders()
            if not self.insecure:
                for site in self.server.sites:
                    orders.admit(site, self.server.certificates / f"{site}.pub")
            orders.start({
                "folder": str(self.folder.resolve()), "config": str(self.file.resolve()),
                "models": str(self.models.resolve()) if self.models else "",
            })  # fmt: skip
            result = self._follow(superlink, orders)
            with contextlib.suppress(FlowerError):
                result["transport"] = orders.traffic()
                write_atomic(finished, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
            return result

    @contextlib.contextmanager
    def _telling_of_a_stop(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.tell("stopping Flower's processes, up to half a minute")
            raise

    def _forget_messages(self, finished: bool) -> None:
        """Flower's database keeps what sites sent until it is folded: of a run that has ended it goes altogether."""
        database = self.home / "state.db"
        if finished:
            for path in self.home.glob("state.db*"):
                path.unlink()
        elif database.is_file():
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=5)) as opened:
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                opened.execute("VACUUM")
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _check(self) -> None:
        host, _, port = self.server.listening.address.rpartition(":")
        if self.insecure and not self.anywhere and host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(f"--insecure: only on 127.0.0.1, and the address is {host}; or also --insecure-anywhere")
        if not self.insecure:
            needed = ["ca.crt", "server.pem", "server.key", *(f"{name}.pub" for name in self.server.sites)]
            missing = [name for name in needed if not (self.server.certificates / name).is_file()]
            if missing:
                raise ConfigError(
                    f"{self.server.certificates}: {', '.join(missing)} not there; matu certs --out "
                    f"{self.server.certificates} --hosts ADDRESS --sites {' '.join(self.server.sites)} makes them"
                )
            check_server(self.server.certificates)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise ConfigError(
                    f"[server] address {host}:{port}: {error.strerror}; is another server there?"
                ) from None

    @contextlib.contextmanager
    def _superlink(self) -> Iterator[subprocess.Popen[bytes]]:
        host, _, port = self.server.listening.address.rpartition(":")
        where = self.server.certificates
        secured = ["--insecure"] if self.insecure else [
            "--ssl-ca-certfile", str(where / "ca.crt"), "--ssl-certfile", str(where / "server.pem"),
            "--ssl-keyfile", str(where / "server.key"), "--enable-supernode-auth",
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "matu.federation.flower.superlink", "--host", host, "--port", port,
            "--database", str(self.home / "state.db"), "--disable-runtime-dependency-installation", *secured,
        ]  # fmt: skip
        with _process(command, self.log, self.home) as process:
            _await_port(process, "127.0.0.1" if host in ("0.0.0.0", "") else host, int(port), self.log)
            yield process

    def _orders(self) -> Orders:
        host, _, port = self.server.listening.address.rpartition(":")
        here = "127.0.0.1" if host == "0.0.0.0" else host
        return Orders(f"{here}:{port}", None if self.insecure else self.server.certificates / "ca.crt")

    def _follow(self, superlink: subprocess.Popen[bytes], orders: Orders) -> dict[str, Any]:
        """Hand on what the run says until it has ended."""
        said, looked = _size(self.folder / "server.log"), time.monotonic()
        while True:
            said = self._hand_on(said)
            if (self.folder / "result.json").is_file():
                self._hand_on(said)
                return dict(json.loads((self.folder / "result.json").read_text()))
            if (self.folder / "failed.json").is_file():
                note = json.loads((self.folder / "failed.json").read_text())
                raise (ConfigError if note["kind"] == "ConfigError" else MatuError)(note["error"])
            if superlink.poll() is not None:
                raise FlowerError(f"the SuperLink ended ({superlink.returncode}): {_last(_text(self.log))}")
            if time.monotonic() - looked > 5:
                looked = time.monotonic()
                self._require_running(orders)
            time.sleep(0.3)

    def _require_running(self, orders: Orders) -> None:
        try:
            state = orders.state()
        except FlowerError:  # busy: the SuperLink's own end is seen elsewhere
            return
        if state.startswith("finished"):
            time.sleep(2)
            if not any((self.folder / name).is_file() for name in ("result.json", "failed.json")):
                raise FlowerError(f"Flower says of the run: {state}; {self.log}: {_last(_text(self.log))}")

    def _hand_on(self, said: int) -> int:
        path = self.folder / "server.log"
        if _size(path) <= said:
            return said
        with open(path, "rb") as file:
            file.seek(said)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").splitlines():
            self.tell(line)
        return said + len(whole)


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
    host = site.server.rpartition(":")[0]
    if insecure and not anywhere and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"--insecure: only with a server on 127.0.0.1, and it is {host}; or also --insecure-anywhere")
    secured = ["--insecure"]
    if not insecure:
        for name in ("certificate", "key"):
            path = getattr(site, name)
            if path is None or not path.is_file():
                what = f"{path}: no such file" if path else "is missing"
                raise ConfigError(f"{file}: {name} {what}; the people of the server send it (matu certs)")
        secured = ["--root-certificates", str(site.certificate), "--auth-supernode-private-key", str(site.key)]
    find_tasks(site.config.tasks.tasks, site.roots.data)  # what is not there is told before anybody is asked
    site.folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, answered = site.folder / "supernode.log", threading.Event()
    tell(f"site '{site.name}' connects to {site.server}; {log} has what Flower says")

    def note(text: str) -> None:
        answered.set()
        tell(text)
        if text.startswith("finish: answered"):
            tell(f"the run is over: {site.folder / 'artifact'} has what came of it; here for another run until Ctrl-C")

    with resident(site.agent, note) as place:
        command = [
            _tool("flower-supernode"), "--superlink", site.server, "--port", str(port),
            "--node-config", f"site={json.dumps(place)}", *secured,
        ]  # fmt: skip
        tries = 0
        while True:  # whatever ends Flower's node is not an end for the site: a network that was cut heals
            _await_server(site, insecure, tell)
            began, since = len(_text(log)), time.monotonic()
            answered.clear()
            with _process(command, log, site.folder / "flower") as process:
                code = _until_it_ends(process, log, began)
            said = _text(log)[began:]
            lasted = time.monotonic() - since
            was_in = answered.is_set() or lasted > QUICK_END_S
            tries = 1 if was_in else tries + (tries > 0)
            if not 0 < tries <= TRIES:
                raise FlowerError(_why(site, said, code))
            why = (
                " (turned away: its key still counts as there, or another process has it)"
                if TURNED_AWAY in said
                else ""
            )
            tell(f"Flower's node ended after {lasted:.0f} s{why}; again in {PAUSE_S:g} s")
            time.sleep(PAUSE_S)


def _until_it_ends(process: subprocess.Popen[bytes], log: Path, began: int) -> int:
    """The exit code of a SuperNode; 1 for one that has given up and stays: it does at any trouble with TLS."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(2.0)
        if GIVEN_UP in _text(log)[began:]:
            return 1


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
            f"the server at {site.server} does not let site '{site.name}' in: it does not know {site.key}, or this "
            "site was killed within the last minute and still counts as there: then try again"
        )
    return f"Flower's node ended ({code}): {_last(said)}"


@contextlib.contextmanager
def _process(command: list[str], log: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this one, whatever ends it; what it says goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command, env=_environment(home), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started and left


def _environment(home: Path) -> dict[str, str]:
    """For Flower's processes: its own folder, and its programs on the path, which it looks for by name."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home.resolve()), "PATH": path}


def _end_with_parent() -> None:
    """In a new process: SIGTERM when the process that started it is gone, kill -9 included (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_port(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        if process.poll() is not None:
            raise FlowerError(f"the SuperLink ended ({process.returncode}): {_last(_text(log))}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.2)
    raise FlowerError(f"the SuperLink does not listen on {host}:{port} after {START_S:g} s: {_last(_text(log))}")


def _tool(name: str) -> str:
    """A program of Flower, beside this Python."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise ConfigError(f"{name}: not there; pip install 'flwr==1.41.*'")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _last(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-LAST_LINES:] if line.strip())[-1500:]
