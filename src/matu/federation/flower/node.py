"""Flower's ClientApp of a site: four questions, and a word that it is not let in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from matu.errors import ConfigError
from matu.federation.flower.records import payload_of, plan_of, reply
from matu.federation.flower.resident import Caller


class Answers(Protocol):
    """What answers for a node: a `matu.federation.agent.Agent`, or what asks one."""

    def hello(self, plan: bytes) -> bytes:
        """Who this site is."""

    def refused(self, reason: bytes) -> None:
        """Why it does not take part."""

    def train(self, plan: bytes, message: bytes) -> bytes:
        """Its update."""

    def evaluate(self, plan: bytes, message: bytes) -> bytes:
        """Its score."""

    def finish(self, plan: bytes, message: bytes) -> bytes:
        """Its last score."""


def client_app(agent_of: Callable[[Context], Answers]) -> ClientApp:
    """A ClientApp whose nodes answer as the agents that their contexts stand for."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return reply(agent_of(context).hello(plan_of(message)), message)

    @app.query("refused")
    def refused(message: Message, context: Context) -> Message:
        agent_of(context).refused(payload_of(message))
        return reply(b"", message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(agent_of(context).train(plan_of(message), payload_of(message)), message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(agent_of(context).evaluate(plan_of(message), payload_of(message)), message)

    @app.evaluate("finish")
    def finish(message: Message, context: Context) -> Message:
        return reply(agent_of(context).finish(plan_of(message), payload_of(message)), message)

    return app


def of_this_site(context: Context) -> Answers:
    """What answers where `matu site` started this SuperNode."""
    place = context.node_config.get("site")
    if not isinstance(place, str):
        raise ConfigError("this SuperNode was not started by matu site")
    return Caller(place)


app = client_app(of_this_site)
"""Flower's ClientApp of a deployed site."""
