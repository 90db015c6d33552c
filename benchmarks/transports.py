"""The same ten rounds three ways: in one process, virtual sites on Ray, and real sites over Flower with TLS and keys.

python benchmarks/transports.py [--rounds 10] [--out FILE]

Three sites with two tasks of the demo each, all of a task's images at its one holder, one thread a site. Seconds are
from the start of a command to the end of its rounds, and by round as the server counts them.
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
from typing import Any

import psutil
import tomli_w

from matu.federation.flower.certificates import make_certificates
from watch import processor

MATU = [sys.executable, "-m", "matu"]
SITES = {"client-0": ["digits", "signs"], "client-1": ["letters_sans", "landcover"],
         "client-2": ["figures_form", "letters_serif"]}  # fmt: skip
TASKS = {"max_train": 100, "max_test": 100, "image_size": 32}


def config(rounds: int) -> dict[str, Any]:
    return {
        "tasks": {"tasks": [f"demo:{task}" for held in SITES.values() for task in held], **TASKS},
        "federation": {"method": "matu", "rounds": rounds, "participation": 1.0, "clients": 3,
                       "task_groups": ["+".join(held) for held in SITES.values()]},
        "training": {"learning_rate": 3e-3}, "evaluation": {"evaluate_every": 0},
        "machine": {"precision": "float32", "threads": 1},
    }  # fmt: skip


def rounds_of(folder: Path, began: float) -> dict[str, Any]:
    path = folder / "metrics.jsonl"
    seconds = [json.loads(line)["seconds"] for line in path.read_text().splitlines()]
    return {
        "to_the_last_round_s": round(path.stat().st_mtime - began, 1), "rounds_s": round(sum(seconds), 1),
        "median_round_s": sorted(seconds)[len(seconds) // 2], "first_round_s": seconds[0],
    }  # fmt: skip


def local(command: str, folder: Path, rounds: int) -> dict[str, Any]:
    (folder / "run.toml").write_text(tomli_w.dumps(config(rounds)))
    began, out = time.time(), folder / command
    words = [*MATU, command, "--config", str(folder / "run.toml"), "--out", str(out), "--json"]
    subprocess.run(words, check=True, capture_output=True)
    return rounds_of(out, began)


def deployed(folder: Path, rounds: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    make_certificates(folder / "certs", ["127.0.0.1"], list(SITES), 2)
    table = config(rounds)
    table["tasks"] = {"image_size": TASKS["image_size"]}
    table["server"] = {"address": f"127.0.0.1:{port}", "min_sites": 3, "certificates": "certs"}
    (folder / "server.toml").write_text(tomli_w.dumps(table | {"sites": SITES}))
    with contextlib.ExitStack() as running:
        began = time.time()

        def start(*words: str) -> subprocess.Popen[bytes]:
            said = running.enter_context(open(folder / f"{words[0]}-{Path(words[2]).stem}.out", "wb"))
            process = subprocess.Popen([*MATU, *words], cwd=folder, stdout=said, stderr=said)
            running.callback(process.terminate)
            return process

        server = start("server", "--config", "server.toml", "--out", "deployed")
        for name, held in SITES.items():
            about = {
                "name": name, "server": f"127.0.0.1:{port}", "folder": name, "certificate": "certs/ca.crt",
                "key": f"certs/{name}.key", "machine": {"precision": "float32", "threads": 1},
                "tasks": {"tasks": [f"demo:{task}" for task in held], **TASKS},
            }  # fmt: skip
            (folder / f"{name}.toml").write_text(tomli_w.dumps(about))
            start("site", "--config", f"{name}.toml")
        if server.wait():
            raise SystemExit("\n".join(path.read_text() for path in sorted(folder.glob("*.out"))))
    return rounds_of(folder / "deployed", began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "warm").mkdir()
        local("run", folder / "warm", 1)  # so that all find the images decoded
        found: dict[str, Any] = {
            "in one process": local("run", folder, args.rounds),
            "virtual sites on Ray": local("simulate", folder, args.rounds),
            "real sites": deployed(folder, args.rounds),
        }
    found |= {
        "machine": platform.platform(), "processor": processor(), "cores": psutil.cpu_count(), "flwr": version("flwr"),
        "date": time.strftime("%Y-%m-%d"), "load_after": psutil.getloadavg()[0],
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
