"""Commands of a deployed federation: certs, server, site."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from matu.cli.common import DONE, INTERRUPTED, Folders, prepare_libraries, read_options, roots
from matu.cli.report import leave_report
from matu.report.sinks import SinkName, check_sinks

_NOT_SECURED = "no TLS and no keys: whoever reaches the port takes part, and whoever listens reads every update"


@dataclass(frozen=True)
class CertsArguments:
    """Make the keys and certificates of a federation.

    What is there already is kept, so that sites can be added.

    Example:
        matu certs --hosts fl.example.org 192.0.2.7 --sites north south
    """

    hosts: tuple[str, ...] = ()
    """Names or addresses by which sites reach the server: fl.example.org 192.0.2.7."""
    sites: tuple[str, ...] = ()
    """Names of the sites."""
    out: Path = Path("certs")
    """Folder to write to."""
    days: int = 365
    """For how long certificates hold."""


@dataclass(frozen=True)
class ServerArguments:
    """Run a federation whose sites are elsewhere, over TLS.

    The same command goes on after any stop.

    Example:
        matu server --config server.toml --out run
    """

    config: Path
    """server.toml: the run, [server] and [sites]."""
    out: Path
    """The run folder."""
    models_root: Path | None = None
    """Folder of backbone folders; the environment's MATU_MODELS by default."""
    insecure: bool = False
    """No TLS and no keys; on 127.0.0.1 only."""
    insecure_anywhere: bool = False
    """With --insecure: on any address."""
    json: bool = False
    """Print result.json alone on stdout."""
    report: bool = True
    """Leave report.html in the run folder."""
    sinks: tuple[SinkName, ...] = ()
    """Who is told the rounds besides, each an extra: tensorboard, mlflow, wandb."""


@dataclass(frozen=True)
class SiteArguments:
    """Take part in a federation with this site's tasks, until it is stopped.

    Example:
        matu site --config north.toml
    """

    config: Path
    """site.toml: the site's name, its server, its tasks."""
    insecure: bool = False
    """No TLS and no keys; to a server on 127.0.0.1 only."""
    insecure_anywhere: bool = False
    """With --insecure: to any server."""


def certs(arguments: list[str]) -> int:
    """matu certs."""
    prepare_libraries()
    asked = read_options(CertsArguments, arguments, "certs")
    from matu.federation.flower.certificates import make_certificates

    made = make_certificates(asked.out, asked.hosts, asked.sites, asked.days)
    for path in made:
        print(path)
    if not made:
        print(f"{asked.out}: everything is there already")
    print(
        f"\nNext: send a site {asked.out / 'ca.crt'} and its own .key by a way nobody else reads, and delete it here;"
        f"\nkeep {asked.out / 'ca.key'} off the server. server.toml names this folder: [server] certificates."
    )
    return DONE


def server(arguments: list[str]) -> int:
    """matu server."""
    prepare_libraries()
    asked = read_options(ServerArguments, arguments, "server")
    from matu.federation.flower.deploy import Deployment
    from matu.federation.server_file import read_server

    found = read_server(asked.config)
    check_sinks(asked.sinks)
    models = roots(Folders(models_root=asked.models_root)).models
    _warn(asked.insecure)
    deployment = Deployment(
        asked.config, found, asked.out, models, asked.insecure, asked.insecure_anywhere,
        lambda text: print(text, file=sys.stderr if asked.json else sys.stdout, flush=True), asked.sinks,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _end)
    try:
        result = deployment.run()
    except KeyboardInterrupt:
        print(f"\nmatu: stopped; the same command goes on with {asked.out}", file=sys.stderr)
        return INTERRUPTED
    if asked.report:
        leave_report(asked.out)
    if asked.json:
        print(json.dumps(result, indent=1))
        return DONE
    for task, found_ in result["accuracy"].items():
        print(f"{task}: {100 * found_['delivered']:.1f} % delivered")
    more = [name for name in ("artifact/", "report.html") if (asked.out / name).exists()]
    print("  ".join([f"{asked.out}: result.json", "sites.json", "metrics.jsonl", "checkpoint/", *more]))
    return DONE


def site(arguments: list[str]) -> int:
    """matu site."""
    prepare_libraries()
    asked = read_options(SiteArguments, arguments, "site")
    from matu.federation.flower.join import run_site
    from matu.federation.site_file import read_site

    found = read_site(asked.config)
    _warn(asked.insecure)
    signal.signal(signal.SIGTERM, _end)
    run_site(
        asked.config, found, insecure=asked.insecure, anywhere=asked.insecure_anywhere,
        tell=lambda text: print(text, flush=True),
    )  # fmt: skip
    return DONE


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM, as an exception that lets everything be put away."""
    print("matu: told to end", file=sys.stderr)
    sys.exit(128 + number)


def _warn(insecure: bool) -> None:
    if insecure:
        print(f"matu: --insecure: {_NOT_SECURED}", file=sys.stderr)
