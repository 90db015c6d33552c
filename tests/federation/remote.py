"""Sites that are asked as if they were elsewhere: a request is bytes, and finds a new `Agent`, as in a new process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from matu.config import RunConfig, TasksConfig
from matu.errors import DataError, MatuError
from matu.federation.agent import Agent, Plan
from matu.federation.roster import Roster
from matu.federation.rounds import codecs_of
from matu.federation.server import Admit, Server
from matu.federation.transport import Failure
from matu.methods import Problem, find_method
from matu.roots import Roots
from matu.training import build_trainer, prepare_machine
from test_simulate import small

HOLDS = {"east": ("left", "right"), "north": ("left", "middle"), "south": ("middle", "right", "left")}


def run_config(vit: Path, **changes: Any) -> RunConfig:
    return small(vit, **{"rounds": 3, "participation": 0.7, "evaluate_every": 0} | changes)


@dataclass
class Nodes:
    """A `Remote` in this process. Node ids say nothing of names."""

    plan: bytes
    agents: dict[str, Callable[[], Agent]]
    away: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    meddle: Callable[[str, str, bytes], bytes] = lambda question, site, reply: reply
    named: dict[str, str] = field(default_factory=dict)

    def look(self, admit: Admit) -> set[str]:
        for node in self.agents:
            if node not in self.named and node not in self.away:
                answer = self.meddle("hello", node, self.agents[node]().ask("hello", self.plan, b""))
                with contextlib.suppress(DataError):
                    self.named[node] = admit(node, answer, None, {*self.named.values()} - self.away)
        return {name for node, name in self.named.items() if node not in self.away}

    def ask(self, question: str, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        for node, name in sorted(self.named.items(), reverse=True):  # not the order of names
            if name in payloads:
                self.asked.append((question, name))
                yield name, self._answer(question, node, name, payloads[name])

    def forget(self, site: str) -> None:
        self.named = {node: name for node, name in self.named.items() if name != site}

    def _answer(self, question: str, node: str, name: str, payload: bytes) -> bytes | Failure:
        try:
            reply = self.agents[node]().ask(question, self.plan, payload)
        except MatuError as error:
            return Failure("site", str(error))
        return self.meddle(question, name, reply)


@dataclass
class House:
    """A server with its sites, all folders under one."""

    config: RunConfig
    data: Path
    folder: Path
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: HOLDS)

    def agent(self, name: str) -> Agent:
        folders = tuple(str(self.data / task) for task in self.holds[name])
        own = replace(RunConfig(), tasks=TasksConfig(folders), machine=self.config.machine)
        return Agent(name, own, Roots(None, None, self.folder / "cache"), self.folder / name)

    def nodes(self) -> Nodes:
        plan = Plan(self.config).encode()
        return Nodes(plan, {f"node-{i}": partial(self.agent, name) for i, name in enumerate(self.holds)})

    def server(self, nodes: Nodes, said: list[str], **changes: Any) -> Server:
        device = prepare_machine(self.config.machine)
        model = build_trainer(self.config, None, device, "float32").model
        roster = Roster(self.folder / "server/sites.json", model.fingerprint, changes.pop("admitted", None))
        classes = {task: len(names) for task, names in roster.classes.items()}
        kind = find_method(self.config.federation.method)
        method = kind(Problem(classes, model.layout, model.backbone.features), self.config)
        down = codecs_of(self.config.wire)[1]
        return Server(
            self.config, method, roster, nodes, self.folder / "server", "ab" * 16, down, tell=said.append,
            look_every_s=0.01, **{"min_sites": len(self.holds)} | changes,
        )  # fmt: skip
