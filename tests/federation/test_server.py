"""A run whose sites are elsewhere, without a network: the same numbers, and nobody is trusted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from remote import HOLDS, House, Nodes, run_config

from matu.artifact import Packed, load_artifact
from matu.config import MachineConfig, RunConfig
from matu.errors import ConfigError, DataError
from matu.federation.agent import Agent, Plan
from matu.federation.checkpoint import Progress
from matu.federation.hello import Hello, Score
from matu.federation.rounds import Federation, codecs_of, run_rounds
from matu.federation.server import by_tasks
from matu.federation.server_file import Listening, ServerFile
from matu.federation.site import Site
from matu.federation.transport import InProcess
from matu.files import only_one
from matu.methods import Problem, find_method
from matu.roots import Roots, read_tasks
from matu.serve import serve
from matu.tasks import class_list
from matu.training import Weights, build_trainer
from matu.wire import arrived
from playing import equal
from test_simulate import small


def in_process(house: House) -> tuple[Progress, dict[str, dict[str, Weights]]]:
    """The same run with its sites in this process, by the pieces that `matu run` uses, and the weights of each site."""
    config, order = house.config, ("left", "right", "middle")
    roots = Roots(house.data, None, house.folder / "cache")
    trainer = build_trainer(config, None, torch.device("cpu"), "float32")
    tasks = {task.name: task for task in read_tasks(config.tasks, roots)}
    tasks = {name: tasks[name] for name in order}
    problem = Problem(
        {n: len(t.classes) for n, t in tasks.items()}, trainer.model.layout, trainer.model.backbone.features
    )
    method = find_method(config.federation.method)(problem, config)
    trainer = replace(trainer, objective=method.objective)
    up, down = codecs_of(config.wire)
    sites = {
        name: Site(
            name, {t: np.arange(len(tasks[t].train.labels)) for t in held}, tasks, trainer, method,
            config.federation.method, "ab" * 16, config.machine.seed, up,
        )
        for name, held in house.holds.items()
    }  # fmt: skip
    federation = Federation(
        method, config.federation.method, house.holds, InProcess(sites), "ab" * 16, trainer.model.fingerprint,
        {n: class_list(t.classes) for n, t in tasks.items()}, config.federation.rounds,
        config.federation.participation, config.machine.seed, down,
    )  # fmt: skip
    progress = run_rounds(
        federation, Progress(0, method.start()), evaluate=lambda *_: None, record=lambda _: None, save=lambda _: None
    )
    found = {}
    for name, held in house.holds.items():
        sent = arrived(method.downlink_parts(held), method.downlink(progress.state, name, held), down)
        found[name] = method.weights(held, sent, sites[name].memory)
    return progress, found


@pytest.mark.parametrize("method", ["matu", "matu_plus", "fedper", "mat_fl"])
def test_sites_elsewhere_end_with_the_numbers_of_sites_here(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, method: str
) -> None:
    house = House(run_config(tiny_vit, method=method), tiny_data, tmp_path)
    said: list[str] = []
    server = house.server(house.nodes(), said)
    there = server.rounds()
    here, weights = in_process(house)
    assert there.round == here.round == 3
    assert there.state
    assert equal(there.state, here.state)
    assert there.totals.uplink == here.totals.uplink
    assert sum("takes part" in line for line in said) == 3
    assert server.measure(there, "finish").keys() == weights.keys()
    for site, expected in weights.items():
        kept = load_artifact(tmp_path / site).packed
        assert equal(kept.tensors, Packed.of(expected, separate=server.method.separate).tensors), (
            "with what the last round left there"
        )


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", ["fedper", "matu"])
@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_server_that_is_killed_goes_on_to_the_same_numbers(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, method: str, stop_at: int
) -> None:
    """Killed in the middle of a round: the sites have trained, and trained once more for the same round."""
    whole = House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "whole")
    expected = whole.server(whole.nodes(), []).rounds()
    house = House(run_config(tiny_vit, method=method), tiny_data, tmp_path / "cut")
    nodes = house.nodes()
    server = house.server(nodes, [])
    trained = 0

    def stop(question: str, site: str, reply: bytes) -> bytes:
        nonlocal trained
        trained += question == "train"
        if trained == 2 * stop_at + 2:
            raise StoppedError
        return reply

    nodes.meddle = stop
    with pytest.raises(StoppedError):
        server.rounds()
    found = house.server(house.nodes(), []).rounds()
    assert equal(found.state, expected.state)
    lines = [json.loads(line)["round"] for line in (tmp_path / "cut/server/metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3]


def test_sites_and_tasks_join_and_leave_a_run_under_way(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    house = House(run_config(tiny_vit, participation=1.0), tiny_data, tmp_path)
    nodes, said = house.nodes(), []
    late = next(node for node, agent in nodes.agents.items() if agent().name == "south")
    nodes.away = {late}
    server = house.server(nodes, said, min_sites=2)
    gather = server.gather

    def change(number: int) -> None:
        if number == 2:
            nodes.away = set()
        if number == 3:
            nodes.away = {next(node for node, name in nodes.named.items() if name == "east")}
        gather(number)

    server.gather = change
    server.rounds()
    lines = [json.loads(line) for line in (tmp_path / "server/metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines] == [["east", "north"], ["east", "north", "south"], ["north", "south"]]
    assert "site 'east' is not there any more" in said
    assert list(server.method.problem.classes) == ["left", "right", "middle"]


def test_scores_are_each_sites_own_and_everybody_keeps_an_artifact(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    house = House(run_config(tiny_vit, method="per_task_fedavg"), tiny_data, tmp_path)
    server = house.server(house.nodes(), [])
    progress = server.rounds()
    found = server.measure(progress, "finish")
    assert {site: set(scores) for site, scores in found.items()} == {site: set(held) for site, held in HOLDS.items()}
    assert by_tasks(found)["left"] == pytest.approx(sum(found[site]["left"] for site in HOLDS) / 3)
    for site, held in HOLDS.items():
        artifact = load_artifact(tmp_path / site)
        assert artifact.tasks == held
        for task in held:
            assert artifact.packed.vector(task).any()
            assert artifact.note["tasks"][task]["accuracy"] == {"delivered": pytest.approx(found[site][task])}
    assert not list((tmp_path / "server").rglob("*.png"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "0" * 64}, "its adapter is 000000000000…"),
        ({"site": "north"}, "a site of this name is there already"),
        ({"tasks": {"left": {"classes": ["bar-1", "bar-0", "bar-2"], "train": 9, "test": 1}}}, "in another order"),
        ({"tasks": {"left": {"classes": ["bar-0", "bar-1"], "train": 9, "test": 1}}}, "2 classes, the run has 3"),
        ({"tasks": {"secret": {"classes": ["a", "b"], "train": 9, "test": 1}}}, "not admitted for secret"),
        ({"site": "mallory"}, "a site of this name was not admitted; those are east, north, south"),
        ({"tasks": {}}, "0 tasks"),
        ({"site": "a\nb"}, "printable"),
        ({"more": 1}, "expected"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_the_reason_and_the_run_goes_on(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    house = House(run_config(tiny_vit), tiny_data, tmp_path)
    nodes, said = house.nodes(), []
    bad = list(nodes.agents)[2]  # south, that comes last

    def lie(question: str, node: str, reply: bytes) -> bytes:
        return json.dumps(json.loads(reply) | change).encode() if (question, node) == ("hello", bad) else reply

    nodes.meddle = lie
    admitted = {site: frozenset(held) for site, held in HOLDS.items()}
    server = house.server(nodes, said, min_sites=2, admitted=admitted)
    progress = server.rounds()
    assert progress.round == 3
    refusals = [line for line in said if "is refused" in line]
    assert len(refusals) == 1
    assert reason in refusals[0]
    assert "south" not in server.roster.clients


def test_a_score_of_another_round_site_or_size_does_not_count(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    house = House(run_config(tiny_vit, rounds=1), tiny_data, tmp_path)
    nodes, said = house.nodes(), []
    server = house.server(nodes, said)
    progress = server.rounds()
    honest = server.measure(progress)
    assert set(honest) == set(HOLDS)
    lies: dict[str, Any] = {
        "east": {"round": 7}, "north": {"correct": {"left": 9999, "middle": 0}}, "south": {"site": "east"},
    }  # fmt: skip
    nodes.meddle = lambda question, site, reply: json.dumps(json.loads(reply) | lies[site]).encode()
    assert server.measure(progress) == {}
    assert sum("no score" in line for line in said) == 3
    nodes.meddle = lambda question, site, reply: b"\xff" * 10
    assert server.measure(progress) == {}


def test_a_server_sends_no_code_and_no_folder(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    own = House(run_config(tiny_vit), tiny_data, tmp_path).agent("north").own
    plan = json.loads(Plan(small(tiny_vit)).encode())
    assert "tasks" not in plan
    assert "machine" not in plan
    good = Plan.decode(json.dumps(plan).encode(), own).config
    assert good.tasks.tasks == own.tasks.tasks
    for change, reason in [
        ({"method": "/tmp/evil.py"}, "expected one of"),
        ({"method": "evil.py"}, r"^plan: method 'evil.py', expected one of .*ties"),
        ({"tasks": {"tasks": ["/etc"]}}, "sections"),
        ({"machine": {"threads": 64}}, "sections"),
        ({"training": plan["training"] | {"learning_rate": -1.0}}, "learning_rate"),
        ({"training": plan["training"] | {"more": 1}}, "unknown"),
        ({"seed": "zero"}, "seed"),
        ({"options": "mu=1"}, "list"),
    ]:
        with pytest.raises(DataError, match=reason):
            Plan.decode(json.dumps(plan | change).encode(), own)
    for broken in (b"", b"[]", b"{}", b"\xff", b"[" * 100000, b"null", b" " * 70000):
        with pytest.raises(DataError):
            Plan.decode(broken, own)


def test_hellos_and_scores_are_read_back_and_nothing_else_is() -> None:
    task = {"classes": ["a", "b"], "train": 5, "test": 0}
    hello = Hello.decode(
        json.dumps(
            {"format": 1, "kind": "hello", "site": "x", "fingerprint": "0" * 64, "tasks": {"t": task}, "versions": {}}
        ).encode()
    )
    assert Hello.decode(hello.encode()) == hello
    score = Score("x", "0" * 32, 3, {"t": 4})
    assert Score.decode(score.encode()) == score
    table = json.loads(hello.encode())
    broken: list[Any] = [
        {**table, "format": 2}, {**table, "kind": "score"}, {**table, "site": 5}, {**table, "site": ""},
        {**table, "tasks": []}, {**table, "tasks": {"t": []}},
        {**table, "tasks": {"t": {**task, "train": True}}},
        {**table, "tasks": {"t": {**task, "train": 0}}}, {**table, "tasks": {"t": {**task, "train": 1 << 40}}},
        {**table, "tasks": {"t": {**task, "classes": ["a", "a"]}}},
        {**table, "tasks": {"t": {**task, "classes": [1, 2]}}},
        {**table, "versions": {"matu": 1}}, {**table, "fingerprint": "0" * 63}, [table], "hello", None,
    ]  # fmt: skip
    for one in broken:
        with pytest.raises(DataError):
            Hello.decode(json.dumps(one).encode())
    for data in (b"", b"{", b'{"format":1,"format":1}', b"NaN", b"[" * 100000, b" " * (1 << 21), b"\xff\xfe"):
        with pytest.raises(DataError):
            Hello.decode(data)
        with pytest.raises(DataError):
            Score.decode(data)
    for correct in ({"t": -1}, {"t": 1.5}, {"t": True}, {"": 1}, []):
        with pytest.raises(DataError):
            Score.decode(json.dumps({**json.loads(score.encode()), "correct": correct}).encode())


def test_what_a_site_keeps_is_on_its_disk_and_of_the_last_rounds_alone(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    house = House(run_config(tiny_vit, method="fedper", rounds=5, participation=1.0), tiny_data, tmp_path)
    house.server(house.nodes(), []).rounds()
    for site in HOLDS:
        kept = sorted(path.stem for path in (tmp_path / site / "memory" / ("ab" * 16)).iterdir())
        assert kept == ["00000004", "00000005"]


def test_a_site_measures_its_machine_once_and_heeds_what_its_owner_writes_later(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def decide(config: RunConfig, *_: Any, **__: Any) -> MachineConfig:
        measured.append(config.machine)
        machine = config.machine
        return replace(machine, threads=machine.threads or 1, precision="float32", together=1)

    monkeypatch.setattr("matu.federation.agent.decide", decide)
    house = House(run_config(tiny_vit), tiny_data, tmp_path)
    plan, agent = Plan(house.config).encode(), house.agent("east")

    def started(**asked: Any) -> MachineConfig:
        own = replace(agent.own, machine=replace(agent.own.machine, **asked))
        again = Agent("east", own, agent.roots, agent.folder)
        again.hello(plan)
        return again._ready[plan][0].config.machine

    asked = {"precision": "auto", "threads": 0}
    assert started(**asked) == started(**asked)
    assert len(measured) == 1
    assert started(**asked | {"threads": 2}).threads == 2
    assert len(measured) == 2


def test_nodes_names_are_not_their_ids(tiny_vit: Path, tiny_data: Path, tmp_path: Path) -> None:
    nodes: Nodes = House(run_config(tiny_vit), tiny_data, tmp_path).nodes()
    assert not set(nodes.agents) & set(HOLDS)


def test_a_server_that_is_killed_at_the_very_end_still_lets_everybody_keep_an_artifact(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    house = House(run_config(tiny_vit), tiny_data, tmp_path)
    sites = {name: tuple(held) for name, held in HOLDS.items()}
    file = ServerFile(house.config, Listening(min_sites=3), sites, tmp_path)
    nodes = house.nodes()

    def stop(question: str, site: str, reply: bytes) -> bytes:
        if question == "finish":
            raise StoppedError
        return reply

    nodes.meddle = stop
    with pytest.raises(StoppedError):
        serve(file, tmp_path / "run", None, lambda _: nodes, lambda _: None)
    assert not (tmp_path / "run/result.json").exists()
    result = serve(file, tmp_path / "run", None, lambda _: house.nodes(), lambda _: None)
    assert result["rounds"] == 3
    assert set(result["sites"]) == set(HOLDS)
    assert all(about["accuracy"] for about in result["sites"].values())
    assert all((tmp_path / site / "artifact/artifact.json").is_file() for site in HOLDS)
    assert load_artifact(tmp_path / "run").packed.vector("left").any()
    said: list[str] = []
    assert serve(file, tmp_path / "run", None, lambda _: nodes, said.append) == result
    assert "complete" in said[0]


def test_a_server_does_not_wait_for_sites_that_cannot_follow_its_method(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "median.py").write_text("from matu.methods.fedavg import FedAvg\n\n\nclass Median(FedAvg):\n    pass\n")
    config = run_config(tiny_vit)
    for method, said in ((str(tmp_path / "median.py"), "built-in methods alone.*ties"), ("local", "has no server")):
        own = replace(config, federation=replace(config.federation, method=method))
        file = ServerFile(own, Listening(min_sites=1), {"north": ("left",)}, tmp_path)
        with pytest.raises(ConfigError, match=said):
            serve(file, tmp_path / "run", None, lambda _: pytest.fail("nobody is to be asked"), lambda _: None)
    assert not (tmp_path / "run").exists()


def test_two_servers_on_one_folder_and_another_configuration_are_refused(
    tiny_vit: Path, tiny_data: Path, tmp_path: Path
) -> None:
    house = House(run_config(tiny_vit), tiny_data, tmp_path)
    file = ServerFile(
        house.config, Listening(min_sites=3), {name: tuple(held) for name, held in HOLDS.items()}, tmp_path
    )
    (tmp_path / "run").mkdir()
    with only_one(tmp_path / "run"), pytest.raises(ConfigError, match="another process"):
        serve(file, tmp_path / "run", None, lambda _: house.nodes(), lambda _: None)
    serve(file, tmp_path / "run", None, lambda _: house.nodes(), lambda _: None)
    (tmp_path / "run/result.json").unlink()
    other = replace(file, config=run_config(tiny_vit, rounds=4))
    with pytest.raises(ConfigError, match="another configuration"):
        serve(other, tmp_path / "run", None, lambda _: house.nodes(), lambda _: None)
