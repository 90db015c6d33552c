"""Merging the weight changes of adapters with different starts, ranks and modules, against full matrices."""

import math
from pathlib import Path

import pytest
import torch
from adapter_files import SIZES, change, draw_adapter, read_adapter, write_adapter
from safetensors.torch import load_file
from torch import Tensor

from matu.errors import DataError
from matu.merge import merge, restore

Changes = dict[str, Tensor]


def changes_of(folder: Path, scale: float = 2.0, modules=SIZES) -> Changes:
    tensors = read_adapter(folder)
    return {m: change(tensors, m, scale) for m in modules if f"{m}.lora_A.weight" in tensors}


def restored(out: Path, task: str, to: Path) -> Changes:
    restore(out, task, to)
    return changes_of(to, 1.0)


def norm(changes: Changes) -> float:
    return math.sqrt(sum(float(c.square().sum()) for c in changes.values()))


@pytest.fixture
def unlike(tmp_path: Path) -> dict[str, Path]:
    """Three adapters of ranks 2, 1 and 3, the last on one of two modules alone."""
    ranks = {"a": 2, "b": 1, "c": 3}
    return {
        task: write_adapter(
            tmp_path / task,
            draw_adapter(seed, rank=rank, sizes=SIZES if task != "c" else {"layer.1.q": SIZES["layer.1.q"]}),
            r=rank, lora_alpha=2 * rank,
        )
        for seed, (task, rank) in enumerate(ranks.items())
    }  # fmt: skip


def test_one_adapter_comes_back_as_the_same_change(unlike: dict[str, Path], tmp_path: Path) -> None:
    for task, folder in unlike.items():
        note = merge({task: folder}, tmp_path / f"out-{task}")
        back = restored(tmp_path / f"out-{task}", task, tmp_path / f"back-{task}")
        for module, matrix in changes_of(folder).items():
            torch.testing.assert_close(back[module], matrix, rtol=1e-5, atol=1e-6)
        assert note["tasks"][task]["factorisation_error"] < 1e-6
        assert note["tasks"][task]["weight_cosine"] == pytest.approx(1, abs=1e-9)


def test_what_is_reported_is_true_of_the_full_matrices(unlike: dict[str, Path], tmp_path: Path) -> None:
    note = merge(unlike, tmp_path / "out", rank=2)
    assert note["form"] == "weight_change"
    for task, folder in unlike.items():
        before, after = changes_of(folder), restored(tmp_path / "out", task, tmp_path / f"back-{task}")
        inner = sum(float((matrix * after[module]).sum()) for module, matrix in before.items())
        assert note["tasks"][task]["weight_cosine"] == pytest.approx(inner / norm(before) / norm(after), abs=1e-6)
        assert note["tasks"][task]["weight_norm_ratio"] == pytest.approx(norm(after) / norm(before), rel=1e-5)


def test_the_basis_is_the_best_of_its_rank_for_all_tasks(unlike: dict[str, Path], tmp_path: Path) -> None:
    note = merge(unlike, tmp_path / "out", rank=2)
    changes = {task: changes_of(folder) for task, folder in unlike.items()}
    least = 0.0
    for module in SIZES:
        scaled = [c[module] / norm(c) for c in changes.values() if module in c]
        stacks = torch.cat(scaled), torch.cat(scaled, dim=1)
        least += min(float(torch.linalg.svdvals(stack)[2:].square().sum()) for stack in stacks)
    lost = sum(task["factorisation_error"] ** 2 for task in note["tasks"].values())
    assert lost == pytest.approx(least, rel=1e-6)


def test_at_full_rank_nothing_is_lost_and_smaller_modules_keep_a_smaller_rank(unlike, tmp_path: Path) -> None:
    note = merge(unlike, tmp_path / "out", rank=50)
    assert all(task["factorisation_error"] < 1e-6 for task in note["tasks"].values())
    assert note["adapter_config"]["r"] == 6
    assert note["adapter_config"]["rank_pattern"] == {"layer.0.q": 3} == note["adapter_config"]["alpha_pattern"]
    assert not restored(tmp_path / "out", "c", tmp_path / "back")["layer.0.q"].any()


def test_adapters_that_froze_one_a_lose_nothing(tmp_path: Path) -> None:
    frozen = {n: t for n, t in draw_adapter(0).items() if "lora_A" in n}
    folders = {str(seed): write_adapter(tmp_path / str(seed), draw_adapter(seed) | frozen) for seed in (1, 2, 3)}
    note = merge(folders, tmp_path / "out")
    assert all(task["factorisation_error"] < 1e-6 for task in note["tasks"].values())


def test_common_columns_are_used_where_they_lose_less(tmp_path: Path) -> None:
    same = {n: t for n, t in draw_adapter(0).items() if "lora_B" in n}
    folders = {str(seed): write_adapter(tmp_path / str(seed), draw_adapter(seed) | same) for seed in (1, 2, 3)}
    note = merge(folders, tmp_path / "out")
    assert all(task["factorisation_error"] < 1e-6 for task in note["tasks"].values())
    held = load_file(tmp_path / "out" / "unified.safetensors")
    assert all("lora_B" in name for name in held if name.startswith("start."))


