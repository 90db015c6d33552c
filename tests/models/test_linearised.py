"""Linearised features and their gradients against a forward-mode product through PEFT's own layers."""

from pathlib import Path

import pytest
import torch
from test_families import FAMILIES
from torch import Tensor, nn

from matu.models import AdaptedModel, load_backbone

SIZE = 16
IMAGES = torch.randint(0, 256, (6, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
QKV = ("query", "key", "value")


def adapted(folder: Path, targets: tuple[str, ...] = QKV, *, low: bool = False, start_b: float = 0.2) -> AdaptedModel:
    return AdaptedModel(
        load_backbone(str(folder), image_size=SIZE), rank=3, alpha=6.0, targets=targets, adapter_seed=0,
        device=torch.device("cpu"), low_precision=low, start_b=start_b,
    )  # fmt: skip


class Encoder(nn.Module):
    """`Backbone.encode` as a module, so that its parameters can be replaced for a call."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.module, self.encode = model.backbone.module, model.backbone.encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels)


def by_definition(model: AdaptedModel, adapter: Tensor, images: Tensor) -> Tensor:
    """f(φ₀) + J(φ₀)(φ − φ₀), with gradients by φ."""
    encoder, pixels = Encoder(model), model._normalised(images)

    def encode(flat: Tensor) -> Tensor:
        values = {f"module.{name}": part for name, part in model.layout.unflatten(flat).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=model.low_precision):
            return torch.func.functional_call(encoder, values, (pixels,)).float()

    model.compute_together(False)
    features, change = torch.func.jvp(encode, (model.start,), (adapter - model.start,))
    model.compute_together(True)
    return features + change


def gradient(features: Tensor, by: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    return torch.autograd.grad((features * weights).sum(), by)[0]


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


def check(model: AdaptedModel, tolerance: float) -> None:
    """Of the model's own adapter, and of three adapters on two images each."""
    draw = torch.Generator().manual_seed(1)
    vectors = 0.3 * torch.randn(3, model.dim, generator=draw)
    model.load(vectors[0])
    own = model.parameters.detach().clone().requires_grad_()
    found, expected = model.linearised_features(IMAGES), by_definition(model, own, IMAGES)
    start = by_definition(model, model.start, IMAGES).detach()
    assert (expected.detach() - start).norm() > 1e-3 * start.norm()
    near(found.detach() - start, expected.detach() - start, tolerance)
    near(gradient(found, model.parameters), gradient(expected, own), tolerance)

    many = (model.start + vectors).requires_grad_()
    found = model.linearised_features(IMAGES, many)
    expected = torch.cat([by_definition(model, one, part) for one, part in zip(many, IMAGES.split(2), strict=True)])
    near(found.detach() - start, expected.detach() - start, tolerance)
    near(gradient(found, many), gradient(expected, many), tolerance)


@pytest.mark.parametrize("start_b", [0.0, 0.2])
@pytest.mark.parametrize("targets", [QKV, ("query", "value"), ("key",), ("query", "value", "fc1", "o_proj")], ids=str)
@pytest.mark.parametrize(("low", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_of_a_vit(tiny_vit: Path, targets: tuple[str, ...], low: bool, tolerance: float, start_b: float) -> None:
    check(adapted(tiny_vit, targets, low=low, start_b=start_b), tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_other_families(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(tmp_path)
    check(adapted(tmp_path), 1e-4)


def test_without_gradients_they_are_the_same(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    model.load(0.3 * torch.randn(model.dim, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        found = model.linearised_features(IMAGES)
    assert not found.requires_grad
    assert torch.equal(found, model.linearised_features(IMAGES).detach())
