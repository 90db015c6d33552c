"""One request or reply as Flower carries it: the plan, and the message as an array of bytes.

One array, because Flower spends about 450 bytes and a request of its own on each; raw, because its usual form adds a
header. A large message is cut into several: Flower holds an array three times while it puts it together.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from matu.errors import DataError

QUESTIONS = {
    "hello": "query", "refused": "query.refused", "train": "train", "evaluate": "evaluate", "finish": "evaluate.finish",
}  # fmt: skip
"""Flower's type of message for each question of the server; "refused" is one that only tells."""
_PLAN, _MESSAGE = "plan", "message"
PIECE_BYTES = 32 << 20
"""Of an array at most."""
ASIDE = ("config", "metrics")
"""Records of an app's own that may travel beside a message."""


def request(question: str, plan: bytes, payload: bytes, node: int) -> Message:
    """One of `QUESTIONS` to a node."""
    content = RecordDict({_PLAN: ConfigRecord({_PLAN: plan}), _MESSAGE: _record(payload)})
    return Message(content, dst_node_id=node, message_type=QUESTIONS[question])


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
    arrays: Mapping[str, Array] = content.array_records.get(_MESSAGE, {})
    pieces = [str(number) for number in range(len(arrays))]
    if names != {_MESSAGE} or not pieces or set(arrays) != set(pieces):
        raise DataError(f"records {sorted(names)[:5]}, expected arrays of bytes in '{_MESSAGE}'")
    for array in arrays.values():
        if (array.dtype, array.stype) != ("uint8", "raw") or tuple(array.shape) != (len(array.data),):
            raise DataError(f"an array {array.dtype} {array.stype} {array.shape}, expected {len(array.data)} raw bytes")
    return b"".join(arrays[piece].data for piece in pieces)  # of one piece: itself


def _record(payload: bytes) -> ArrayRecord:
    pieces = [payload[start : start + PIECE_BYTES] for start in range(0, max(len(payload), 1), PIECE_BYTES)]
    return ArrayRecord({str(n): Array("uint8", (len(piece),), "raw", piece) for n, piece in enumerate(pieces)})
