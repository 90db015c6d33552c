"""Bytes: the message, its parts, and how they are coded."""

from matu.wire.header import MAX_SAMPLES, MAX_TASKS, Header, is_name
from matu.wire.message import MAX_RESCALER, SHARES, Codecs, Envelope, arrived, encode
from matu.wire.numbers import NAMES, Numbers
from matu.wire.parts import Kind, Part
from matu.wire.streams import pack, unpack

__all__ = [
    "MAX_RESCALER",
    "MAX_SAMPLES",
    "MAX_TASKS",
    "NAMES",
    "SHARES",
    "Codecs",
    "Envelope",
    "Header",
    "Kind",
    "Numbers",
    "Part",
    "arrived",
    "encode",
    "is_name",
    "pack",
    "unpack",
]
