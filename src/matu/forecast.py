"""What a run's messages will weigh, before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from matu.config import RunConfig, WireConfig
from matu.errors import ConfigError
from matu.federation.rounds import codecs_of
from matu.methods import Local, Method, Problem, State, find_method, method_name
from matu.roots import Roots, read_tasks
from matu.simulate import deal
from matu.tasks import class_list
from matu.training import Weights, build_trainer
from matu.wire import SHARES, Envelope, Header, encode

CHANGE = 0.2
"""Length of a round's change over that of the task vector; 0.13 to 0.2 was seen on real-8 after eleven rounds."""


@dataclass(frozen=True)
class Forecast:
    """Mean bytes of a message, by what they are for, up and down."""

    up: Mapping[str, float]
    down: Mapping[str, float]

    def total(self, direction: str) -> float:
        """Bytes of a message."""
        return sum(getattr(self, direction).values())


def forecast(config: RunConfig, roots: Roots) -> tuple[Forecast, Forecast]:
    """Messages as configured, and in the paper's form.

    Every client's message of a second round is really encoded; its numbers are Gaussian, so exact codecs are
    counted exactly and the others about.

    Raises
    ------
    ConfigError
        For a method that sends nothing.
    """
    kind = find_method(config.federation.method)
    if not issubclass(kind, Method):
        raise ConfigError(f"method '{config.federation.method}': sends no messages")
    tasks = {task.name: task for task in read_tasks(config.tasks, roots)}
    clients = deal(tasks, config.federation, config.machine.seed)
    model = build_trainer(config, roots.models, torch.device("cpu"), "float32").model
    problem = Problem({n: len(task.classes) for n, task in tasks.items()}, model.layout, model.backbone.features)
    method = kind(problem, config)
    held = {site: {task: len(indices) for task, indices in share.items()} for site, share in clients.items()}
    lists = {name: class_list(task.classes) for name, task in tasks.items()}
    name = method_name(config.federation.method)
    return (
        _forecast(method, name, held, lists, config.wire),
        _forecast(method, name, held, lists, WireConfig.exact()),
    )


def _forecast(
    method: Method,
    name: str,
    clients: Mapping[str, Mapping[str, int]],
    class_lists: Mapping[str, str],
    wire: WireConfig,
) -> Forecast:
    draw = torch.Generator().manual_seed(0)

    def moved(part: Tensor, length: float) -> Tensor:
        size = float(part.square().mean().sqrt()) or 1.0
        return part + length * size * torch.randn(part.shape, generator=draw)

    def train(starts: Mapping[str, Weights], *, length: float) -> dict[str, Weights]:
        return {task: Weights(*(moved(part, length) for part in start)) for task, start in starts.items()}

    up, down = codecs_of(wire)
    state, memories = method.start(), dict[str, State]()
    sums = {direction: dict.fromkeys(SHARES, 0) for direction in ("up", "down")}
    for number, length in ((1, 1.0), (2, CHANGE)):
        gathering = method.begin_round(state)
        for site, samples in clients.items():
            tasks = tuple(samples)
            request = Header(
                "train", "0" * 32, number, name, site, "0" * 64, tasks,
                class_lists=tuple(class_lists[task] for task in tasks),
            )  # fmt: skip
            payload = encode(request, method.downlink_parts(tasks), method.downlink(state, site, tasks), down)
            opened = Envelope(payload).tensors(method.downlink_parts(tasks))
            local = Local(tasks, samples, memories.get(site, {}), partial(train, length=length))
            tensors, memories[site] = method.local_update(local, opened)
            gathering.add(site, tasks, tuple(samples.values()), tensors)
            if number == 1:
                continue
            update = dataclasses.replace(
                request, kind="update", class_lists=(), samples=tuple(samples.values()),
                metrics={"loss": 1.0, "images": 1.0},
            )  # fmt: skip
            reply = encode(update, method.uplink_parts(tasks), tensors, up, held=opened)
            for direction, sizes in (
                ("down", Envelope(payload).sizes(method.downlink_parts(tasks))),
                ("up", Envelope(reply).sizes(method.uplink_parts(tasks))),
            ):
                for share, size in sizes.items():
                    sums[direction][share] += size
        state = gathering.finish()
    means = {way: {share: size / len(clients) for share, size in found.items()} for way, found in sums.items()}
    return Forecast(means["up"], means["down"])


def as_table(config: RunConfig, found: tuple[Forecast, Forecast]) -> dict[str, Any]:
    """Both forecasts with the run's totals, as plain values."""
    f = config.federation
    messages = f.rounds * f.drawn
    table: dict[str, Any] = {"method": f.method, "messages_each_way": messages}
    for name, one in zip(("configured", "papers_form"), found, strict=True):
        table[name] = {
            way: {"per_message": {**getattr(one, way)}, "total_bytes": messages * one.total(way)}
            for way in ("up", "down")
        }
    return table


def as_text(config: RunConfig, found: tuple[Forecast, Forecast]) -> str:
    """The same for people."""
    table = as_table(config, found)
    lines = [
        f"{table['method']}: kB of a client's message, mean over {config.federation.clients} clients; "
        f"{table['messages_each_way']:,} messages each way",
        f"{'':26}" + "".join(f"{name:>11}" for name in (*SHARES, "total", "MB a run")),
    ]
    for name, title in (("configured", "as configured"), ("papers_form", "in the paper's form")):
        for way in ("up", "down"):
            sizes, total = table[name][way]["per_message"].values(), table[name][way]["total_bytes"]
            cells = "".join(f"{size / 1e3:11.1f}" for size in (*sizes, sum(sizes)))
            lines.append(f"{f'{title}, {way}':26}{cells}{total / 1e6:11.1f}")
    ratio = [found[0].total(way) / found[1].total(way) for way in ("up", "down")]
    if config.wire.coded_masks:
        lines.append("coded masks: as of unrelated tasks, those of related ones weigh less")
    lines.append(f"as configured over the paper's form: {ratio[0]:.1%} up, {ratio[1]:.1%} down")
    return "\n".join(lines)
