"""Merging adapters that share a start: the same numbers as the mathematics on whole vectors."""

import json
from pathlib import Path

import pytest
import torch
from adapter_files import change, draw_adapter, read_adapter, write_adapter
from safetensors.torch import load_file
from torch import Tensor

import matu
from matu.errors import ConfigError, DataError
from matu.merge import mark_start, merge, restore
from matu.vectors import draw_start
from matu.vectors.merging import Trim, ties

TASKS = ("a", "b", "c")


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].float().reshape(-1) for name in sorted(tensors)])


def start_of(tensors: dict[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """Names carry PEFT's prefix when they are sorted; a common prefix changes no order."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    return dict(draw_start(shapes, seed, 0.0))


@pytest.fixture
def marked(tmp_path: Path) -> dict[str, Path]:
    """Three adapters that began at the start of seed 3, in three number formats."""
    folders = {}
    for seed, (task, dtype) in enumerate(zip(TASKS, (torch.float32, torch.bfloat16, torch.float16), strict=True)):
        vector = draw_adapter(seed)
        start = start_of(vector)
        folders[task] = write_adapter(tmp_path / task, {n: (start[n] + 0.1 * vector[n]).to(dtype) for n in vector})
        mark_start(folders[task], fingerprint="f", seed=3, start_b=0.0)
    return folders


def vectors_of(folders: dict[str, Path]) -> Tensor:
    adapters = [read_adapter(folder) for folder in folders.values()]
    return torch.stack([flat(adapter) - flat(start_of(adapter)) for adapter in adapters])


def test_streamed_unification_is_that_of_the_whole_vectors(marked: dict[str, Path], tmp_path: Path) -> None:
    note = merge(marked, tmp_path / "out")
    assert (note["form"], note["method"], list(note["tasks"])) == ("shared_start", "unify", list(TASKS))
    whole = matu.unify(vectors_of(marked))
    held = load_file(tmp_path / "out" / "unified.safetensors")
    names = sorted(name.removeprefix("vector.") for name in held if name.startswith("vector."))
    assert torch.equal(torch.cat([held[f"vector.{name}"].reshape(-1) for name in names]), whole.vector)
    assert torch.equal(held["rescalers"], whole.rescalers)
    for i, task in enumerate(TASKS):
        restore(tmp_path / "out", task, tmp_path / "back" / task)
        back = read_adapter(tmp_path / "back" / task)
        assert torch.equal(flat(back), flat(start_of(back)) + whole.modulate(i))


def test_the_report_tells_cosine_and_size(marked: dict[str, Path], tmp_path: Path) -> None:
    note = merge(marked, tmp_path / "out")
    vectors = vectors_of(marked).double()
    unified = matu.unify(vectors_of(marked))
    for i, task in enumerate(TASKS):
        told, back = note["tasks"][task], unified.modulate(i).double()
        cosine = float(vectors[i] @ back / vectors[i].norm() / back.norm())
        assert told["vector_cosine"] == pytest.approx(cosine, abs=1e-6)
        assert told["vector_norm_ratio"] == pytest.approx(float(back.norm() / vectors[i].norm()), rel=1e-6)
        assert told["factorisation_error"] == 0
        restore(tmp_path / "out", task, tmp_path / "back" / task)
        ends = [read_adapter(folder) for folder in (marked[task], tmp_path / "back" / task)]
        one, other = (torch.cat([change(end, f"layer.{i}.q", 2.0).reshape(-1) for i in (0, 1)]) for end in ends)
        assert told["weight_cosine"] == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-6)
        assert told["weight_norm_ratio"] == pytest.approx(float(other.norm() / one.norm()), rel=1e-6)
    sizes = [(folder / "adapter_model.safetensors").stat().st_size for folder in marked.values()]
    merged = (tmp_path / "out" / "unified.safetensors").stat().st_size
    assert note["sizes"] == {"adapters_bytes": sum(sizes), "merged_bytes": merged, "heads_bytes": 0}
    assert json.loads((tmp_path / "out" / "artifact.json").read_text()) == note
    assert "base_model: owner/base" in (tmp_path / "out" / "README.md").read_text()


def test_one_adapter_comes_back_to_the_bit_and_can_be_merged_again(marked: dict[str, Path], tmp_path: Path) -> None:
    merge({"a": marked["a"]}, tmp_path / "out")
    restore(tmp_path / "out", "a", tmp_path / "back")
    before, after = read_adapter(marked["a"]), read_adapter(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = merge({"a": tmp_path / "back", "b": marked["b"]}, tmp_path / "again")
    assert again["form"] == "shared_start"


def test_a_start_that_is_vouched_for_is_subtracted_and_kept(tmp_path: Path) -> None:
    start = draw_adapter(9)
    start = {name: t if "lora_A" in name else torch.zeros_like(t) for name, t in start.items()}
    folders = {
        task: write_adapter(tmp_path / task, {n: start[n] + 0.1 * t for n, t in draw_adapter(seed).items()})
        for seed, task in enumerate("xy")
    }
    note = merge(folders, tmp_path / "out", shared_start=write_adapter(tmp_path / "start", start))
    assert note["form"] == "shared_start"
    vectors = torch.stack([flat(read_adapter(folder)) - flat(start) for folder in folders.values()])
    restore(tmp_path / "out", "y", tmp_path / "back")
    assert torch.equal(flat(read_adapter(tmp_path / "back")), flat(start) + matu.unify(vectors).modulate(1))
    held = load_file(tmp_path / "out" / "unified.safetensors")
    assert not any("lora_B" in name for name in held if name.startswith("start."))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "mean"}, lambda v: v.mean(dim=0)),
        ({"method": "task_arithmetic"}, lambda v: 0.3 * v.sum(dim=0)),
        ({"method": "task_arithmetic", "scale": -0.5}, lambda v: -0.5 * v.sum(dim=0)),
        ({"method": "ties"}, lambda v: ties(v, 0.2)),
        ({"method": "ties", "keep": 0.7, "scale": 0.5}, lambda v: 0.5 * ties(v, 0.7)),
    ],
)
def test_other_methods_give_one_adapter(marked: dict[str, Path], tmp_path: Path, options, expected) -> None:
    note = merge(marked, tmp_path / "out", **options)
    vectors = vectors_of(marked)
    found = flat(read_adapter(tmp_path / "out")) - flat(start_of(read_adapter(tmp_path / "out")))
    torch.testing.assert_close(found, expected(vectors), rtol=1e-5, atol=1e-6)
    cosine = float(torch.cosine_similarity(found.double(), vectors[1].double(), dim=0))
    assert note["tasks"]["b"]["vector_cosine"] == pytest.approx(cosine, abs=1e-5)
    restore(tmp_path / "out", "b", tmp_path / "back")
    assert torch.equal(flat(read_adapter(tmp_path / "back")), flat(read_adapter(tmp_path / "out")))


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.77, 1.0])
def test_the_trim_of_parts_is_that_of_the_whole(keep: float) -> None:
    # few values, so that many are equal to the least that survives; and signed zeros
    vectors = torch.randint(-3, 4, (4, 90), generator=torch.Generator().manual_seed(0)) * 1e-3
    vectors[0] = torch.randn(90)
    parts = vectors.split([7, 1, 50, 32], dim=1)
    trim = Trim(lambda: parts, keep)
    found = torch.cat([trim(part) for part in parts], dim=1)
    assert torch.equal(found, Trim(lambda: [vectors], keep)(vectors))
    count = -(-int(round(100 * keep * 90, 6)) // 100)
    for row, trimmed in zip(vectors, found, strict=True):
        first = row.abs().sort(descending=True, stable=True).indices[:count]
        expected = torch.zeros_like(row)
        expected[first] = row[first]
        assert torch.equal(trimmed, expected)


def test_heads_are_kept_as_they_are(tmp_path: Path) -> None:
    heads = {"a": torch.randn(3, 4, dtype=torch.float64), "b": torch.randn(2, 4).bfloat16()}
    folders = {
        task: write_adapter(
            tmp_path / task, draw_adapter(seed) | {"classifier.weight": head}, modules_to_save=["classifier"]
        )
        for seed, (task, head) in enumerate(heads.items())
    }
    folders["none"] = write_adapter(tmp_path / "none", draw_adapter(2))
    for method in ("unify", "mean"):
        note = merge(folders, tmp_path / method, method=method)
        assert note["sizes"]["heads_bytes"] > 0
        for task, head in heads.items():
            restore(tmp_path / method, task, tmp_path / f"{method}-{task}")
            assert torch.equal(read_adapter(tmp_path / f"{method}-{task}")["classifier.weight"], head)
            config = json.loads((tmp_path / f"{method}-{task}" / "adapter_config.json").read_text())
            assert config["modules_to_save"] == ["classifier"]
        restore(tmp_path / method, "none", tmp_path / f"{method}-none")
        assert "classifier.weight" not in read_adapter(tmp_path / f"{method}-none")
    assert json.loads((tmp_path / "mean" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_without_equal_marks_weight_changes_are_merged(marked: dict[str, Path], tmp_path: Path) -> None:
    mark_start(marked["b"], fingerprint="f", seed=4, start_b=0.0)
    assert merge(marked, tmp_path / "other seed")["form"] == "weight_change"
    (marked["b"] / "matu.json").unlink()
    assert merge(marked, tmp_path / "no mark")["form"] == "weight_change"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no readable mark"),
        ('{"format": 2, "start": {}}', "format 2"),
        ('{"format": 1, "start": {"fingerprint": "f", "seed": -1, "start_b": 0, "sha256": ""}}', "seed -1"),
        ('{"format": 1, "start": {"fingerprint": "f", "seed": 3, "start_b": 0, "sha256": "0"}}', "sha256"),
    ],
)
def test_a_mark_that_cannot_be_believed_is_refused(marked, tmp_path: Path, content: str, message: str) -> None:
    (marked["a"] / "matu.json").write_text(content)
    with pytest.raises(DataError, match=message):
        merge({"a": marked["a"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_merging_fails_and_nothing_is_overwritten(marked, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="there already"):
        merge(marked, tmp_path / "used")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="keep their rank"):
        merge(marked, tmp_path / "out", rank=3)
    assert sorted(tmp_path.iterdir()) == before
    merge(marked, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no task 'z'; it has a, b, c"):
        restore(tmp_path / "out", "z", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dare"}, "expected one of unify, ties"),
        ({"rank": 0}, "at least 1"),
        ({"keep": 0.5}, "with ties"),
        ({"method": "ties", "keep": 1.5}, "at most 1"),
        ({"scale": 0.5}, "with ties or task_arithmetic"),
        ({"method": "ties", "scale": float("nan")}, "finite"),
    ],
)
def test_options_that_cannot_work_are_refused(marked, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge(marked, tmp_path / "out", **options)


def test_names_are_checked(marked: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapters"):
        merge({}, tmp_path / "out")
    for name in ("../a", "", ".hidden", "a/b"):
        with pytest.raises(ConfigError, match="task name"):
            merge({name: marked["a"]}, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_whole_weights_of_any_type_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    head = torch.ones(2, 3).to(dtype)
    folder = write_adapter(tmp_path / "a", draw_adapter(0) | {"head.weight": head})
    merge({"a": folder, "b": write_adapter(tmp_path / "b", draw_adapter(1))}, tmp_path / "out")
    restore(tmp_path / "out", "a", tmp_path / "back")
    found = load_file(tmp_path / "back" / "adapter_model.safetensors")
    (kept,) = [tensor for name, tensor in found.items() if name.endswith("head.weight")]
    assert torch.equal(kept.view(torch.uint8), head.view(torch.uint8))
    assert kept.dtype == dtype
