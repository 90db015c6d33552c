"""For those who have a Flower app: a Strategy in the place of FedAvg. The nodes' side is `matu_mod`.

It keeps to Flower's own loop (`Strategy.start`), which waits for every reply and cannot go on after a stop: `matu
server` has neither limit.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from matu.config import FederationConfig, MachineConfig, RunConfig, WireConfig
from matu.errors import DataError, MatuError
from matu.federation.agent import Plan
from matu.federation.flower.mod import FORGOTTEN, HELLO, RUN, START, adapter_of, fingerprint_of, method_of
from matu.federation.flower.records import payload_of, request
from matu.federation.rounds import Federation, codecs_of, open_update
from matu.federation.transport import InProcess
from matu.methods import Problem, State
from matu.seeds import stream
from matu.vectors import Layout
from matu.wire import MAX_SAMPLES, MAX_TASKS, is_name

LOG = logging.getLogger("flwr")
LOOK_EVERY_S = 1.0
"""Seconds between looks for nodes while there are too few."""
MAX_HEAD = 1 << 24
"""Numbers in a task's own arrays."""


class MatuStrategy(Strategy):
    """Many tasks a node, one unified vector a message.

    `initial_arrays` of `start` are the adapter (names with "lora_"; a model without is taken whole); arrays that are a
    task's own come from the nodes. `arrays_of` gives a task's weights after it.

    Parameters
    ----------
    method
        "matu", or another built-in method that leaves training to the app.
    options
        Its own options: ["name=value"].
    fraction_train, fraction_evaluate
        Shares of nodes that are asked; at least one.
    min_nodes
        A round waits until so many nodes are there.
    seed
        Of who is asked.
    wire
        How messages are coded.

    Raises
    ------
    ConfigError
        For an unknown method, option or codec.
    """

    def __init__(
        self,
        method: str = "matu",
        *,
        options: Sequence[str] = (),
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_nodes: int = 2,
        seed: int = 0,
        wire: WireConfig | None = None,
    ) -> None:
        federation = FederationConfig(method=method, options=tuple(options), participation=fraction_train)
        machine = MachineConfig(seed=seed)
        self.config = replace(RunConfig(), federation=federation, wire=wire or WireConfig(), machine=machine)
        self.config.check()
        self.fraction_evaluate, self.min_nodes, self.seed = fraction_evaluate, min_nodes, seed
        self.federation: Federation | None = None
        self.state: State = {}
        self.round = 0
        self._start: dict[str, torch.Tensor] = {}
        self._heads: dict[str, int] = {}
        self._clients: dict[str, tuple[str, ...]] = {}
        self._samples: dict[str, tuple[int, ...]] = {}
        self._refused: set[int] = set()
        self._sent: dict[int, tuple[Message, bytes]] = {}

    def summary(self) -> None:
        """One line for the log."""
        LOG.info("\t├──> matu: method '%s', %s", self.config.federation.method, self.config.wire)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message for each node that is asked, of its own tasks."""
        if self.federation is None:
            self._begin(arrays)
        self.round = server_round
        return self._ask(grid, "train", config, self.config.federation.participation)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold in every reply that is what it should be; the arrays stay the start, the state is the strategy's."""
        federation, metrics = self._known(), _Metrics()
        gathering = federation.method.begin_round(self.state)
        for node, reply in self._told_apart(replies):
            try:
                asked = {str(node): self._sent[node][1]}
                update, tensors, _ = open_update(federation, server_round, str(node), payload_of(reply), asked)
                gathering.add(str(node), update.tasks, update.samples, tensors)
            except ValueError as error:
                LOG.warning("round %s: node %s is left out: %s", server_round, node, error)
                continue
            metrics.add(reply)
        self.state = gathering.finish()
        return None, metrics.mean()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message for each node that is asked: the weights of its tasks, to be measured."""
        return self._ask(grid, "evaluate", config, self.fraction_evaluate) if self.fraction_evaluate else []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means over nodes, by metric and task ("accuracy/birds")."""
        metrics = _Metrics()
        for _, reply in self._told_apart(replies):
            metrics.add(reply)
        return metrics.mean()

    def arrays_of(self, task: str) -> ArrayRecord:
        """The adapter of a task after the last round, by the names of `initial_arrays`.

        Raises
        ------
        DataError
            If no node holds such a task, or the server has no weights of its own by this method.
        """
        federation = self._known()
        weights = federation.method.server_weights(self.state)
        if weights is None or task not in weights:
            raise DataError(f"task {task!r}: the server has {', '.join(weights or {}) or 'no weights of its own'}")
        layout = federation.method.problem.layout
        start = layout.flatten({name: tensor.float() for name, tensor in self._start.items()})
        moved = layout.unflatten(start + weights[task].vector)
        return ArrayRecord({name: Array(t.to(self._start[name].dtype).numpy()) for name, t in moved.items()})

    def _known(self) -> Federation:
        if self.federation is None:
            raise MatuError("no round has begun: strategy.start(...) begins one")
        return self.federation

    def _begin(self, arrays: ArrayRecord) -> None:
        self._start = adapter_of(arrays.to_torch_state_dict())
        layout, f = Layout.of(self._start), self.config.federation
        method = method_of(self.config, Problem({}, layout, 0))
        self.state = method.start()
        self.federation = Federation(
            method, f.method, self._clients, InProcess({}), secrets.token_hex(16),
            fingerprint_of(layout, self._start), {}, 1, f.participation, self.seed,
            codecs_of(self.config.wire)[1], samples=self._samples,
        )  # fmt: skip

    def _ask(self, grid: Grid, kind: str, config: ConfigRecord, fraction: float) -> list[Message]:
        federation = self._known()
        there = self._greet(grid)
        count = max(1, round(fraction * len(there)))
        chosen = stream(self.seed, f"nodes {kind}", self.round).choice(len(there), count, replace=False)
        plan = Plan(self.config).encode()
        self._sent = {}
        for node in sorted(there[i] for i in chosen):
            payload = federation.question(self.state, self.round, str(node), kind)
            message = request(kind, plan, payload, node)
            message.content["config"] = ConfigRecord(dict(config) | {"server-round": self.round})
            self._sent[node] = message, payload
        return [message for message, _ in self._sent.values()]

    def _greet(self, grid: Grid) -> list[int]:
        """The nodes that are there and fit; new ones are told the start and asked what they hold."""
        federation = self._known()
        start = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in self._start.items()})
        while True:
            there = sorted(grid.get_node_ids())
            new = [node for node in there if str(node) not in federation.clients and node not in self._refused]
            told = RecordDict({START: start, RUN: ConfigRecord({"run": federation.run})})
            asked = [Message(told, dst_node_id=node, message_type="train") for node in new]
            replies = list(grid.send_and_receive(asked)) if asked else []
            nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
            for reply in replies:
                node = nodes[reply.metadata.reply_to_message_id]
                try:
                    self._admit(node, reply)
                except DataError as error:
                    if str(node) not in self._samples:  # who was admitted once may be again
                        self._refused.add(node)
                    LOG.warning("node %s is refused: %s", node, error)
            found = [node for node in there if str(node) in federation.clients]
            if len(found) >= self.min_nodes:
                return found
            time.sleep(LOOK_EVERY_S)

    def _admit(self, node: int, reply: Message) -> None:
        federation = self._known()
        if reply.has_error():
            raise DataError(f"it does not say what it holds ({reply.error.reason})")
        try:
            said = reply.content.config_records[HELLO]
            columns: list[Any] = [said[name] for name in ("tasks", "samples", "heads")]
            pairs: list[tuple[Any, Any, Any]] = list(zip(*columns, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("it does not say what it holds: its ClientApp is without matu_mod") from error
        bad = [
            str(task)[:80] for task, count, size in pairs
            if not (isinstance(task, str) and is_name(task) and type(count) is int and 1 <= count <= MAX_SAMPLES)
            or type(size) is not int or not 1 <= size <= MAX_HEAD
        ]  # fmt: skip
        if bad or not 1 <= len(pairs) <= MAX_TASKS or len({task for task, _, _ in pairs}) != len(pairs):
            raise DataError(
                f"tasks {', '.join(bad) or 'none, one twice, or too many'}: expected 1 to {MAX_TASKS} names, each "
                f"with 1 example or more and 1 to {MAX_HEAD} numbers of its own"
            )
        if (numbers := sum(size for _, _, size in pairs)) > MAX_HEAD:
            raise DataError(f"{numbers} numbers in the tasks' own arrays, at most {MAX_HEAD} can be")
        for task, _, size in pairs:
            if self._heads.get(task, size) != size:
                raise DataError(f"task '{task}': its own arrays hold {size} numbers, elsewhere {self._heads[task]}")
        self._heads |= {task: size for task, _, size in pairs}
        federation.method.problem = replace(federation.method.problem, classes=dict(self._heads))
        self._samples[str(node)] = tuple(count for _, count, _ in pairs)
        self._clients[str(node)] = tuple(task for task, _, _ in pairs)

    def _told_apart(self, replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
        """By the message that was sent: Flower's own errors name no sender."""
        nodes = {message.metadata.message_id: node for node, (message, _) in self._sent.items()}
        for reply in replies:
            node = nodes.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            if reply.has_error():
                LOG.warning("round %s: node %s: %s", self.round, node, reply.error.reason)
                if FORGOTTEN in (reply.error.reason or ""):  # it has started anew, and is told the start again
                    self._clients.pop(str(node), None)
                continue
            yield node, reply


class _Metrics:
    """Means over nodes."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def add(self, reply: Message) -> None:
        for name, value in reply.content.metric_records.get("metrics", MetricRecord()).items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.found.setdefault(name, []).append(float(value))

    def mean(self) -> MetricRecord | None:
        if not self.found:
            return None
        return MetricRecord({name: math.fsum(values) / len(values) for name, values in sorted(self.found.items())})
