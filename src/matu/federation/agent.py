"""A site of a deployed run: it answers the server's requests from its own data, each in a new process if need be.

What the server may set is in the `Plan`; tasks, folders and machine are the site's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors

from matu.artifact import save_artifact
from matu.config import MachineConfig, RunConfig, TasksConfig, config_of, config_table
from matu.errors import ConfigError, DataError
from matu.federation.hello import Held, Hello
from matu.federation.rounds import codecs_of
from matu.federation.site import Site
from matu.files import write_atomic
from matu.methods import Method, Problem, State, find_method, method_names
from matu.roots import Roots, read_tasks
from matu.tasks import Task
from matu.training import Trainer, build_trainer, decide, parallel_jobs, prepare_machine
from matu.wire import Envelope

PLANNED = ("model", "training", "matu", "wire")
"""Sections of a configuration that the server decides for all sites."""
MAX_PLAN_BYTES = 1 << 16
KEPT_ROUNDS = 2
"""Rounds of a run whose memory stays on disk: a server that lost a round asks for it again."""


@dataclass(frozen=True)
class Plan:
    """What the server decides for every site: method, backbone and adapter, training, codecs, seed.

    Attributes
    ----------
    config
        A configuration whose `PLANNED` sections, method, options, image size and seed are meant; the rest is not sent.
    """

    config: RunConfig

    def encode(self) -> bytes:
        """As JSON."""
        table, f = config_table(self.config), self.config.federation
        return json.dumps(
            {name: table[name] for name in PLANNED}
            | {"method": f.method, "options": list(f.options), "image_size": self.config.tasks.image_size,
               "seed": self.config.machine.seed}, sort_keys=True,
        ).encode()  # fmt: skip

    @classmethod
    def decode(cls, data: bytes, own: RunConfig) -> Plan:
        """The plan as this site will follow it, with its own tasks and machine.

        Raises
        ------
        DataError
            For anything that is no plan, or a method that is not built in: a server sends no code.
        """
        if len(data) > MAX_PLAN_BYTES:
            raise DataError(f"plan of {len(data)} bytes, at most {MAX_PLAN_BYTES} are read")
        try:
            table = json.loads(data.decode())
            rest = {name: table.pop(name) for name in ("method", "options", "image_size", "seed")}
            if set(table) != set(PLANNED):
                raise DataError(f"plan: sections {sorted(table)}, expected {', '.join(PLANNED)}")
            if rest["method"] not in method_names():
                raise DataError(
                    f"plan: method {str(rest['method'])[:80]!r}, expected one of {', '.join(method_names())}"
                )
            mine = config_table(own)
            table |= {
                "tasks": mine["tasks"] | {"image_size": rest["image_size"]},
                "federation": {"method": rest["method"], "options": rest["options"]},
                "machine": mine["machine"] | {"seed": rest["seed"]},
            }
            config = config_of(table, "plan")
            config.check()
        except DataError:
            raise
        except ConfigError as error:
            raise DataError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"plan: not what a server sends ({str(error)[:100]})") from error
        return cls(config)


class Agent:
    """Answers a server for one site.

    Parameters
    ----------
    name
        The site's name.
    own
        Its tasks and its machine; other sections are the server's.
    roots
        Its folders of data, models and cache.
    folder
        Where it keeps what a method leaves with it between rounds.
    """

    def __init__(self, name: str, own: RunConfig, roots: Roots, folder: Path) -> None:
        self.name, self.own, self.roots, self.folder = name, own, roots, folder
        self._ready: dict[bytes, tuple[Plan, Trainer, Method]] = {}
        self._tasks: dict[int, dict[str, Task]] = {}

    def ask(self, question: str, plan: bytes, message: bytes) -> bytes:
        """The answer to a question of the server; DataError for one that is none."""
        match question:
            case "hello":
                return self.hello(plan)
            case "train":
                return self.train(plan, message)
            case "evaluate":
                return self.evaluate(plan, message)
            case "finish":
                return self.finish(plan, message)
            case "refused":  # whoever runs the agent tells people
                return b""
        raise DataError(f"question {question[:80]!r}, expected hello, train, evaluate or finish")

    def hello(self, plan: bytes) -> bytes:
        """Who this site is, as an encoded `Hello`."""
        followed, trainer, _ = self._prepare(plan)
        tasks = self._read(followed.config.tasks)
        held = {n: Held(task.classes, len(task.train.labels), len(task.test.labels)) for n, task in tasks.items()}
        versions = {name: version(name) for name in ("matu", "torch", "transformers", "peft")}
        return Hello(self.name, trainer.model.fingerprint, held, versions).encode()

    def train(self, plan: bytes, message: bytes) -> bytes:
        """This site's update in answer to a round's message; its memory is on disk before it is given back."""
        site = self._site(plan, message)
        number = Envelope(message).header.round
        reply = site(message)
        self._remember(site.run, number, site.memory)
        return reply

    def evaluate(self, plan: bytes, message: bytes) -> bytes:
        """How many of its own test images this site labels right with a message's weights, as an encoded `Score`."""
        return self._site(plan, message).measure(message).encode()

    def finish(self, plan: bytes, message: bytes) -> bytes:
        """As `evaluate`, and what the message gives is kept as an artifact in the site's folder."""
        followed, trainer, method = self._prepare(plan)
        site = self._site(plan, message)
        score = site.measure(message)
        header, tasks = Envelope(message).header, self._read(followed.config.tasks)
        opened = Envelope(message).tensors(method.downlink_parts(header.tasks))
        weights = method.weights(header.tasks, opened, site.memory)
        images = {task: len(tasks[task].test.labels) for task in weights}
        save_artifact(
            self.folder / "artifact", weights, trainer.model, tasks, followed.config, method,
            run=header.run, rounds=header.round,
            accuracy={task: {"delivered": score.correct[task] / n} for task, n in images.items() if n},
        )  # fmt: skip
        return score.encode()

    def _site(self, plan: bytes, message: bytes) -> Site:
        followed, trainer, method = self._prepare(plan)
        config, header = followed.config, Envelope(message).header
        tasks = self._read(config.tasks)
        everything = {name: np.arange(len(task.train.labels)) for name, task in tasks.items()}
        site = Site(
            self.name, everything, tasks, trainer, method, config.federation.method, header.run, config.machine.seed,
            codecs_of(config.wire)[0], config.wire.rounding == "stochastic",
        )  # fmt: skip
        # a round is trained from what the rounds before it left, and measured with what it left itself
        site.memory = self._recall(header.run, header.round - (header.kind == "train"))
        return site

    def _prepare(self, plan: bytes) -> tuple[Plan, Trainer, Method]:
        if plan not in self._ready:
            followed = Plan.decode(plan, self.own)
            tasks = self._read(followed.config.tasks)
            asked = followed.config.machine
            # who names a number of threads means no more
            jobs = 1 if asked.threads else parallel_jobs(asked, len(tasks))
            machine = self._decided(plan, followed.config, jobs)
            config = dataclasses.replace(followed.config, machine=machine)
            followed = Plan(config)
            device = prepare_machine(machine)
            jobs = min(jobs, parallel_jobs(machine, len(tasks)))
            trainer = build_trainer(config, self.roots.models, device, machine.precision, jobs=jobs)
            model, kind = trainer.model, find_method(config.federation.method)
            if not issubclass(kind, Method):
                raise DataError(f"plan: method '{config.federation.method}' has no messages")
            problem = Problem({n: len(t.classes) for n, t in tasks.items()}, model.layout, model.backbone.features)
            method = kind(problem, config)
            trainer = dataclasses.replace(trainer, objective=method.objective)
            self._ready = {plan: (followed, trainer, method)}
        return self._ready[plan]

    def _decided(self, plan: bytes, config: RunConfig, jobs: int) -> MachineConfig:
        """The machine's "auto" and 0, measured once for a plan and remembered: a round must not measure anew.

        A site that asks for something else since is heard: its own settings are part of what is remembered.
        """
        asked = json.dumps(dataclasses.asdict(config.machine), sort_keys=True)
        path, key = self.folder / "machine.json", hashlib.sha256(plan + asked.encode()).hexdigest()
        try:
            found = json.loads(path.read_text())
            if found["plan"] == key and found["precision"] in ("float32", "bfloat16"):
                return dataclasses.replace(
                    config.machine, precision=found["precision"], threads=int(found["threads"]),
                    together=int(found["together"]),
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            pass
        machine = decide(config, self.roots.models, jobs=jobs)
        if machine != config.machine:
            self.folder.mkdir(parents=True, exist_ok=True)
            note = {"plan": key, **{name: getattr(machine, name) for name in ("precision", "threads", "together")}}
            write_atomic(path, json.dumps(note).encode())
        return machine

    def _read(self, config: TasksConfig) -> dict[str, Task]:
        if config.image_size not in self._tasks:
            self._tasks[config.image_size] = {task.name: task for task in read_tasks(config, self.roots)}
        return self._tasks[config.image_size]

    def _memories(self, run: str) -> dict[int, Path]:
        """By round, what the method left here after it."""
        return {int(path.stem): path for path in (self.folder / "memory" / run).glob("*.safetensors")}

    def _recall(self, run: str, number: int) -> State:
        """What was left up to a round; what was left later is of a round that the server lost, and asks for again."""
        known = [(at, path) for at, path in self._memories(run).items() if at <= number]
        if not known:
            return {}
        _, path = max(known)
        try:
            return tensors_of_bytes(path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: what this site keeps of its last round cannot be read ({error})") from error

    def _remember(self, run: str, number: int, memory: State) -> None:
        kept = self._memories(run)
        if memory:
            place = self.folder / "memory" / run
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(place / f"{number:08d}.safetensors", bytes_of_tensors(dict(memory)))
        older = sorted((at for at in kept if at < number), reverse=True)
        for at in [*(at for at in kept if at > number), *older[KEPT_ROUNDS - 1 :]]:
            kept[at].unlink(missing_ok=True)
