"""For those who have a Flower app: a mod that makes a ClientApp of one task one of several, trained by matu.

The app's own train and evaluate functions are called once for each task that the node holds. They find the task's name
in `message.content["config"]["task"]` and its weights in `message.content["arrays"]`, and give back arrays and metrics
as always. What travels is one message of matu's (docs/wire.md). The server's side is `MatuStrategy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from matu.config import RunConfig
from matu.errors import DataError
from matu.federation.agent import Plan
from matu.federation.flower.records import payload_of, plan_of, reply
from matu.federation.rounds import codecs_of
from matu.methods import Method, Problem, find_method
from matu.methods.base import Local, State
from matu.seeds import stream
from matu.training import Weights
from matu.vectors import Layout
from matu.wire import Envelope, encode

START, RUN, HELLO, MEMORY, ARRAYS = "matu-start", "matu-run", "matu-hello", "matu-memory", "arrays"
FORGOTTEN = "this node has not been told the adapter's start, or has forgotten it"
Held = Mapping[str, tuple[int, Mapping[str, Tensor]]]
"""By task: the number of training examples, and the arrays that are its own (a classifier), as training starts with
them; those that are not may be among them."""


def matu_mod(tasks: Callable[[Context], Held]) -> Mod:
    """A mod for `ClientApp(mods=[...])`.

    Parameters
    ----------
    tasks
        From a node's context to what it holds, the same at every call.

    Raises
    ------
    DataError
        When called: for a message of another adapter, node or set of tasks, and for arrays that are not those asked.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        held = tasks(context)
        if START in message.content.array_records:
            context.state[START] = message.content.array_records[START]
            if context.state.config_records.get(RUN) != (run := message.content.config_records[RUN]):
                context.state.array_records.pop(MEMORY, None)  # of another run
                context.state[RUN] = run
            start = message.content.array_records[START].to_torch_state_dict()
            own = {task: heads_of(arrays, start) for task, (_, arrays) in held.items()}
            note: dict[str, Any] = {
                "tasks": list(held), "samples": [samples for samples, _ in held.values()],
                "heads": [sum(tensor.numel() for tensor in head.values()) for head in own.values()],
            }  # fmt: skip
            return Message(RecordDict({HELLO: ConfigRecord(note)}), reply_to=message)
        if START not in context.state.array_records:
            raise DataError(FORGOTTEN)
        return _Node(message, context, call_next, held).answer()

    return mod


