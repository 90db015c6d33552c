"""Real processes on loopback: one SuperLink, a SuperNode a site, TLS and keys."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from hostile import LIES
from remote import HOLDS, House, run_config
from safetensors.torch import load_file

from matu.config import config_table
from matu.federation.flower.certificates import make_certificates
from matu.federation.transport import Failure
from matu.methods import State
from matu.wire import Envelope
from playing import equal

pytestmark = [pytest.mark.flower, pytest.mark.xdist_group("flower"), pytest.mark.timeout(280)]
MATU = [sys.executable, "-m", "matu"]


@pytest.fixture(autouse=True)
def nobody_stays(tmp_path: Path) -> Iterator[None]:
    """A process that a killed one was just starting outlives it."""
    yield
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(tmp_path):
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sites:
    """A server's file and the sites', and processes of them that end with the test."""

    def __init__(self, house: House, port: int, min_sites: int = 3, deadline_s: float = 0.0) -> None:
        self.house, self.port, self.folder = house, port, house.folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_server(min_sites, deadline_s)
        make_certificates(self.folder / "certs", ["127.0.0.1"], list(HOLDS), 2)
        for site in HOLDS:
            self.write_site(site)

    def write_server(
        self, min_sites: int, deadline_s: float = 0.0, file: str = "server", port: int | None = None
    ) -> None:
        table = config_table(self.house.config)
        table["server"] = {
            "address": f"127.0.0.1:{port or self.port}", "min_sites": min_sites, "certificates": "certs",
            "deadline_s": deadline_s,
        }  # fmt: skip
        table["sites"] = {site: list(held) for site, held in HOLDS.items()}
        (self.folder / f"{file}.toml").write_text(tomli_w.dumps(table))

    def write_site(self, name: str, **changes: Any) -> None:
        """Its file; `changes` may name another file, port, key or tasks."""
        about = {
            "name": name, "server": f"127.0.0.1:{self.port}", "folder": name, "cache": "cache",
            "certificate": "certs/ca.crt", "key": f"certs/{name}.key",
            "tasks": {"tasks": [str(self.house.data / task) for task in HOLDS[name]]},
            "machine": {"precision": "float32", "threads": 1},
        }  # fmt: skip
        file, about["name"] = changes.pop("file", name), changes.pop("called", name)
        (self.folder / f"{file}.toml").write_text(tomli_w.dumps(about | changes))

    @contextlib.contextmanager
    def process(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        with open(self.folder / f"{words[0]}-{Path(words[2]).stem}.out", "ab") as said:
            process = subprocess.Popen([*MATU, *words], cwd=self.folder, stdout=said, stderr=said)
        self.processes.append(process)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            process.kill()
            process.wait()

    def server(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return self.process("server", "--config", "server.toml", "--out", "run")

    @contextlib.contextmanager
    def liar(self, name: str) -> Iterator[None]:
        with open(self.folder / f"liar-{name}.out", "ab") as said:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("hostile.py")), "site", "--config", f"{name}.toml"],
                cwd=self.folder, stdout=said, stderr=said,
            )  # fmt: skip
        self.processes.append(process)
        try:
            yield
        finally:
            end_all(process)

    def site(self, name: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return self.process("site", "--config", f"{name}.toml")

    @contextlib.contextmanager
    def restarting(self, name: str) -> Iterator[None]:
        """A site under a supervisor."""
        command = f"until {' '.join(map(shlex.quote, MATU))} site --config {name}.toml; do sleep 3; done"
        with open(self.folder / f"supervised-{name}.out", "ab") as said:
            process = subprocess.Popen(["sh", "-c", command], cwd=self.folder, stdout=said, stderr=said)
        try:
            yield
        finally:
            end_all(process)

    def listening(self) -> None:
        """Wait until the server takes connections."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server-server.out").read_text())

    def stop(self) -> None:
        """SIGTERM to all at once: one after another takes Flower seconds each."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def answers(self, name: str, question: str) -> int:
        """How many of these questions a site has answered."""
        path = self.folder / f"site-{name}.out"
        return path.read_text().count(f"{question}: answered") if path.is_file() else 0

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.out")))


@pytest.mark.parametrize(
    "method", ["fedper", *(pytest.param(name, marks=pytest.mark.long) for name in ("matu", "matu_plus", "mat_fl"))]
)
def test_real_sites_over_tls_end_with_the_numbers_of_one_process(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, method: str
) -> None:
    plain = House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "plain")
    expected = plain.server(plain.nodes(), []).rounds()
    sites = Sites(House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "real"), free_port())
    with contextlib.ExitStack() as running:
        server = running.enter_context(sites.server())
        sites.listening()
        for name in HOLDS:
            running.enter_context(sites.site(name))
        assert server.wait(240) == 0, sites.said()
        sites.stop()
    assert equal(state_of(sites), expected.state)
    result = json.loads((sites.folder / "run/result.json").read_text())
    assert result["rounds"] == 3
    for ours, theirs in (("downlink", "to_sites"), ("uplink", "from_sites")):
        assert result["transport"][theirs] > sum(result["bytes"][ours].values()) > 0
    assert set(result["sites"]) == set(HOLDS)
    assert not list((sites.folder / "run/flower").glob("state.db*")), "nothing stays of what sites sent"
    assert all((sites.folder / site / "artifact/artifact.json").is_file() for site in HOLDS)
    assert not [p for p in (sites.folder / "run").rglob("*") if p.suffix in (".png", ".npy")]
    assert os.path.getsize(sites.folder / "run/server.log")


def state_of(sites: Sites) -> State:
    (file,) = (sites.folder / "run/checkpoint").glob("state-*.safetensors")
    return {name.removeprefix("server|"): tensor for name, tensor in load_file(file).items()}


def end_all(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a command and of everything that it started, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def rounds_done(folder: Path) -> int:
    """Rounds that the checkpoint holds: a line of metrics comes before it, and is written anew after a kill between."""
    path = folder / "run/checkpoint/checkpoint.json"
    return int(json.loads(path.read_text())["round"]) if path.is_file() else 0


def until(what: Callable[[], bool], sites: Sites, seconds: float = 200, every: float = 0.3) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, sites.said()
        time.sleep(every)


def lines_of(sites: Sites) -> list[dict[str, Any]]:
    path = sites.folder / "run/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_run_outlives_kill_9_of_a_site_and_of_the_server(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A site in the middle of a round, then the server; it ends as one process in which the same sites did not answer.

    The server comes back only with all three sites, so the last rounds are whole.
    """
    config = run_config(tiny_vit, method="matu", rounds=4, participation=1.0)
    sites = Sites(House(config, tiny_data, tmp_path / "real"), free_port(), min_sites=2, deadline_s=2)
    with contextlib.ExitStack() as running:
        server = running.enter_context(sites.server())
        sites.listening()
        nodes = {name: running.enter_context(sites.site(name)) for name in HOLDS}
        until(lambda: sites.answers("north", "train") >= 1, sites, every=0.05)
        nodes["north"].send_signal(signal.SIGSTOP)  # at work on the next round for ever
        done = rounds_done(sites.folder)
        until(lambda: rounds_done(sites.folder) >= done + 1, sites)
        end_all(nodes["north"])
        until(lambda: rounds_done(sites.folder) >= done + 2, sites, every=0.05)
        end_all(server)
        running.enter_context(sites.restarting("north"))
        sites.write_server(min_sites=3)
        server = running.enter_context(sites.server())
        assert server.wait(240) == 0, sites.said()
        sites.stop()
    lines = lines_of(sites)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    answered = [[site for site in line["clients"] if site not in line["failures"]] for line in lines]
    assert answered[-1] == sorted(HOLDS), "it is asked again once it is back"
    assert any("north" not in names for names in answered[1:]), "a round ended without it"
    plain = House(config, tiny_data, tmp_path / "plain")
    nodes_ = plain.nodes()

    def silent(question: str, site: str, reply: bytes) -> Any:
        late = question == "train" and site not in answered[Envelope(reply).header.round - 1]
        return Failure("late", "") if late else reply

    nodes_.meddle = silent
    assert equal(state_of(sites), plain.server(nodes_, []).rounds().state)
    result = json.loads((sites.folder / "run/result.json").read_text())
    assert set(result["sites"]) == set(HOLDS)
    assert result["failures"] == sum(len(line["failures"]) for line in lines)


