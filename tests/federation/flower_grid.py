"""A Flower grid in this process: every message goes to its node's app when replies are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Node = Callable[[Message], Message | None]
"""None: it never answers."""


def app_node(app: ClientApp, node: int, **config: int) -> Node:
    """A node that runs an app, and fails as Flower's own do."""
    about = {name.replace("_", "-"): value for name, value in config.items()}
    context = Context(run_id=1, node_id=node, node_config=about, state=RecordDict(), run_config={})

    def answer(message: Message) -> Message:
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<{error!r}>"), reply_to=message)

    return answer


@dataclass
class LocalGrid(Grid):
    """Nodes by id; those in `lost` were there when asked and are no more."""

    nodes: dict[int, Node]
    lost: set[int] = field(default_factory=set)
    log: list[tuple[str, int]] = field(default_factory=list)
    keys: dict[int, bytes] = field(default_factory=dict)
    started: dict[int, str] = field(default_factory=dict)
    _sent: dict[str, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    def set_run(self, run):
        raise AssertionError("nothing of ours asks for this")

    @property
    def run(self):
        raise AssertionError("nothing of ours asks for this")

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise AssertionError("nothing of ours asks for this")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """What Flower's own strategies use; who never answers is missing."""
        return self.pull_messages([one for one in self.push_messages(list(messages)) if one])

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node, public_key=self.keys.get(node, b""), last_activated_at=self.started.get(node, ""))
            for node in self.nodes
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            name = f"message-{len(self.log)}"
            self.log.append((message.metadata.message_type, node))
            if node not in self.nodes:
                ids.append("")
                continue
            message.metadata.__dict__["_message_id"] = name
            self._sent[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for name in reversed(list(message_ids)):
            message = self._sent.get(name)
            if message is None:
                continue
            node = message.metadata.dst_node_id
            if node in self.lost or node not in self.nodes:
                answer: Message | None = Message(Error(5, "Node unavailable"), reply_to=message)
            else:
                answer = self.nodes[node](message)
            if answer is not None:
                del self._sent[name]
                found.append(answer)
        return found
