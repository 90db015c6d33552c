"""Bytes: the message, its parts, and how they are coded."""

from matu.wire.header import Header
from matu.wire.message import MAX_RESCALER, SHARES, Codecs, Envelope, arrived, encode
from matu.wire.numbers import NAMES, Numbers
from matu.wire.parts import Kind, Part
from matu.wire.streams import pack, unpack

__all__ = [
    "MAX_RESCALER",
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
    "pack",
    "unpack",
]
