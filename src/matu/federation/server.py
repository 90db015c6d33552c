"""A run whose data lie elsewhere: the server asks, the sites answer, and the server never sees an image."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from matu.config import RunConfig
from matu.errors import DataError
from matu.federation.checkpoint import Progress, load_checkpoint, save_checkpoint
from matu.federation.hello import Hello, Score
from matu.federation.roster import Roster
from matu.federation.rounds import LONGEST_REASON, Federation, run_rounds
from matu.federation.transport import Failure, Questions
from matu.files import append_line, keep_lines
from matu.methods import Method, State
from matu.wire import Codecs


class Admit(Protocol):
    """Lets a node in, or raises DataError, which the node is told."""

    def __call__(self, node: str, answer: bytes | Failure, owner: str | None, there: Collection[str]) -> str:
        """The name that the node shall have: of the site whose key it has (`owner`; None: keys are not known).

        `there` are the names of sites that are there now: of those it can be none.
        """


class Remote(Protocol):
    """Sites somewhere else.

    `look` asks every node that is new, or has started anew, who it is, gives each answer to `admit`, and tells which
    names are there now. `ask` puts a question ("train", "evaluate", "finish") to some of them and gives replies as
    they arrive, each site once; it may end before all have answered. `forget` makes the next `look` ask a site's node
    anew.
    """

    def look(self, admit: Admit) -> set[str]:
        """The sites that are there now."""

    def ask(self, question: str, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        """Pairs of site and reply."""

    def forget(self, site: str) -> None:
        """The next `look` asks its node anew who it is."""


@dataclass(frozen=True)
class _Training:
    """`Remote` as the round loop sees it."""

    remote: Remote

    def exchange(self, payloads: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Failure]]:
        return self.remote.ask("train", payloads)


@dataclass
class Server:
    """Runs a federation of remote sites, from its first round or from its checkpoint.

    Attributes
    ----------
    config
        What to run; its tasks, clients and partition say nothing here.
    method
        Built with the tasks of the roster; new tasks are added to its problem as sites bring them.
    roster
        Who may take part.
    remote
        Carries requests.
    folder
        The run folder: metrics.jsonl, checkpoint/.
    run
        Which run this is: 32 hex digits.
    codecs
        How downlinks travel.
    min_sites
        A round waits until so many sites are there.
    tell
        Takes a line for people.
    on_round
        Takes each round's line.
    look_every_s
        Seconds between looks for sites while there are too few.
    """

    config: RunConfig
    method: Method
    roster: Roster
    remote: Remote
    folder: Path
    run: str
    codecs: Codecs
    min_sites: int = 1
    tell: Callable[[str], None] = print
    on_round: Callable[[Mapping[str, Any]], None] = lambda _: None
    look_every_s: float = 1.0

    def rounds(self) -> Progress:
        """Go on to the last round; the state after it.

        Raises
        ------
        MatuError
            If nobody answers in several rounds in a row, or numbers leave their range.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = f"{self.run}{self.roster.fingerprint}"
        progress = load_checkpoint(self.folder / "checkpoint", identity) or Progress(0, self.method.start())
        keep_lines(self.folder / "metrics.jsonl", progress.round)
        return run_rounds(
            self._federation(), progress, before=self.gather, evaluate=self._evaluate, record=self._record,
            save=lambda reached: save_checkpoint(self.folder / "checkpoint", reached, identity),
        )  # fmt: skip

    def _federation(self) -> Federation:
        f = self.config.federation
        return Federation(
            self.method, f.method, self.roster.clients, _Training(self.remote), self.run, self.roster.fingerprint,
            self.roster.class_lists, f.rounds, f.participation, self.config.machine.seed, self.codecs,
            self.config.defence, self.roster.samples,
        )  # fmt: skip

    def measure(self, progress: Progress, question: str = "evaluate") -> dict[str, dict[str, float]]:
        """By site and task, accuracy on the site's own test images of what it gets of a state.

        With the question "finish" sites also keep what they get. Sites that do not answer, and tasks without test
        images, are left out.
        """
        federation, number = self._federation(), max(progress.round, 1)
        payloads = Questions(
            self.roster.clients, lambda site: federation.question(progress.state, number, site, "evaluate")
        )
        found = {}
        for site, reply in self.remote.ask(question, payloads):
            if isinstance(reply, Failure):
                self.tell(f"site '{site}': no score ({reply.reason[:LONGEST_REASON]})")
                continue
            try:
                score = Score.decode(reply)
                self._check(score, site, progress.round)
            except DataError as error:
                self.tell(f"site '{site}': no score ({error})")
                continue
            held = self.roster.hellos[site].tasks
            found[site] = {t: score.correct[t] / held[t].test for t in self.roster.clients[site] if held[t].test}
        return found

    def _record(self, line: Mapping[str, Any]) -> None:
        append_line(self.folder / "metrics.jsonl", json.dumps(line, allow_nan=False))
        answered = [site for site in line["clients"] if site not in line["failures"]]
        loss = "" if line["loss"] is None else f", loss {line['loss']:.3f}"
        shares = line.get("mean_accuracy", {})
        found = "".join(f", {kind} {100 * share:.1f} %" for kind, share in shares.items())
        self.tell(
            f"round {line['round']}/{self.config.federation.rounds}: {', '.join(answered) or 'nobody'} answered{loss}"
            f"{found}, {line['seconds']:.0f} s"
        )
        for site, reason in line["failures"].items():
            self.tell(f"  site '{site}' did not: {reason}")
            if reason.startswith("message:"):  # it may have changed since it said who it is
                self.remote.forget(site)
                self.roster.leave(site)
        self.on_round(line)

    def gather(self, number: int) -> None:
        """Wait until enough sites are there for a round (or, one past the last, for the end); take in new ones."""
        waited = False
        while True:
            there = self.remote.look(self._admit)
            for site in [name for name in self.roster.clients if name not in there]:
                self.tell(f"site '{site}' is not there any more")
                self.roster.leave(site)
            for site in there:
                self.roster.back(site)
            classes = {task: len(names) for task, names in self.roster.classes.items()}
            if classes != dict(self.method.problem.classes):
                self.method.problem = dataclasses.replace(self.method.problem, classes=classes)
            if len(self.roster.clients) >= self.min_sites:
                return
            if not waited:
                what = f"round {number}" if number <= self.config.federation.rounds else "all rounds are done"
                self.tell(f"{what}: waiting for {self.min_sites} sites, {len(self.roster.clients)} are there")
            waited = True
            time.sleep(self.look_every_s)

    def _admit(self, node: str, answer: bytes | Failure, owner: str | None, there: Collection[str]) -> str:
        who = f"node {node}"
        try:
            if isinstance(answer, Failure):
                raise DataError(f"it does not say who it is ({answer.reason[:LONGEST_REASON]})")
            hello = Hello.decode(answer)
            who = f"site '{hello.site}'"
            if owner is not None and owner != hello.site:
                raise DataError(f"its key is that of site '{owner}'" if owner else "its key is of no site of [sites]")
            if hello.site in there:
                raise DataError("a site of this name is there already")
            self.roster.admit(hello)
        except DataError as error:
            if self.roster.refuse(who, str(error)):
                self.tell(f"{who} is refused: {error}")
            raise
        self.tell(f"site '{hello.site}' takes part with {', '.join(hello.tasks)}")
        return hello.site

    def _evaluate(self, number: int, state: State) -> dict[str, Any] | None:
        every = self.config.evaluation.evaluate_every
        if not every or number % every or number == self.config.federation.rounds:
            return None
        by_site = self.measure(Progress(number, state))
        return {"sites": by_site, "accuracy": {"delivered": (by_task := by_tasks(by_site))},
                "mean_accuracy": {"delivered": sum(by_task.values()) / len(by_task)} if by_task else {}}  # fmt: skip

    def _check(self, score: Score, site: str, number: int) -> None:
        expected = {"site": site, "run": self.run, "round": max(number, 1)}
        for name, value in expected.items():
            if getattr(score, name) != value:
                raise DataError(f"{name} {getattr(score, name)!r}, expected {value!r}")
        held = self.roster.hellos[site].tasks
        if set(score.correct) != set(self.roster.clients[site]):
            raise DataError(f"tasks {sorted(score.correct)[:5]}, expected {sorted(self.roster.clients[site])[:5]}")
        if any(count > held[task].test for task, count in score.correct.items()):
            raise DataError("more right labels than it has test images")


def by_tasks(by_site: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over holders, by task."""
    names = sorted({task for found in by_site.values() for task in found})
    return {
        task: sum(held := [found[task] for found in by_site.values() if task in found]) / len(held) for task in names
    }
