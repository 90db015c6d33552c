"""What a large adapter takes over Flower with TLS and keys on loopback: memory of every process, seconds a round.

python benchmarks/large_payload.py [--rank 8681] [--sites 1] [--method matu] [--rounds 2] [--out FILE]

Rank 8681 on the bundled backbone is 50 million parameters, 200 MB in float32 each way. Resident memory is read ten
times a second; "idle" is the ServerApp's while it waits for sites, its model loaded; in payloads is what it grew by at
most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import tomli_w

from matu.federation.flower.certificates import make_certificates

MATU = [sys.executable, "-m", "matu"]
KINDS = {
    "ServerApp": "flwr-serverapp", "ClientApp": "flwr-clientapp", "SuperExec": "flower-superexec",
    "SuperLink": "matu.federation.flower.superlink", "SuperNode": "flower-supernode", "matu site": "matu site",
    "matu server": "matu server",
}  # fmt: skip


def files(folder: Path, args: argparse.Namespace, port: int) -> None:
    make_certificates(folder / "certs", ["127.0.0.1"], [f"s{i}" for i in range(args.sites)], 2)
    run = {
        "tasks": {"image_size": 32}, "model": {"rank": args.rank},
        "federation": {"method": args.method, "rounds": args.rounds, "participation": 1.0},
        "training": {"local_steps": 1, "batch_size": 8},
        "wire": dict.fromkeys(("uplink", "downlink", "uplink_heads", "downlink_heads"), "float32"),
        "evaluation": {"evaluate_every": 0}, "machine": {"precision": "float32", "threads": 1},
        "server": {"address": f"127.0.0.1:{port}", "min_sites": args.sites, "certificates": "certs"},
        "sites": {f"s{i}": ["digits"] for i in range(args.sites)},
    }  # fmt: skip
    (folder / "server.toml").write_text(tomli_w.dumps(run))
    for name in run["sites"]:
        about = {
            "name": name, "server": f"127.0.0.1:{port}", "folder": name, "certificate": "certs/ca.crt",
            "key": f"certs/{name}.key", "tasks": {"tasks": ["demo:digits"], "max_train": 64, "max_test": 16},
            "machine": {"precision": "float32", "threads": 1},
        }  # fmt: skip
        (folder / f"{name}.toml").write_text(tomli_w.dumps(about))


def kind_of(process: psutil.Process) -> str | None:
    line = " ".join(process.cmdline()).replace("-m matu ", "matu ")
    return next((kind for kind, mark in KINDS.items() if mark in line), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8681)
    parser.add_argument("--sites", type=int, default=1)
    parser.add_argument("--method", default="matu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as running:
        folder = Path(place)
        files(folder, args, port)

        def start(*words: str) -> subprocess.Popen[bytes]:
            said = running.enter_context(open(folder / f"{words[0]}-{words[2]}.out", "wb"))
            process = subprocess.Popen([*MATU, *words], cwd=folder, stdout=said, stderr=said)
            running.callback(process.terminate)
            return process

        server = start("server", "--config", "server.toml", "--out", "run")
        peak: dict[str, int] = {}
        idle, sites, course = 0, False, []
        while server.poll() is None:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    kind, size = kind_of(process), process.memory_info().rss
                    if kind:
                        peak[kind] = max(peak.get(kind, 0), size)
                    if kind == "ServerApp":
                        course.append(round(size / 1e6))
                        idle = idle if sites else size
            log = folder / "run/server.log"
            if not sites and log.is_file() and "waiting for" in log.read_text():
                time.sleep(2)
                sites = True
                for i in range(args.sites):
                    start("site", "--config", f"s{i}.toml")
            time.sleep(0.1)
        if server.returncode:
            raise SystemExit("\n".join(path.read_text() for path in sorted(folder.glob("*.out"))))
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        result = json.loads((folder / "run/result.json").read_text())
    payload = lines[-1]["uplink_bytes"] / args.sites
    found = {
        "what": f"{args.method}, rank {args.rank}, {args.sites} sites, 1 task, {args.rounds} rounds, float32",
        "payload_mb": payload / 1e6,
        "server_app_idle_mb": idle / 1e6,
        "server_app_grew_by_payloads": (peak["ServerApp"] - idle) / payload,
        "server_app_mb": course[::10],
        "peak_mb": {kind: size / 1e6 for kind, size in sorted(peak.items())},
        "seconds_a_round": [line["seconds"] for line in lines],
        "failures": [line["failures"] for line in lines],
        "bytes": {k: result["bytes"][k] for k in ("uplink_total", "downlink_total")}, "transport": result["transport"],
        "machine": platform.platform(), "cores": psutil.cpu_count(), "flwr": version("flwr"),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