def test_the_mean_is_that_of_the_full_matrices(unlike: dict[str, Path], tmp_path: Path) -> None:
    changes = [changes_of(folder) for folder in unlike.values()]
    expected = {m: sum(c[m] for c in changes if m in c) / 3 for m in SIZES}
    merge(unlike, tmp_path / "out", method="mean", rank=50)
    found = changes_of(tmp_path / "out", 1.0)
    for module in SIZES:
        torch.testing.assert_close(found[module], expected[module], rtol=1e-5, atol=1e-6)
    note = merge(unlike, tmp_path / "low", method="mean", rank=1)
    tails = [torch.linalg.svdvals(matrix)[1:].square().sum() for matrix in expected.values()]
    error = math.sqrt(float(sum(tails))) / norm(expected)
    assert note["tasks"]["a"]["factorisation_error"] == pytest.approx(error, rel=1e-5)
    one, low = changes_of(unlike["a"]), changes_of(tmp_path / "low", 1.0)
    cosine = sum(float((one[m] * low[m]).sum()) for m in SIZES) / norm(one) / norm(low)
    assert note["tasks"]["a"]["weight_cosine"] == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("rank", [3, 6])
@pytest.mark.parametrize("method", ["mean", "task_arithmetic"])
def test_fewer_outputs_than_ranks_lose_nothing_before_merging(tmp_path: Path, method: str, rank: int) -> None:
    """As the value projections of grouped queries: four adapters on 4 outputs of 16 inputs."""
    sizes = {"v": (4, 16)}
    draw = {str(seed): draw_adapter(seed, rank=rank, sizes=sizes) for seed in range(4)}
    folders = {t: write_adapter(tmp_path / t, drawn, r=rank, lora_alpha=2 * rank) for t, drawn in draw.items()}
    changes = [changes_of(folder, modules=sizes)["v"] for folder in folders.values()]
    note = merge(folders, tmp_path / "out", method=method, rank=4)
    expected = sum(changes) * (0.25 if method == "mean" else 0.3)
    torch.testing.assert_close(changes_of(tmp_path / "out", 1.0, sizes)["v"], expected, rtol=1e-5, atol=1e-6)
    assert note["tasks"]["0"]["factorisation_error"] < 1e-6


def test_ties_of_weight_changes_gives_one_adapter_of_the_rank(unlike: dict[str, Path], tmp_path: Path) -> None:
    note = merge(unlike, tmp_path / "out", method="ties", keep=0.5, rank=2)
    assert read_adapter(tmp_path / "out")["layer.1.q.lora_A.weight"].shape == (2, 6)
    assert all(0 < task["weight_cosine"] < 1 for task in note["tasks"].values())


def test_scales_are_peft_s(tmp_path: Path) -> None:
    tensors = draw_adapter(0) | draw_adapter(1, rank=4, sizes={"other.v": (5, 6)})
    folder = write_adapter(tmp_path / "a", tensors, rank_pattern={"v": 4}, alpha_pattern={r"layer\.1\.q": 8})
    merge({"a": folder}, tmp_path / "out")
    back = restored_of(tmp_path / "out", tmp_path / "back")
    for module, scale in {"layer.0.q": 4 / 2, "layer.1.q": 8 / 2, "other.v": 4 / 4}.items():
        torch.testing.assert_close(change(back, module, 1.0), change(tensors, module, scale), rtol=1e-5, atol=1e-6)
    folder = write_adapter(tmp_path / "b", draw_adapter(0), use_rslora=True)
    merge({"b": folder}, tmp_path / "out-b")
    back = restored_of(tmp_path / "out-b", tmp_path / "back-b", "b")
    expected = change(draw_adapter(0), "layer.0.q", 4 / math.sqrt(2))
    torch.testing.assert_close(change(back, "layer.0.q", 1.0), expected, rtol=1e-5, atol=1e-6)


def restored_of(out: Path, to: Path, task: str = "a") -> dict[str, Tensor]:
    restore(out, task, to)
    return read_adapter(to)


def test_convolutions_and_embeddings_keep_their_shapes(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    folders, all_tensors = {}, {}
    for task in "ab":
        shapes = {
            "conv.lora_A.weight": (2, 3, 2, 2), "conv.lora_B.weight": (5, 2, 1, 1),
            "words.lora_embedding_A": (2, 11), "words.lora_embedding_B": (4, 2),
        }  # fmt: skip
        all_tensors[task] = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        folders[task] = write_adapter(tmp_path / task, all_tensors[task])
    merge(folders, tmp_path / "out", rank=3)
    shapes = {name: tuple(t.shape) for name, t in restored_of(tmp_path / "out", tmp_path / "back").items()}
    assert shapes == {
        "conv.lora_A.weight": (3, 3, 2, 2), "conv.lora_B.weight": (5, 3, 1, 1),
        "words.lora_embedding_A": (3, 11), "words.lora_embedding_B": (4, 3),
    }  # fmt: skip
    merge({"b": folders["b"]}, tmp_path / "alone")
    back = restored_of(tmp_path / "alone", tmp_path / "back-b", "b")
    torch.testing.assert_close(
        back["words.lora_embedding_B"] @ back["words.lora_embedding_A"],
        2 * all_tensors["b"]["words.lora_embedding_B"] @ all_tensors["b"]["words.lora_embedding_A"],
    )


def test_an_adapter_of_zeros_has_no_cosine_and_harms_nobody(unlike: dict[str, Path], tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in draw_adapter(0).items()}
    note = merge(unlike | {"zero": write_adapter(tmp_path / "zero", zeros)}, tmp_path / "out")
    told = note["tasks"]["zero"]
    assert told["weight_cosine"] is None
    assert told["factorisation_error"] == 0
    assert not any(m.any() for m in restored(tmp_path / "out", "zero", tmp_path / "back").values())


def test_modules_of_other_shapes_are_of_another_base(unlike: dict[str, Path], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "d", draw_adapter(0, sizes={"layer.0.q": (5, 7)}))
    with pytest.raises(DataError, match=r"layer.0.q is a change of \(5,\) by \(7,\), elsewhere of \(5,\) by \(6,\)"):
        merge(unlike | {"d": other}, tmp_path / "out")
