"""Virtual sites over Flower's simulation on Ray: several train at a time, each in a process of its own.

The round loop stays in this process. What a site keeps between rounds travels with its messages, so that any worker can
answer for any site, and a checkpoint is that of any other run.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import queue
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors

from matu.config import RunConfig
from matu.errors import ConfigError, MatuError
from matu.federation.flower.records import payload_of, reply
from matu.federation.flower.remote import FlowerRemote
from matu.federation.site import Site
from matu.federation.transport import Failure, Questions, Transport
from matu.methods import Method, State
from matu.report import Display
from matu.roots import Roots
from matu.simulate import Run, prepare
from matu.training import parallel_jobs
from matu.wire import Envelope
from matu.words import how_to_install

START_S = 120.0
"""Seconds that Ray may take until its workers are there."""
STOP_S = 30.0
"""Seconds that Flower and Ray get to end."""
LOOK_EVERY_S = 0.2
_LENGTH = struct.Struct("<Q")


def on_ray(jobs: int = 0) -> Callable[[Run, Mapping[str, Site]], AbstractContextManager[Transport]]:
    """A carrier for `matu.simulate.simulate`.

    Parameters
    ----------
    jobs
        Sites at work at a time; 0: one a core (each site's threads taken together) on a CPU, one on a GPU.

    Raises
    ------
    ConfigError
        If Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"matu simulate needs Ray; {how_to_install('ray')}")

    @contextmanager
    def carrier(run: Run, sites: Mapping[str, Site]) -> Iterator[Transport]:
        with _grid(run, len(sites), jobs) as grid:
            yield Virtual(grid, run, sites)

    return carrier


class Virtual:
    """Sites that are answered for by Ray's workers (`matu.federation.transport.Transport`)."""

    def __init__(self, grid: Grid, run: Run, sites: Mapping[str, Site]) -> None:
        self.sites, self.clock = sites, run.trainer.clock
        names = dict(zip(sorted(grid.get_node_ids()), sites, strict=True))
        self.remote = FlowerRemote(grid, b"", poll_s=0.02, names=names)

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply, in order of arrival; a site that answered has its new memory."""
        began = time.perf_counter()
        asked = Questions(payloads, lambda name: join(self.sites[name].memory, payloads[name]))
        for name, answer in self.remote.ask("train", asked):
            if isinstance(answer, Failure):
                yield name, answer
                continue
            self.sites[name].memory, update = part(answer)
            self.clock.train_images += int(Envelope(update).header.metrics.get("images", 0))
            self.clock.train_s += time.perf_counter() - began
            began = time.perf_counter()
            yield name, update
            began = time.perf_counter()


def join(memory: State, message: bytes) -> bytes:
    """A site's memory and a message as one."""
    kept = bytes_of_tensors(dict(memory)) if memory else b""
    return _LENGTH.pack(len(kept)) + kept + message


def part(payload: bytes) -> tuple[State, bytes]:
    """The inverse of `join`."""
    end = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    kept = payload[_LENGTH.size : end]
    return tensors_of_bytes(kept) if kept else {}, payload[end:]


def virtual_app(config: RunConfig, roots: Roots, stop: Path) -> ClientApp:
    """A ClientApp that answers for every site of a run, in a process of Ray's, which ends once `stop` is there."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        _end_at(stop)
        memory, asked = part(payload_of(message))
        site = _sites(config, roots)[Envelope(asked).header.site]
        site.memory = memory
        update = site(asked)
        return reply(join(site.memory, update), message)

    return app


@lru_cache(maxsize=1)
def _end_at(stop: Path) -> None:
    """From here on this process ends when the file appears, whatever it is doing."""

    def watch() -> None:
        while not stop.exists():
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=1)
def _sites(config: RunConfig, roots: Roots) -> dict[str, Site]:
    """Built once in a process."""
    run = prepare(config, roots.cache, roots, Display(quiet=True))
    assert isinstance(run.method, Method)
    return run.sites(run.method)


@contextmanager
def _grid(run: Run, count: int, jobs: int) -> Iterator[Grid]:
    """Flower's simulation in a thread; this one gets its grid, and its nodes when all are there.

    Interrupted, Ray's workers end themselves, and Flower's threads, which wait for them, hear that from Ray.
    `ray.shutdown` in this thread would leave them waiting for ever.
    """
    from flwr.simulation import run_simulation

    importlib.import_module("ray")  # which sets its loggers' levels
    machine = run.config.machine
    threads = max(machine.threads, 1)
    on_gpu = torch.device(machine.device).type == "cuda"
    at_a_time = min(count, jobs or parallel_jobs(machine, count))
    backend: dict[str, dict[str, Any]] = {
        "init_args": {"num_cpus": at_a_time * threads, "include_dashboard": False, "configure_logging": False,
                      "log_to_driver": False},
        "client_resources": {"num_cpus": threads, "num_gpus": 1 / at_a_time if on_gpu else 0.0},
    }  # fmt: skip
    grids: queue.Queue[Grid] = queue.Queue()
    done, ended = threading.Event(), threading.Event()
    failed: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def lend(grid: Grid, context: Context) -> None:
        grids.put(grid)
        done.wait()

    def simulation() -> None:
        try:
            run_simulation(server, virtual_app(run.config, run.roots, stop), count, backend_config=backend)
        except Exception as error:  # whatever Flower and Ray raise: told by the thread that waits
            failed.append(error)
        finally:
            ended.set()

    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # advice for those who type their commands
    thread = threading.Thread(target=simulation, daemon=True)
    with tempfile.TemporaryDirectory(prefix="matu-") as folder:
        stop = Path(folder) / "stop"
        thread.start()
        try:
            yield _ready(grids, count, ended, failed)
        except BaseException:
            stop.touch()  # nobody waits for what is under way
            raise
        finally:
            done.set()
            thread.join(STOP_S)


def _ready(grids: queue.Queue[Grid], count: int, ended: threading.Event, failed: list[BaseException]) -> Grid:
    limit, grid = time.monotonic() + START_S, None
    while time.monotonic() < limit and not ended.is_set():
        if grid is None and not grids.empty():
            grid = grids.get()
        if grid is not None and len(list(grid.get_node_ids())) == count:
            return grid
        time.sleep(0.05)
    raise MatuError(f"Flower's simulation did not start: {failed[0] if failed else f'no nodes in {START_S:g} s'}")
