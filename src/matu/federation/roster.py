"""Who may take part in a deployed run, and what its tasks are: known by name, kept on disk, never by node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matu.errors import DataError
from matu.federation.hello import Hello
from matu.files import write_atomic
from matu.tasks import class_list

FORMAT = 1


class Roster:
    """The sites of a run.

    Parameters
    ----------
    path
        The file that remembers tasks, in their order, and sites across restarts.
    fingerprint
        Of the adapter that every site must have.
    admitted
        By site, the tasks that it may hold; None: whoever the transport lets in may hold anything.

    Attributes
    ----------
    classes
        Class names by task, in the order in which tasks were first seen: that of `Problem`.
    clients
        By site that is there now, its tasks: what `Federation.clients` reads.
    class_lists
        By task, what messages say of its class names.
    samples
        By site, how many training images it said it has, in the order of its tasks.
    refused
        By site or node, why it does not take part.
    """

    def __init__(self, path: Path, fingerprint: str, admitted: Mapping[str, frozenset[str]] | None = None) -> None:
        self.path, self.fingerprint, self.admitted = path, fingerprint, admitted
        self.classes: dict[str, tuple[str, ...]] = {}
        self.hellos: dict[str, Hello] = {}
        self.clients: dict[str, tuple[str, ...]] = {}
        self.class_lists: dict[str, str] = {}
        self.samples: dict[str, tuple[int, ...]] = {}
        self.refused: dict[str, str] = {}
        if path.is_file():
            self._load()

    def admit(self, hello: Hello) -> None:
        """Let a site take part from now on, with the tasks it names.

        Raises
        ------
        DataError
            If it may not: another adapter, a task it was not admitted for, other class names than the task has.
        """
        name = hello.site
        if hello.fingerprint != self.fingerprint:
            raise DataError(
                f"its adapter is {hello.fingerprint[:12]}…, this run's {self.fingerprint[:12]}…: another backbone, "
                "rank, targets or adapter_seed, or another version of matu"
            )
        if self.admitted is not None:
            if name not in self.admitted:
                raise DataError(f"a site of this name was not admitted; those are {', '.join(sorted(self.admitted))}")
            foreign = sorted(set(hello.tasks) - self.admitted[name])
            if foreign:
                raise DataError(
                    f"not admitted for {', '.join(foreign)}, only for {', '.join(sorted(self.admitted[name]))}"
                )
        for task, held in hello.tasks.items():
            known = self.classes.get(task, held.classes)
            if known != held.classes:
                raise DataError(f"task '{task}': {_difference(held.classes, known)}")
        new = {task: held.classes for task, held in hello.tasks.items() if task not in self.classes}
        self.classes |= new
        self.class_lists |= {task: class_list(names) for task, names in new.items()}
        self.hellos[name], self.clients[name] = hello, tuple(hello.tasks)
        self.samples[name] = tuple(held.train for held in hello.tasks.values())
        self.refused.pop(name, None)
        self._save()

    def back(self, site: str) -> None:
        """A site that was admitted before is there again."""
        self.clients[site] = tuple(self.hellos[site].tasks)

    def leave(self, site: str) -> None:
        """A site is not there any more; its tasks stay."""
        self.clients.pop(site, None)

    def refuse(self, who: str, reason: str) -> bool:
        """Note why somebody does not take part; whether that is news."""
        news = self.refused.get(who) != reason
        self.refused[who] = reason
        return news

    def _save(self) -> None:
        table = {
            "format": FORMAT,
            "tasks": {task: list(names) for task, names in self.classes.items()},
            "sites": {name: json.loads(hello.encode()) for name, hello in sorted(self.hellos.items())},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(table, indent=1, ensure_ascii=False).encode())

    def _load(self) -> None:
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
            if table["format"] != FORMAT:
                raise DataError(f"{self.path}: format {table['format']}, this version of matu reads {FORMAT}")
            self.classes = {task: tuple(names) for task, names in table["tasks"].items()}
            self.class_lists = {task: class_list(names) for task, names in self.classes.items()}
            self.hellos = {
                name: Hello.decode(json.dumps(hello, ensure_ascii=False).encode())
                for name, hello in table["sites"].items()
            }
            self.samples = {
                name: tuple(held.train for held in hello.tasks.values()) for name, hello in self.hellos.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path}: not what a server keeps ({error})") from error


def _difference(theirs: tuple[str, ...], known: tuple[str, ...]) -> str:
    """Why two lists of class names are not one."""
    if len(theirs) != len(known):
        return f"{len(theirs)} classes, the run has {len(known)}"
    if sorted(theirs) == sorted(known):
        return "the run's classes in another order"
    at = next(i for i, pair in enumerate(zip(theirs, known, strict=True)) if pair[0] != pair[1])
    return f"class {at} is '{theirs[at]}', in the run it is '{known[at]}'"
