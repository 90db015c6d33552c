"""One request or reply as Flower carries it: the plan, and the message as one array of bytes.

One array, because Flower spends about 450 bytes and a request of its own on each; raw, because its usual form adds a
header.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from matu.errors import DataError

_PLAN, _MESSAGE = "plan", "message"
ASIDE = ("config", "metrics")
"""Records of an app's own that may travel beside a message."""


def request(question: str, plan: bytes, payload: bytes, node: int) -> Message:
    """A question to a node: "query" (who are you), "train", "evaluate" or "evaluate.finish"."""
    content = RecordDict({_PLAN: ConfigRecord({_PLAN: plan}), _MESSAGE: _record(payload)})
    return Message(content, dst_node_id=node, message_type=question)


def reply(payload: bytes, asked: Message) -> Message:
    """The answer to a question."""
    return Message(RecordDict({_MESSAGE: _record(payload)}), reply_to=asked)


def plan_of(message: Message) -> bytes:
    """The plan that comes with a question; DataError if there is none."""
    try:
        plan = message.content.config_records[_PLAN][_PLAN]
    except KeyError:
        raise DataError("a request without a plan") from None
    if not isinstance(plan, bytes):
        raise DataError(f"a plan that is {type(plan).__name__}, expected bytes")
    return plan


def payload_of(message: Message) -> bytes:
    """The bytes of a question or an answer.

    Raises
    ------
    DataError
        If it holds anything else: other records, other arrays, another type, or a shape that is not their number.
    """
    content = message.content
    names = {*content.config_records, *content.array_records, *content.metric_records} - {_PLAN, *ASIDE}
    if names != {_MESSAGE} or set(content.array_records.get(_MESSAGE, {})) != {_MESSAGE}:
        raise DataError(f"records {sorted(names)[:5]}, expected one array in '{_MESSAGE}'")
    array = content.array_records[_MESSAGE][_MESSAGE]
    if (array.dtype, array.stype) != ("uint8", "raw") or tuple(array.shape) != (len(array.data),):
        raise DataError(f"an array {array.dtype} {array.stype} {array.shape}, expected {len(array.data)} raw bytes")
    return bytes(array.data)


def _record(payload: bytes) -> ArrayRecord:
    return ArrayRecord({_MESSAGE: Array("uint8", (len(payload),), "raw", payload)})
