"""One process that answers for a site: Flower starts a new one for every message, which would load everything anew.

Flower's process imports no torch; it hands the bytes over a socket in a folder that only the site's account may enter.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection
from typing import TYPE_CHECKING

from matu.errors import DataError, MatuError
from matu.words import printable

if TYPE_CHECKING:
    from matu.federation.agent import Agent

Ask = Callable[[str, bytes, bytes], bytes]
"""From a question, the plan and a message to the answer, as `matu.federation.agent.Agent.ask`."""
REFUSED = "refused by the server: "
"""How what is told begins when this site may not take part."""
_GIVEN, _FAILED = b"+", b"-"


@contextlib.contextmanager
def resident(agent_of: Callable[[], Agent], tell: Callable[[str], None]) -> Iterator[str]:
    """Answer questions in a thread, one after another, as long as the block lasts.

    Parameters
    ----------
    agent_of
        Makes the agent, for the first question.
    tell
        Takes a line for the site's people: what was asked, and why an answer failed. The server learns only that it
        did, because reasons may name files.

    Yields
    ------
    str
        Where to ask, for `Caller`.
    """
    answers, over = _Answers(agent_of, tell), threading.Event()
    with tempfile.TemporaryDirectory(prefix="matu-") as folder:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/site")
        listener.listen()

        def serve() -> None:
            with listener:  # closed here alone: its number may be another file's a moment after
                while not over.is_set():
                    try:
                        line, _ = listener.accept()
                    except OSError:  # the block is over, or this process has no file left to open
                        over.wait(0.1)
                        continue
                    with contextlib.suppress(OSError, EOFError), Connection(line.detach()) as asked:
                        answers(asked)  # whoever asked may be gone

        threading.Thread(target=serve, name="resident", daemon=True).start()
        try:
            yield f"{folder}/site"
        finally:
            over.set()
            with contextlib.suppress(OSError):  # macOS has no word for it
                listener.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept


class _Answers:
    def __init__(self, agent_of: Callable[[], Agent], tell: Callable[[str], None]) -> None:
        self.agent_of, self.tell = agent_of, tell
        self.agent: Agent | None = None

    def __call__(self, line: Connection) -> None:
        question, plan, payload = line.recv_bytes().decode(), line.recv_bytes(), line.recv_bytes()
        began = time.monotonic()
        if question == "refused":
            self.tell(REFUSED + printable(payload.decode(errors="replace")))
            line.send_bytes(_GIVEN)
            line.send_bytes(b"")
            return
        try:
            self.agent = self.agent or self.agent_of()
            answer = self.agent.ask(question, plan, payload)
        except Exception as error:  # the site lives on; its people see why
            reason = str(error) if isinstance(error, MatuError) else traceback.format_exc()
            self.tell(f"{question}: no answer: {reason}")
            line.send_bytes(_FAILED)
            line.send_bytes(type(error).__name__.encode())
            return
        self.tell(f"{question}: answered after {time.monotonic() - began:.1f} s")
        line.send_bytes(_GIVEN)
        line.send_bytes(answer)


class Caller:
    """Puts Flower's questions to a resident.

    Parameters
    ----------
    place
        What `resident` gave.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self, question: str, plan: bytes, payload: bytes) -> bytes:
        """As `matu.federation.agent.Agent.ask`; DataError if there is no answer."""
        try:
            with Client(self.place, "AF_UNIX") as line:
                for part in (question.encode(), plan, payload):
                    line.send_bytes(part)
                kind, answer = line.recv_bytes(), line.recv_bytes()
        except (OSError, EOFError) as error:
            raise DataError("the site's process is gone") from error
        if kind != _GIVEN:
            raise DataError(f"the site cannot answer ({answer.decode()[:80]}); it has the reason")
        return answer
