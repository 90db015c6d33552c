"""Flower's ClientApp of a site: the server's questions, and a word that it is not let in."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from matu.errors import ConfigError
from matu.federation.flower.records import QUESTIONS, payload_of, plan_of, reply
from matu.federation.flower.resident import Ask, Caller


def client_app(ask_of: Callable[[Context], Ask]) -> ClientApp:
    """A ClientApp whose nodes answer as those that their contexts stand for: a `matu.federation.agent.Agent.ask`."""
    app = ClientApp()

    def answering(question: str) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            return reply(ask_of(context)(question, plan_of(message), payload_of(message)), message)

        return answer

    for question, kind in QUESTIONS.items():
        category, _, action = kind.partition(".")
        register = {"query": app.query, "train": app.train, "evaluate": app.evaluate}[category]
        register(action or "default")(answering(question))
    return app


def of_this_site(context: Context) -> Ask:
    """What answers where `matu site` started this SuperNode."""
    place = context.node_config.get("site")
    if not isinstance(place, str):
        raise ConfigError("this SuperNode was not started by matu site")
    return Caller(place)


app = client_app(of_this_site)
"""Flower's ClientApp of a deployed site."""