def adapter_of(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that tasks share: LoRA's, or all of a model that has none."""
    found = {name: tensor for name, tensor in arrays.items() if "lora_" in name}
    return found or dict(arrays)


def heads_of(arrays: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that are a task's own, in the order of their names."""
    return {name: arrays[name] for name in sorted(set(arrays) - set(start))}


def fingerprint_of(layout: Layout, start: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, shapes and values."""
    values = hashlib.sha256(layout.flatten({n: t.float() for n, t in start.items()}).numpy().tobytes())
    return layout.fingerprint(start=values.hexdigest())


def method_of(config: RunConfig, problem: Problem) -> Method:
    """A method that leaves training to the app; DataError for one that would change it."""
    name = config.federation.method
    kind = find_method(name)
    if not issubclass(kind, Method):
        raise DataError(f"method '{name}' sends no messages")
    method = kind(problem, config)
    objective = method.objective
    if objective.proximal or objective.linearised or objective.balanced or objective.trained is not None:
        raise DataError(f"method '{name}' is a way to train, which here is the app's; expected matu, for example")
    return method


@dataclass
class _Node:
    """One message to one node."""

    message: Message
    context: Context
    call_next: ClientAppCallable
    held: Held

    def answer(self) -> Message:
        config = Plan.decode(plan_of(self.message), RunConfig()).config
        self.start = self.context.state.array_records[START].to_torch_state_dict()
        self.layout = Layout.of(self.start)
        self.heads = {task: heads_of(arrays, self.start) for task, (_, arrays) in self.held.items()}
        sizes = {task: sum(tensor.numel() for tensor in head.values()) for task, head in self.heads.items()}
        method = method_of(config, Problem(sizes, self.layout, 0))
        envelope = Envelope(payload_of(self.message))
        header = envelope.header
        expected = {
            "method": config.federation.method, "site": str(self.context.node_id), "tasks": tuple(self.held),
            "fingerprint": fingerprint_of(self.layout, self.start),
            "run": self.context.state.config_records[RUN]["run"],
        }  # fmt: skip
        for name, value in expected.items():
            if getattr(header, name) != value:
                raise DataError(f"the server's message has {name} {getattr(header, name)!r}, here it is {value!r}")
        opened = envelope.tensors(method.downlink_parts(header.tasks))
        record = self.context.state.array_records.get(MEMORY)
        memory: State = record.to_torch_state_dict() if record else {}
        self.metrics: dict[str, Any] = {}
        if header.kind == "evaluate":
            for task, weights in method.weights(header.tasks, opened, memory).items():
                self._call(task, weights)
            return Message(RecordDict({"metrics": MetricRecord(self.metrics)}), reply_to=self.message)
        samples = {task: count for task, (count, _) in self.held.items()}
        local = Local(header.tasks, samples, memory, self._train)
        tensors, kept = method.local_update(local, opened)
        self.context.state[MEMORY] = ArrayRecord(dict(kept))
        update = replace(header, kind="update", class_lists=(), samples=tuple(samples.values()), metrics={})
        parts = method.uplink_parts(header.tasks)
        draw = None
        if config.wire.rounding == "stochastic":
            draw = stream(config.machine.seed, "rounding", header.round, header.site)
        answer = reply(encode(update, parts, tensors, codecs_of(config.wire)[0], held=opened, draw=draw), self.message)
        answer.content["metrics"] = MetricRecord(self.metrics)
        return answer

    def _train(self, starts: Mapping[str, Weights]) -> dict[str, Weights]:
        return {task: self._trained(task, weights) for task, weights in starts.items()}

    def _trained(self, task: str, weights: Weights) -> Weights:
        answer = self._call(task, weights).content.array_records
        if ARRAYS not in answer:
            raise DataError(f"task '{task}': the app's train function gave no '{ARRAYS}'")
        arrays = answer[ARRAYS].to_torch_state_dict()
        here, there = set(arrays), {*self.start, *self.heads[task]}
        if here != there:
            raise DataError(f"task '{task}': arrays {sorted(here ^ there)[:5]} are not on both sides of training")
        moved = self._vector({name: arrays[name] for name in self.start}) - self._vector(self.start)
        return Weights(moved, flat([arrays[name] for name in self.heads[task]]))

    def _vector(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return self.layout.flatten({name: tensor.float() for name, tensor in arrays.items()})

    def _call(self, task: str, weights: Weights) -> Message:
        """The app's own function, as if this task were its only one."""
        moved = self.layout.unflatten(self._vector(self.start) + weights.vector)
        arrays = {name: tensor.to(self.start[name].dtype) for name, tensor in moved.items()}
        if weights.head.any():  # nobody has trained it yet: it starts as the app's
            pieces = torch.split(weights.head.reshape(-1), [t.numel() for t in self.heads[task].values()])
            for (name, like), piece in zip(self.heads[task].items(), pieces, strict=True):
                arrays[name] = piece.view(like.shape).to(like.dtype)
        else:
            arrays |= self.heads[task]
        config = dict(self.message.content.config_records.get("config", {})) | {"task": task}
        outer = self.message.content
        self.message.content = RecordDict({ARRAYS: ArrayRecord(arrays), "config": ConfigRecord(config)})
        try:
            answer = self.call_next(self.message, self.context)
        finally:
            self.message.content = outer
        if answer.has_error():
            raise DataError(f"task '{task}': {answer.error.reason}")
        for record in answer.content.metric_records.values():
            self.metrics |= {
                f"{name}/{task}": value for name, value in record.items() if isinstance(value, int | float)
            }
        return answer


def flat(tensors: list[Tensor]) -> Tensor:
    """float32 [n, 1]: a head as methods see it here."""
    return (
        torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])[:, None]
        if tensors
        else torch.zeros(0, 1)
    )
