"""The server's side of a deployed federation: Flower's SuperLink with our run on it."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu.errors import ConfigError, MatuError
from matu.federation.address import host_port, require_here
from matu.federation.flower.certificates import check_server
from matu.federation.flower.orders import FlowerError, Orders
from matu.federation.flower.processes import last_lines, process_of, size_of, text_of
from matu.federation.server_file import ServerFile
from matu.files import only_one, write_atomic
from matu.serve import number_of

START_S = 60.0
"""Seconds that a SuperLink may take until it listens."""


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
    sinks
        Names of those that are told the rounds besides.
    """

    file: Path
    server: ServerFile
    folder: Path
    models: Path | None
    insecure: bool
    anywhere: bool
    tell: Callable[[str], None]
    sinks: tuple[str, ...] = ()

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
        if finished.is_file() or (self.folder / "run.json").is_file():
            number_of(self.server, self.folder)  # refuses another configuration before anything is touched
        if finished.is_file():
            if any(self.home.glob("state.db*")):  # a kill at the very end left what sites had sent
                with only_one(self.home):
                    self._forget_messages(True)
            self.tell(f"{self.folder} is complete; nothing to do")
            return dict(json.loads(finished.read_text()))
        self._check()
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)  # what sites send passes through its database
        with only_one(self.home):  # before anything of a run that is under way can be touched
            self._check_port()
            (self.folder / "failed.json").unlink(missing_ok=True)
            self._nobody_is_there()
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
                "models": str(self.models.resolve()) if self.models else "", "sinks": " ".join(self.sinks),
                "keys": "" if self.insecure else str(self.server.certificates),
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
            self.tell("stopping Flower's processes, up to ten seconds")
            raise

    def _nobody_is_there(self) -> None:
        """Flower's database of a killed server has its nodes online for a minute more, and would turn them away.

        Those that still run are back with their next heartbeat.
        """
        database = self.home / "state.db"
        if database.is_file():
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=5)) as opened:
                opened.execute("UPDATE node SET online_until = min(online_until, ?)", (time.time(),))
                opened.commit()

    def _forget_messages(self, finished: bool) -> None:
        """Flower's database keeps what sites sent until it is folded; of a run that has ended it goes altogether."""
        database = self.home / "state.db"
        if finished:
            for path in self.home.glob("state.db*"):
                path.unlink()
        elif database.is_file():
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=5)) as opened:
                for table in ("message_ins", "message_res", "object_children", "run_objects", "objects"):
                    opened.execute(f"DELETE FROM {table}")
                opened.commit()
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                opened.execute("VACUUM")
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def _address(self) -> tuple[str, int]:
        return host_port(self.server.listening.address, "[server] address")

    def _check(self) -> None:
        if self.insecure:
            require_here(self._address[0], anywhere=self.anywhere)
        else:
            needed = ["ca.crt", "server.pem", "server.key", *(f"{name}.pub" for name in self.server.sites)]
            missing = [name for name in needed if not (self.server.certificates / name).is_file()]
            if missing:
                raise ConfigError(
                    f"{self.server.certificates}: {', '.join(missing)} not there; matu certs --out "
                    f"{self.server.certificates} --hosts ADDRESS --sites {' '.join(self.server.sites)} makes them"
                )
            check_server(self.server.certificates)

    def _check_port(self) -> None:
        host, port = self._address
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"[server] address {host}:{port}: {error.strerror}; is another server there?"
                ) from None

    @contextlib.contextmanager
    def _superlink(self) -> Iterator[subprocess.Popen[bytes]]:
        host, port = self._address
        where = self.server.certificates
        secured = ["--insecure"] if self.insecure else [
            "--ssl-ca-certfile", str(where / "ca.crt"), "--ssl-certfile", str(where / "server.pem"),
            "--ssl-keyfile", str(where / "server.key"), "--enable-supernode-auth",
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "matu.federation.flower.superlink", "--host", host, "--port", str(port),
            "--database", str(self.home / "state.db"), "--disable-runtime-dependency-installation", *secured,
        ]  # fmt: skip
        with process_of(command, self.log, self.home) as process:
            await_port(process, "127.0.0.1" if host == "0.0.0.0" else host, port, self.log)
            yield process

    def _orders(self) -> Orders:
        host, port = self._address
        here = "127.0.0.1" if host == "0.0.0.0" else host
        return Orders(f"{here}:{port}", None if self.insecure else self.server.certificates / "ca.crt")

    def _follow(self, superlink: subprocess.Popen[bytes], orders: Orders) -> dict[str, Any]:
        """Hand on what the run says until it has ended."""
        said, looked = size_of(self.folder / "server.log"), time.monotonic()
        while True:
            said = self._hand_on(said)
            if (self.folder / "result.json").is_file():
                self._hand_on(said)
                return dict(json.loads((self.folder / "result.json").read_text()))
            if (self.folder / "failed.json").is_file():
                note = json.loads((self.folder / "failed.json").read_text())
                raise (ConfigError if note["kind"] == "ConfigError" else MatuError)(note["error"])
            if superlink.poll() is not None:
                raise FlowerError(f"the SuperLink ended ({superlink.returncode}): {last_lines(text_of(self.log))}")
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
                raise FlowerError(f"Flower says of the run: {state}; {self.log}: {last_lines(text_of(self.log))}")

    def _hand_on(self, said: int) -> int:
        path = self.folder / "server.log"
        if size_of(path) <= said:
            return said
        with open(path, "rb") as file:
            file.seek(said)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").splitlines():
            self.tell(line)
        return said + len(whole)


def await_port(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        if process.poll() is not None:
            raise FlowerError(f"the SuperLink ended ({process.returncode}): {last_lines(text_of(log))}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.2)
    raise FlowerError(f"the SuperLink does not listen on {host}:{port} after {START_S:g} s: {last_lines(text_of(log))}")
