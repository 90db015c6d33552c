"""Flower's ServerApp: the run of a folder, over the grid that Flower gives it."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from matu.federation.flower.orders import public_key_of
from matu.federation.flower.remote import FlowerRemote
from matu.federation.server_file import read_server
from matu.files import append_line, write_atomic
from matu.report.sinks import Sinks
from matu.serve import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that `matu server` prepared; what ends it early is left in `failed.json` for that command."""
    folder = Path(str(context.run_config["folder"]))
    server = read_server(Path(str(context.run_config["config"])))
    models, place = str(context.run_config["models"]), str(context.run_config["keys"])
    keys = {public_key_of(Path(place) / f"{site}.pub"): site for site in server.sites} if place else None
    listening = server.listening

    def tell(text: str) -> None:
        append_line(folder / "server.log", text)

    sinks = Sinks(str(context.run_config["sinks"]).split(), folder, tell)
    try:
        serve(
            server, folder, Path(models) if models else None,
            lambda plan: FlowerRemote(grid, plan, listening.min_sites, listening.deadline_s, keys=keys),
            tell, sinks,
        )  # fmt: skip
    except Exception as error:  # whatever it was: the command that waits must not learn it from Flower, minutes later
        write_atomic(folder / "failed.json", json.dumps({"error": str(error), "kind": type(error).__name__}).encode())
        raise
    finally:
        sinks.close()
