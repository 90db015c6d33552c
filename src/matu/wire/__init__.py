"""Bytes: the message schema and its codec."""

from matu.wire.message import Message, decode, encode, pack_bits, unpack_bits

__all__ = ["Message", "decode", "encode", "pack_bits", "unpack_bits"]
