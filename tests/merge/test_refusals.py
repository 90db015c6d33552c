"""Adapters that cannot be merged, and merged folders that are broken, are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from adapter_files import draw_adapter, write_adapter
from safetensors.torch import load_file, save_file

from matu.errors import DataError
from matu.merge import merge, restore


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3, expected LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"something_new": 1}, "something_new"),
        ({"r": 3}, "not of rank 3"),
        ({"r": 0}, "at least 1"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"rank_pattern": {"(": 2}}, "no readable config"),
        ({"rank_pattern": {"(a|a)*b": 2}}, "no repeated group"),
        ({"alpha_pattern": {".*.*.*x": 2}}, "at most 2 repeats"),
        ({"lora_alpha": 1e300}, "at most 1e"),
        ({"lora_alpha": 10**400}, "at most 1e"),
        ({"base_model_name_or_path": ["a"]}, "expected printable text"),
        ({"base_model_name_or_path": "a\nlicense: mit"}, "expected printable text"),
    ],
)
def test_configs_that_mean_another_change(tmp_path: Path, config, message: str) -> None:
    folder = write_adapter(tmp_path / "a", draw_adapter(0), **config)
    with pytest.raises(DataError, match=message):
        merge({"a": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.lora_A.weight": torch.ones(2, 3)}, "without"),
        ({"q.lora_B.weight": torch.ones(3, 2)}, "without"),
        ({"classifier.weight": torch.ones(3, 2)}, "no LoRA matrices"),
        (draw_adapter(0) | {"q.lora_magnitude_vector": torch.ones(3)}, "lora_magnitude_vector"),
        (draw_adapter(0) | {"layer.0.q.lora_B.bias": torch.ones(3)}, r"lora_B.bias"),
        (draw_adapter(0) | {"layer.0.q.lora_A.weight": torch.full((2, 6), torch.nan)}, r"layer.0.q.lora_A.*not finite"),
        (draw_adapter(0) | {"head.weight": torch.full((2, 6), torch.inf)}, r"head.weight: numbers that are not finite"),
        (draw_adapter(0, dtype=torch.float64), "float64, expected"),
        (
            draw_adapter(0) | {"head.weight": torch.full((2,), torch.nan).to(torch.float8_e4m3fn)},
            r"head.weight: numbers that are not finite",
        ),
    ],
)
def test_tensors_that_are_no_pairs_or_no_numbers(tmp_path: Path, tensors, message: str) -> None:
    with pytest.raises(DataError, match=message):
        merge({"a": write_adapter(tmp_path / "a", tensors)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision", "fan_in_fan_out"])
def test_adapters_of_two_bases(tmp_path: Path, key: str) -> None:
    folders = {
        "a": write_adapter(tmp_path / "a", draw_adapter(0)),
        "b": write_adapter(tmp_path / "b", draw_adapter(1), **{key: True if key == "fan_in_fan_out" else "other"}),
    }
    with pytest.raises(DataError, match=f"{key} .*expected adapters of one base"):
        merge(folders, tmp_path / "out")


def test_pickles_and_missing_or_torn_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", draw_adapter(0))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match="no safetensors file"):
        merge({"a": folder}, tmp_path / "out")
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model.bin: a pickle.*save_pretrained"):
        merge({"a": folder}, tmp_path / "out")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(DataError, match=r"no adapter_model.safetensors"):
        merge({"a": folder}, tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        merge({"a": tmp_path / "nowhere"}, tmp_path / "out")


def test_a_start_that_does_not_fit(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", draw_adapter(0))
    start = write_adapter(tmp_path / "start", draw_adapter(0, rank=1), r=1, lora_alpha=2)
    with pytest.raises(DataError, match=r"layer.0.q is not as in"):
        merge({"a": folder}, tmp_path / "out", shared_start=start)


def break_mask(tensors, note):
    name = next(name for name in tensors if name.startswith("mask."))
    tensors[name] = tensors[name][:1]


def break_padding(tensors, note):
    for name in (name for name in tensors if name.startswith("mask.")):
        tensors[name] = torch.full_like(tensors[name], 255)


def test_a_bit_that_fell_over_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge({"a": write_adapter(tmp_path / "a", draw_adapter(0))}, out)
    damaged = bytearray((out / "unified.safetensors").read_bytes())
    damaged[-5] ^= 1
    (out / "unified.safetensors").write_bytes(damaged)
    with pytest.raises(DataError, match=r"not what artifact\.json was written with"):
        restore(out, "a", tmp_path / "back")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_mask, r"expected uint8 \[2, "),
        (break_padding, "padding bits"),
        (lambda tensors, note: tensors.pop("rescalers"), "no rescalers"),
        (lambda tensors, note: tensors["rescalers"].fill_(torch.nan), "rescalers: expected finite"),
        (lambda tensors, note: note.update(format=3), "format 3"),
        (lambda tensors, note: note.pop("tasks"), "tasks"),
        (lambda tensors, note: note["tasks"].update({"../x": note["tasks"]["a"]}), r"task name '\.\./x'"),
        (lambda tensors, note: note["tasks"].update(c=note["tasks"]["a"]), r"rescalers: expected finite float32 \[3\]"),
    ],
)
def test_a_broken_merged_folder(tmp_path: Path, harm, message: str) -> None:
    # 3 · 5 entries fill no whole bytes
    folders = {t: write_adapter(tmp_path / t, draw_adapter(i, sizes={"q": (5, 3)})) for i, t in enumerate("ab")}
    out = tmp_path / "out"
    merge(folders, out, rank=1)
    tensors, note = load_file(out / "unified.safetensors"), json.loads((out / "artifact.json").read_text())
    harm(tensors, note)
    save_file(tensors, out / "unified.safetensors")
    note["sha256"] = {}
    (out / "artifact.json").write_text(json.dumps(note))
    with pytest.raises(DataError, match=message):
        restore(out, "a", tmp_path / "back")
    assert not (tmp_path / "back").exists()
