"""Flower's ClientApp of a site: three questions, each answered by an `Agent`, in a process of its own when deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from matu.errors import ConfigError
from matu.federation.agent import Agent
from matu.federation.flower.records import payload_of, plan_of, reply

AgentOf = Callable[[Context], Agent]


def client_app(agent_of: AgentOf) -> ClientApp:
    """A ClientApp whose nodes answer as the agents that their contexts stand for."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return reply(agent_of(context).hello(plan_of(message)), message)

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


def deployed_agent(context: Context) -> Agent:
    """The agent of the site file that a SuperNode was started with (node-config site="/folder/site.toml")."""
    from matu.federation.site_file import read_site

    place = context.node_config.get("site")
    if not isinstance(place, str):
        raise ConfigError("this SuperNode was started without --node-config 'site=\"/folder/site.toml\"'")
    return read_site(Path(place)).agent()
