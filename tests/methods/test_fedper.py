from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTModel

from matu.config import FederationConfig, MachineConfig, ModelConfig, RunConfig, TasksConfig
from matu.errors import ConfigError
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from playing import Player, at, block_problem, build, close, play
from world import SIZE, tiny_problem

# the flat vector: A and B of block 0, then A and B of block 1, which is the last
PROBLEM = block_problem({"a": 2, "b": 2}, ("0", "1"))
A = at([1, 0, 4, 0], [[1, 2], [3, 4]])
B = at([0, 8, 8, -4], [[5, 6], [7, 8]])
OTHER_B = at([2, -2, 100, 200], [[9, 9], [9, 9]])


def round_1():
    """North trains a (3 images) and b (1), south b (4); east is not drawn."""
    method = build("fedper", PROBLEM)
    north, south, east = Player("north", {"a": 3, "b": 1}), Player("south", {"b": 4}), Player("east", {"a": 2, "b": 2})
    state = play(method, method.start(), [(north, {"a": A, "b": B}), (south, {"b": OTHER_B})])
    return method, state, north, south, east


def test_the_blocks_before_the_last_are_averaged_as_in_fedavg() -> None:
    method, state, *_ = round_1()
    assert list(state) == ["adapter"]
    close(method.downlink(state, "north", ("a", "b"))["adapter"], [11 / 8, 0])


def test_neither_the_last_block_nor_a_head_travels() -> None:
    method, state, north, *_ = round_1()
    update = north.answer(method, state, {"a": A, "b": B})
    assert set(update) == {"adapter/a", "adapter/b"}
    close(update["adapter/b"], [0, 8])
    assert set(method.downlink(state, "north", ("a", "b"))) == {"adapter"}
    assert method.server_weights(state) is None


def test_a_clients_block_is_the_sample_weighted_mean_of_its_trainings_and_heads_are_its_own() -> None:
    method, state, north, south, _ = round_1()
    found = north.gets(method, state)
    for task, head in (("a", [[1, 2], [3, 4]]), ("b", [[5, 6], [7, 8]])):
        close(found[task].vector, [11 / 8, 0, 5, -1])  # block: (3 · (4, 0) + (8, -4)) / 4
        close(found[task].head, head)
    close(south.gets(method, state)["b"].vector, [11 / 8, 0, 100, 200])
    close(south.gets(method, state)["b"].head, [[9, 9], [9, 9]])


def test_all_trainings_of_a_client_start_from_its_one_block_and_its_heads() -> None:
    method, state, north, *_ = round_1()
    play(method, state, [(north, {"a": A, "b": B})])
    close(north.starts["a"].vector, [11 / 8, 0, 5, -1])
    close(north.starts["b"].vector, [11 / 8, 0, 5, -1])
    close(north.starts["a"].head, [[1, 2], [3, 4]])
    close(north.starts["b"].head, [[5, 6], [7, 8]])


def test_the_first_training_starts_from_the_base() -> None:
    *_, north, _, _ = round_1()
    for start in north.starts.values():
        assert not start.vector.any()
        assert not start.head.any()


def test_a_client_that_was_never_drawn_has_the_block_and_the_head_of_the_base() -> None:
    method, state, *_, east = round_1()
    for one in east.gets(method, state).values():
        close(one.vector[2:], [0, 0])
        assert not one.head.any()


def test_a_client_that_is_not_drawn_keeps_its_block() -> None:
    method, state, north, south, _ = round_1()
    state = play(method, state, [(south, {"b": at([0, 4, -7, -7], [[0, 0], [0, 0]])})])
    close(north.gets(method, state)["a"].vector, [0, 4, 5, -1])
    close(south.gets(method, state)["b"].vector, [0, 4, -7, -7])


def test_reading_a_downlink_changes_neither_state_nor_memory() -> None:
    method, state, north, *_ = round_1()
    for one in north.gets(method, state).values():
        one.vector.add_(1)
    close(state["adapter"], [11 / 8, 0])
    close(north.memory["block"], [5, -1])


def test_block_10_comes_after_block_9() -> None:
    problem = block_problem({"a": 2}, [str(n) for n in range(12)], width=3)
    method = build("fedper", problem)
    assert method.shared_dim * 12 == 11 * problem.dim
    kept = problem.layout.unflatten((~method.shared).float())
    assert sorted(name for name, part in kept.items() if part.any()) == [
        "encoder.layer.11.q.lora_A.default.weight", "encoder.layer.11.q.lora_B.default.weight",
    ]  # fmt: skip


def test_eleven_of_twelve_blocks_count_as_bits_and_no_head() -> None:
    problem = block_problem({"a": 2, "b": 5}, [str(n) for n in range(12)], features=7)
    method = build("fedper", problem)
    assert method.paper_bits(("a",)) == 32 * 22
    assert method.paper_bits(("a", "b")) == 32 * 2 * 22


def test_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="numbered blocks"):
        build("fedper", tiny_problem({"a": 2}, dim=4, features=1)).downlink({}, "north", ("a",))


def test_a_backbone_of_one_block_is_refused_before_a_folder_is_made(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIZE, patch_size=4
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    config = RunConfig(
        tasks=TasksConfig(tasks=("left", "middle", "right"), image_size=SIZE),
        model=ModelConfig(backbone=str(tmp_path / "vit"), rank=2),
        federation=FederationConfig(method="fedper", clients=4, rounds=1, zeta_c=1.0, min_samples=4),
        machine=MachineConfig(precision="float32", threads=1),
    )
    with pytest.raises(ConfigError, match="numbered blocks"):
        simulate(config, tmp_path / "run", Roots(tiny_data, None, tmp_path / "cache"), Display(quiet=True))
    assert not (tmp_path / "run").exists()
