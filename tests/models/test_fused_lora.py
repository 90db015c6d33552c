"""The fused form against PEFT's own layers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from matu.models import AdaptedModel, load_backbone
from matu.models.fused_lora import FusedLora, fuse
from world import SIZE


def adapted(vit: Path, *, targets: tuple[str, ...] = ("query", "key", "value"), low: bool = False) -> AdaptedModel:
    return AdaptedModel(
        load_backbone(str(vit), image_size=SIZE), rank=3, alpha=6.0, targets=targets, adapter_seed=0,
        device=torch.device("cpu"), low_precision=low, start_b=0.2,
    )  # fmt: skip


def by_groups(vit: Path) -> AdaptedModel:
    """With the form for any model, where whole blocks could be fused."""
    model = adapted(vit)
    model.compute_together(False)
    images = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    model._fused = fuse(model.model, lambda: model.features(images))
    model.compute_together(True)
    return model


def features_and_gradient(model: AdaptedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    model.parameters.grad.zero_()  # type: ignore[union-attr]
    features = model.features(images).float()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), model.parameters.grad.clone()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "targets", [("query", "key", "value"), ("query", "value"), ("query", "value", "fc1", "o_proj")]
)
@pytest.mark.parametrize(("low", "tolerance"), [(False, 1e-5), (True, 5e-2)])
def test_features_and_gradients_are_those_of_peft(
    tiny_vit: Path, targets: tuple[str, ...], low: bool, tolerance: float
) -> None:
    model = adapted(tiny_vit, targets=targets, low=low)
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fused = features_and_gradient(model, images)
    model.compute_together(False)
    plain = features_and_gradient(model, images)
    assert plain[1].abs().max() > 0
    for found, expected in zip(fused, plain, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_layers_of_one_input_are_one_group_and_others_stand_alone(tiny_vit: Path) -> None:
    groups = adapted(tiny_vit, targets=("query", "key", "value", "fc1"))._fused
    assert sorted(len(group.layers) for group in groups) == [1, 1, 3, 3], "two blocks"


def test_a_layer_that_is_called_out_of_turn_is_right(tiny_vit: Path) -> None:
    group = next(g for g in by_groups(tiny_vit)._fused if len(g.layers) == 3)
    one, two = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    calls = [(0, one), (1, two), (2, one), (0, one), (0, one), (1, one), (2, two)]
    found = [group.layers[i](x) for i, x in calls]
    group.detach()
    for (i, x), y in zip(calls, found, strict=True):
        torch.testing.assert_close(y, group.layers[i](x))


def test_a_layer_that_is_used_twice_in_a_forward_keeps_pefts_own(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    model.compute_together(False)
    layer = next(m for m in model.model.modules() if hasattr(m, "lora_A"))

    def twice() -> object:
        x = torch.zeros(1, 2, 16)
        return layer(layer(x))

    assert fuse(nn.ModuleList([layer]), twice) == []


def test_nothing_of_a_forward_is_held_after_it(tiny_vit: Path) -> None:
    model = by_groups(tiny_vit)
    model.features(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))
    assert all(group._input is None and not group._outputs for group in model._fused)


@pytest.mark.parametrize("together", [True, False], ids=["together", "each alone"])
def test_matrices_of_each_samples_own(tiny_vit: Path, together: bool) -> None:
    model = adapted(tiny_vit, targets=("query", "value", "fc1"))
    if not together:
        model._apart = [FusedLora([layer]) for group in model._fused for layer in group.layers]
        model._fused = []
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(4, model.dim, generator=torch.Generator().manual_seed(1)) / 4
    mixed = model.mixed_features(images, lambda at: (model.start + vectors)[:, at])
    for i in range(4):
        model.load(vectors[i])
        torch.testing.assert_close(mixed[i], model.features(images[i : i + 1])[0].detach(), rtol=1e-4, atol=1e-5)


def test_after_a_mixed_batch_that_failed_the_model_is_as_before(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    images = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    before = model.features(images).detach()

    def fails(at: slice) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        model.mixed_features(images, fails)
    assert torch.equal(model.features(images).detach(), before)


def test_frozen_weights_lie_in_memory_once(tiny_vit: Path) -> None:
    for group in by_groups(tiny_vit)._fused:
        inside = group.weight.untyped_storage()
        for layer in group.layers:
            assert layer.base_layer.weight.untyped_storage().data_ptr() == inside.data_ptr()  # type: ignore[union-attr]
