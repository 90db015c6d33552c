"""Real processes on loopback: one SuperLink, a SuperNode a site, TLS and keys."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tomli_w
from remote import HOLDS, House, run_config
from safetensors.torch import load_file

from matu.config import config_table
from matu.federation.flower.certificates import make_certificates
from playing import equal

pytestmark = [pytest.mark.flower, pytest.mark.timeout(280)]
MATU = [sys.executable, "-m", "matu"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sites:
    """A server's file and the sites', and processes of them that end with the test."""

    def __init__(self, house: House, port: int, min_sites: int = 3) -> None:
        self.house, self.port, self.folder = house, port, house.folder
        table = config_table(house.config)
        table["server"] = {"address": f"127.0.0.1:{port}", "min_sites": min_sites, "certificates": "certs"}
        table["sites"] = {site: list(held) for site, held in HOLDS.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "server.toml").write_text(tomli_w.dumps(table))
        make_certificates(self.folder / "certs", ["127.0.0.1"], list(HOLDS), 2)
        for site, held in HOLDS.items():
            about = {
                "name": site, "server": f"127.0.0.1:{port}", "folder": site, "cache": "cache",
                "certificate": "certs/ca.crt", "key": f"certs/{site}.key",
                "tasks": {"tasks": [str(house.data / task) for task in held]},
                "machine": {"precision": "float32", "threads": 1},
            }  # fmt: skip
            (self.folder / f"{site}.toml").write_text(tomli_w.dumps(about))

    @contextlib.contextmanager
    def process(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        with open(self.folder / f"{words[0]}-{Path(words[2]).stem}.out", "ab") as said:
            process = subprocess.Popen([*MATU, *words], cwd=self.folder, stdout=said, stderr=said)
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
    (file,) = (sites.folder / "run/checkpoint").glob("state-*.safetensors")
    found = {n.removeprefix("server|"): tensor for n, tensor in load_file(file).items()}
    assert equal(found, expected.state)
    result = json.loads((sites.folder / "run/result.json").read_text())
    assert result["rounds"] == 3
    assert set(result["sites"]) == set(HOLDS)
    assert all((sites.folder / site / "artifact/artifact.json").is_file() for site in HOLDS)
    assert not [p for p in (sites.folder / "run").rglob("*") if p.suffix in (".png", ".npy")]
    assert os.path.getsize(sites.folder / "run/server.log")


def end_all(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a command and of everything that it started, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def rounds_done(folder: Path) -> int:
    path = folder / "run/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def until(what: Callable[[], bool], sites: Sites, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, sites.said()
        time.sleep(0.3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_outlives_kill_9_of_a_site_and_of_the_server(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    house = House(run_config(tiny_vit, method="fedper", rounds=7, participation=1.0), tiny_data, tmp_path / "real")
    sites = Sites(house, free_port(), min_sites=2)
    with contextlib.ExitStack() as running:
        server = running.enter_context(sites.server())
        sites.listening()
        nodes = {name: running.enter_context(sites.site(name)) for name in HOLDS}
        until(lambda: rounds_done(sites.folder) >= 1, sites)
        end_all(nodes["north"])
        until(lambda: rounds_done(sites.folder) >= 3, sites)
        lines = [json.loads(line) for line in (sites.folder / "run/metrics.jsonl").read_text().splitlines()]
        assert "north" not in lines[-1]["clients"] or "north" in lines[-1]["failures"]
        running.enter_context(sites.restarting("north"))
        before = rounds_done(sites.folder)
        end_all(server)
        server = running.enter_context(sites.server())
        assert server.wait(500) == 0, sites.said()
    lines = [json.loads(line) for line in (sites.folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 8))
    assert before < 7
    assert "north" in lines[-1]["clients"], "it is asked again once it is back"
    assert "north" not in lines[-1]["failures"]
    assert json.loads((sites.folder / "run/result.json").read_text())["rounds"] == 7
