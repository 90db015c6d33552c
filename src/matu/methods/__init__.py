"""Federated methods, one file each: what is sent, trained, aggregated and kept."""

from matu.methods.base import Local, Method, Problem, Round, State
from matu.methods.matu import Matu

METHODS: dict[str, type[Method]] = {"matu": Matu}

__all__ = ["METHODS", "Local", "Matu", "Method", "Problem", "Round", "State"]