def test_who_is_not_the_server_or_not_admitted_is_refused_and_told_so(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = run_config(tiny_vit, method="matu", rounds=1, participation=1.0)
    sites = Sites(House(config, tiny_data, tmp_path / "real"), free_port(), min_sites=1)
    make_certificates(sites.folder / "others", ["127.0.0.1"], ["north"], 2)
    sites.write_site("north", file="other_authority", certificate="others/ca.crt", folder="other_authority")
    sites.write_site("north", file="other_key", key="others/north.key", folder="other_key")
    everything = [str(tiny_data / task) for task in ("left", "middle", "right")]
    sites.write_site("east", tasks={"tasks": everything})
    sites.write_site("north", called="south")
    shutil.copytree(tiny_data / "right", sites.folder / "broken")
    shutil.rmtree(sorted((sites.folder / "broken/test").iterdir())[0])
    sites.write_site("south", file="broken", tasks={"tasks": [str(sites.folder / "broken")]})
    expected = {
        "other_authority": (2, f"the server at 127.0.0.1:{sites.port} is refused: unable to get local issuer"),
        "other_key": (1, "does not let site 'north' in: it does not know"),
        "east": (2, "cannot take part: refused by the server: not admitted for middle, only for left, right"),
        "north": (2, "cannot take part: refused by the server: its key is that of site 'north'"),
        "broken": (2, "site 'south' cannot take part: "),
    }
    with sites.server() as first:
        sites.listening()
        sites.write_server(1, file="second", port=free_port())
        with contextlib.ExitStack() as running:  # at once: most of it is waiting
            second = running.enter_context(sites.process("server", "--config", "second.toml", "--out", "run"))
            started = {file: running.enter_context(sites.site(file)) for file in expected}
            assert second.wait(120) == 2
            codes = {file: process.wait(120) for file, process in started.items()}
        assert "another process is at work" in (sites.folder / "server-second.out").read_text()
        assert first.poll() is None, "the first is not disturbed"
        assert codes == {file: code for file, (code, _) in expected.items()}
        said = {file: (sites.folder / f"site-{file}.out").read_text() for file in expected}
        assert {file: text in said[file] for file, (_, text) in expected.items()} == dict.fromkeys(expected, True), said
        assert "in train/ but not in test/" in said["broken"].rpartition("cannot take part: ")[2]
        text = (sites.folder / "run/server.log").read_text()
        assert "site 'east' is refused: not admitted for middle" in text
        assert "site 'south' is refused: its key is that of site 'north'" in text
        family = psutil.Process(first.pid).children(recursive=True)
        assert len(family) >= 3
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 128 + signal.SIGTERM
        assert not psutil.wait_procs(family, 5)[1], "whoever starts the same command again finds nobody at work"
    assert "stopping" in (sites.folder / "server-server.out").read_text()
    assert not (sites.folder / "run/flower").stat().st_mode & 0o077
    with contextlib.closing(sqlite3.connect(sites.folder / "run/flower/state.db")) as database:
        for table in ("message_ins", "message_res", "objects"):
            assert not list(database.execute(f"SELECT * FROM {table}")), "nothing stays of what sites sent"
    assert not lines_of(sites)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_liar_over_tls_changes_nothing_but_that_it_is_left_out(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = run_config(tiny_vit, method="matu", rounds=len(LIES), participation=1.0)
    sites = Sites(House(config, tiny_data, tmp_path / "real"), free_port())
    with contextlib.ExitStack() as running:
        server = running.enter_context(sites.server())
        sites.listening()
        for name in ("north", "south"):
            running.enter_context(sites.site(name))
        running.enter_context(sites.liar("east"))
        assert server.wait(500) == 0, sites.said()
        sites.stop()
    lines = lines_of(sites)
    assert [list(line["failures"]) for line in lines] == [[], *[["east"]] * (len(LIES) - 1)]
    plain = House(config, tiny_data, tmp_path / "plain")
    nodes = plain.nodes()
    nodes.meddle = lambda question, site, reply: (
        Failure("late", "") if question == "train" and site == "east" and Envelope(reply).header.round > 1 else reply
    )
    assert equal(state_of(sites), plain.server(nodes, []).rounds().state)
    result = json.loads((sites.folder / "run/result.json").read_text())
    assert result["sites"]["east"]["accuracy"] == {}
    assert result["sites"]["north"]["accuracy"]
    log = (sites.folder / "run/server.log").read_text()
    assert log.count("site 'east' did not: ") == len(LIES) - 1


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_network_that_is_cut_for_a_minute_heals(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    """North reaches the server through a relay, which is cut for 70 s: longer than Flower takes a silent node for."""
    config = run_config(tiny_vit, method="matu", rounds=12, participation=1.0)
    sites = Sites(House(config, tiny_data, tmp_path / "real"), free_port())
    with contextlib.ExitStack() as running:
        relay = running.enter_context(Relay(sites.port))
        sites.write_site("north", server=f"127.0.0.1:{relay.port}")
        server = running.enter_context(sites.server())
        sites.listening()
        for name in HOLDS:
            running.enter_context(sites.site(name))
        until(lambda: rounds_done(sites.folder) >= 2, sites)
        relay.cut()
        time.sleep(70)
        relay.heal()
        assert server.wait(400) == 0, sites.said()
        sites.stop()
    lines = lines_of(sites)
    assert len(lines) == 12
    assert lines[-1]["clients"] == sorted(HOLDS)
    assert lines[-1]["failures"] == {}
    assert json.loads((sites.folder / "run/result.json").read_text())["sites"]["north"]["accuracy"]


class Relay:
    """Hands TCP connections on to a port of this machine, until it is cut."""

    def __init__(self, to: int) -> None:
        self.to, self.open, self.pairs = to, True, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.cut()

    def cut(self) -> None:
        self.open = False
        for one in self.pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.pairs = []

    def heal(self) -> None:
        self.open = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.open:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    near.close()
                    continue
                self.pairs += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
        finally:
            source.close()
