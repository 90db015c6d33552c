from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import BertConfig, BertModel, ViTModel

from matu.errors import ConfigError, DataError
from matu.models import AdaptedModel, load_backbone
from world import SIZE, images_of, tiny_trainer


def adapted(folder: Path, **changes: object) -> AdaptedModel:
    options = {
        "rank": 4, "alpha": 8.0, "targets": ("query", "key", "value"), "adapter_seed": 0,
        "device": torch.device("cpu"), "low_precision": False,
    } | changes  # fmt: skip
    return AdaptedModel(load_backbone(str(folder), image_size=SIZE), **options)  # type: ignore[arg-type]


def test_the_adapter_has_the_size_of_its_layers(tiny_vit: Path) -> None:
    # two layers, three targets, A [4, 16] and B [16, 4] each
    assert adapted(tiny_vit).dim == 2 * 3 * (4 * 16 + 16 * 4)
    assert adapted(tiny_vit, targets=("value",)).dim == 2 * (4 * 16 + 16 * 4)


def test_a_is_drawn_from_the_seed_and_b_is_zero(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    parts = model.layout.unflatten(model.start)
    for name, values in parts.items():
        if ".lora_B." in name:
            assert not values.any()
        else:
            assert values.abs().max() <= 16**-0.5
            assert values.std() > 0.05
    assert torch.equal(model.start, adapted(tiny_vit).start)
    assert not torch.equal(model.start, adapted(tiny_vit, adapter_seed=1).start)


def test_the_fingerprint_tells_whatever_differs(tiny_vit: Path) -> None:
    prints = [
        adapted(tiny_vit, **change).fingerprint
        for change in ({}, {"adapter_seed": 1}, {"rank": 2}, {"alpha": 4.0}, {"targets": ("key", "value")})
    ]
    assert len(set(prints)) == len(prints)
    assert adapted(tiny_vit).fingerprint == prints[0]


def test_the_start_changes_nothing_and_a_task_vector_does(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    images = torch.from_numpy(images_of(0, 5, seed=1))
    bare = ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False, attn_implementation="eager").eval()
    pixels = (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    backbone = model.backbone
    assert (backbone.mean, backbone.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = torch.tensor(backbone.mean).view(3, 1, 1), torch.tensor(backbone.std).view(3, 1, 1)
    expected = bare((pixels / 2 + 0.5 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-5)
    model.load(torch.full((model.dim,), 0.1))
    assert not torch.allclose(model.features(images), expected, atol=1e-2)
    torch.testing.assert_close(
        model.parameters.detach() - model.start, torch.full((model.dim,), 0.1), rtol=0, atol=1e-7
    )


def test_features_and_gradients_are_those_of_plain_peft(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    vector = torch.randn(model.dim, generator=torch.Generator().manual_seed(0)) * 0.1
    model.load(vector)
    images = torch.from_numpy(images_of(1, 4, seed=2))
    model.features(images).square().sum().backward()

    plain = inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=8.0, target_modules=["q_proj", "k_proj", "v_proj"]),
        ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False, attn_implementation="eager").eval(),
    )
    parts = model.layout.unflatten(model.start + vector)
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert trained.keys() == parts.keys()
    for name, parameter in trained.items():
        parameter.data.copy_(parts[name])
    mean = torch.tensor(model.backbone.mean).view(3, 1, 1)
    std = torch.tensor(model.backbone.std).view(3, 1, 1)
    features = plain((images.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state[:, 0]
    features.square().sum().backward()
    torch.testing.assert_close(model.features(images), features, rtol=1e-4, atol=1e-5)
    gradient = model.layout.flatten({name: p.grad for name, p in trained.items() if p.grad is not None})
    torch.testing.assert_close(model.parameters.grad, gradient, rtol=1e-3, atol=1e-4)


def test_low_precision_stays_close(tiny_vit: Path) -> None:
    images = torch.from_numpy(images_of(1, 8, seed=2))
    vector = torch.full((adapted(tiny_vit).dim,), 0.05)
    full, low = adapted(tiny_vit), adapted(tiny_vit, low_precision=True)
    full.load(vector)
    low.load(vector)
    torch.testing.assert_close(low.features(images).float(), full.features(images), rtol=0.1, atol=0.1)
    assert low.parameters.dtype == torch.float32


def test_positions_are_interpolated_as_transformers_does(tiny_vit: Path) -> None:
    backbone = load_backbone(str(tiny_vit), image_size=16)
    assert backbone.image_size == 16
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bare = ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False, attn_implementation="eager").eval()
    expected = bare(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.encode(pixels), expected, rtol=1e-5, atol=1e-6)


def test_the_digest_is_of_the_weights_not_of_the_place_or_the_input_size(tiny_vit: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False).save_pretrained(moved)
    first = load_backbone(str(tiny_vit), image_size=8)
    assert load_backbone(str(moved), image_size=16).digest == first.digest
    other = ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False)
    other.layernorm.bias.data[0] += 1
    other.save_pretrained(moved)
    assert load_backbone(str(moved), image_size=8).digest != first.digest
    assert first.name == tiny_vit.name


def test_a_backbone_is_found_under_the_models_root(tiny_vit: Path) -> None:
    assert load_backbone(tiny_vit.name, image_size=8, models_root=tiny_vit.parent).name == tiny_vit.name


def test_an_image_size_that_no_patch_divides_is_refused(tiny_vit: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size 10 .*4 px patches; right would be 8"):
        load_backbone(str(tiny_vit), image_size=10)


def test_a_layer_that_is_not_there_is_named_with_those_that_are(tiny_vit: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'qkv'; .*q_proj"):
        adapted(tiny_vit, targets=("qkv",))


@pytest.mark.parametrize("name", ["./nowhere", "nonsense", "/nowhere/at/all"])
def test_a_backbone_that_is_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no such bundled model, folder or hub id"):
        load_backbone(name, image_size=8)


def test_an_empty_folder_is_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load_backbone(str(tmp_path), image_size=8)


def test_broken_weights_are_refused(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_vit / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_vit / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_backbone(str(tmp_path), image_size=8)


def test_weights_in_pickle_files_are_not_read(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_vit / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_backbone(str(tmp_path), image_size=8)


def test_the_trainer_of_the_tests_is_what_it_says(tiny_vit: Path) -> None:
    assert tiny_trainer(tiny_vit).model.dim == 768


@pytest.mark.parametrize("content", ["{", '{"image_mean": null}', '{"image_std": [0, 1, 1]}', '{"image_mean": [0.5]}'])
def test_a_preprocessing_that_cannot_be_is_refused(tiny_vit: Path, tmp_path: Path, content: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_vit / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(DataError, match="cannot be loaded"):
        load_backbone(str(tmp_path), image_size=8)


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="an image model"):
        load_backbone(str(tmp_path), image_size=8)


def test_the_fingerprint_follows_size_and_preprocessing(tiny_vit: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, size: int) -> str:
        return AdaptedModel(
            load_backbone(str(folder), image_size=size), rank=4, alpha=8.0, targets=("query",), adapter_seed=0,
            device=torch.device("cpu"), low_precision=False,
        ).fingerprint  # fmt: skip

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_vit / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert len({fingerprint(tiny_vit, 8), fingerprint(tiny_vit, 16), fingerprint(tmp_path, 8)}) == 3
