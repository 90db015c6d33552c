from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from matu.methods import Problem
from matu.training import Weights
from playing import Player, at, block_problem, build, close, play
from world import tiny_task, tiny_trainer

# in the flat vector: A and B of block 0, then A and B of block 1
PROBLEM = block_problem({"a": 2, "b": 2}, ("0", "1"))
HEAD = [[1, 2], [3, 4]]


def test_b_is_averaged_and_a_does_not_travel() -> None:
    method = build("ffa_lora", PROBLEM)
    north, south = Player("north", {"a": 3, "b": 1}), Player("south", {"b": 4})
    ends = {"a": at([0, 8, 0, 0], HEAD), "b": at([0, 0, 0, 16], HEAD)}
    update = north.answer(method, {}, ends)
    close(update["adapter/a"], [8, 0])
    close(update["adapter/b"], [0, 16])
    state = play(method, method.start(), [(north, ends), (south, {"b": at([0, 2, 0, -2], HEAD)})])
    close(method.downlink(state, "north", ("a",))["adapter"], [4, 1])  # (3 · (8, 0) + (0, 16) + 4 · (2, -2)) / 8
    close(south.gets(method, state)["b"].vector, [0, 4, 0, 1])
    close(method.server_weights(state)["a"].vector, [0, 4, 0, 1])


def test_half_the_adapters_bits_travel() -> None:
    method, fedavg = build("ffa_lora", PROBLEM), build("fedavg", PROBLEM)
    assert method.paper_bits(("a", "b")) == 32 * (2 * 2 + 8)
    assert fedavg.paper_bits(("a", "b")) == 32 * (2 * 4 + 8)


def test_only_b_and_the_head_learn(tiny_vit: Path) -> None:
    plain, task = tiny_trainer(tiny_vit, weight_decay=0.3), tiny_task("left")
    layout = plain.model.layout
    method = build("ffa_lora", Problem({"left": 3}, layout, plain.model.backbone.features))
    start = Weights(torch.zeros(plain.model.dim), torch.zeros(3, 17))
    trained, _ = replace(plain, objective=method.objective).train(
        start, task.train, np.arange(60), np.random.default_rng(0), steps=5
    )
    parts = layout.unflatten(trained.vector)
    assert {name.count("lora_A") + name.count("lora_B") for name in parts} == {1}
    for name, part in parts.items():
        assert bool(part.any()) == ("lora_B" in name), name
    assert trained.head.any()
    assert method.shared_dim * 2 == layout.dim
    assert torch.equal(method.widen(method.narrow(trained.vector)), trained.vector)
