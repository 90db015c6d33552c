"""Adapters that plain PEFT trained and plain PEFT loads: logits before and after merging."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_files import change, read_adapter, write_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from matu.merge import mark_start, merge, restore
from matu.vectors import draw_start
from world import tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it

WORDS = torch.arange(12).view(2, 6)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=8,
        )
    ).eval()  # fmt: skip


def gpt2() -> nn.Module:
    """Its layers hold their weights transposed: fan_in_fan_out."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()


def trained(model: nn.Module, seed: int, to: Path, start: Path | None = None, **options: object) -> Tensor:
    """An adapter with every matrix moved at random, saved by PEFT; returns its logits."""
    torch.manual_seed(seed)
    lora = get_peft_model(model, LoraConfig(**options))
    if start is not None:
        lora.save_pretrained(str(start))
    torch.manual_seed(100 + seed)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    lora.save_pretrained(str(to))
    return logits(lora)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=WORDS).logits


def loaded(model: nn.Module, folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(model, str(folder)))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8}),
        (llama, {"target_modules": ["q_proj"], "r": 4, "use_rslora": True}),
        (llama, {"target_modules": r".*layers\.1\..*_proj", "r": 2, "rank_pattern": {"v_proj": 3},
                 "alpha_pattern": {"k_proj": 5}}),
        (llama, {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
        (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
)  # fmt: skip
def test_a_language_model_answers_as_before(make: Callable[[], nn.Module], options, tmp_path: Path) -> None:
    start = tmp_path / "start"
    before = trained(make(), 1, tmp_path / "a", start=start, **options)
    trained(make(), 2, tmp_path / "b", **options)
    plain = logits(make())
    # alone: as before, whichever form is merged
    merge({"a": tmp_path / "a"}, tmp_path / "alone")
    restore(tmp_path / "alone", "a", tmp_path / "alone-a")
    torch.testing.assert_close(loaded(make(), tmp_path / "alone-a"), before, rtol=1e-4, atol=1e-5)
    merge({"a": tmp_path / "a"}, tmp_path / "shared", shared_start=start)
    restore(tmp_path / "shared", "a", tmp_path / "shared-a")
    torch.testing.assert_close(loaded(make(), tmp_path / "shared-a"), before, rtol=1e-5, atol=1e-6)
    # with another adapter at full rank: nearer to the adapter than the base is
    note = merge({t: tmp_path / t for t in "ab"}, tmp_path / "both", rank=99)
    assert note["tasks"]["a"]["factorisation_error"] < 1e-5
    restore(tmp_path / "both", "a", tmp_path / "both-a")
    after = loaded(make(), tmp_path / "both-a")
    assert (after - before).norm() < 0.9 * (plain - before).norm()
    # one adapter for all is a PEFT adapter as it lies there
    merge({t: tmp_path / t for t in "ab"}, tmp_path / "mean", method="mean")
    assert not torch.equal(loaded(make(), tmp_path / "mean"), plain)


def test_adapters_from_one_drawn_start_answer_to_the_bit(tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4}
    trained(llama(), 1, tmp_path / "a", **options)
    names = {f"base_model.model.{n}": t for n, t in read_adapter(tmp_path / "a").items()}
    start = dict(draw_start(sorted((n, tuple(t.shape)) for n, t in names.items()), 5, 0.0))
    save_file({n: start[n] + 0.1 * t for n, t in names.items()}, tmp_path / "a" / "adapter_model.safetensors")
    mark_start(tmp_path / "a", fingerprint="f", seed=5, start_b=0.0)
    assert merge({"a": tmp_path / "a"}, tmp_path / "out")["form"] == "shared_start"
    restore(tmp_path / "out", "a", tmp_path / "back")
    assert torch.equal(loaded(llama(), tmp_path / "back"), loaded(llama(), tmp_path / "a"))


def test_embeddings_and_their_scale(tmp_path: Path) -> None:
    options = {"target_modules": ["embed_tokens", "q_proj"], "r": 2, "lora_alpha": 6}
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        before = trained(llama(), 1, tmp_path / "a", **options)
    merge({"a": tmp_path / "a"}, tmp_path / "out")
    restore(tmp_path / "out", "a", tmp_path / "back")
    torch.testing.assert_close(loaded(llama(), tmp_path / "back"), before, rtol=1e-4, atol=1e-5)


def test_the_mark_names_the_start_that_matu_trains_from(tiny_vit: Path, tmp_path: Path) -> None:
    model = tiny_trainer(tiny_vit).model
    model.load(0.1 * torch.randn(model.dim, generator=torch.Generator().manual_seed(0)))
    parts = model.layout.unflatten(model.parameters.detach())
    folder = write_adapter(
        tmp_path / "a", {name.replace(".default", ""): part.clone() for name, part in parts.items()}, r=4
    )
    mark_start(folder, fingerprint=model.fingerprint, seed=0, start_b=0.0)
    note = merge({"a": folder}, tmp_path / "out")
    assert note["form"] == "shared_start"
    assert note["tasks"]["a"]["vector_cosine"] == pytest.approx(1)
    # had the start been another, A's part of the vector would not be what was loaded
    held = load_file(tmp_path / "out" / "unified.safetensors")
    names = sorted(name for name in held if name.startswith("vector."))
    vector = torch.cat([held[name].reshape(-1) for name in names])
    torch.testing.assert_close(vector, model.parameters.detach() - model.start)


def test_other_peft_versions_configs_are_read(tmp_path: Path) -> None:
    trained(llama(), 1, tmp_path / "a", target_modules=["q_proj"])
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    few = {key: config[key] for key in ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")}
    path.write_text(json.dumps(few))
    note = merge({"a": tmp_path / "a"}, tmp_path / "out")
    assert note["tasks"]["a"]["weight_cosine"] == pytest.approx(1)
    restore(tmp_path / "out", "a", tmp_path / "back")
    one, other = (change(read_adapter(tmp_path / f), "model.layers.0.self_attn.q_proj", 1.0) for f in ("a", "back"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
