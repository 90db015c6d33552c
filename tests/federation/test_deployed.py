"""Real processes on loopback: one SuperLink, a SuperNode a site, TLS and keys."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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

    def __init__(self, house: House, port: int) -> None:
        self.house, self.port, self.folder = house, port, house.folder
        table = config_table(house.config)
        table["server"] = {"address": f"127.0.0.1:{port}", "min_sites": 3, "certificates": "certs"}
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
