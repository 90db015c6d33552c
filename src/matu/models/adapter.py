"""LoRA adapters through PEFT, held as one flat vector: the parameters that all sites train."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from matu.errors import ConfigError
from matu.models.backbone import Backbone
from matu.models.fused_lora import FusedLora, Own, fuse, lora_layers
from matu.models.vit_block import FusedBlock, fused_blocks
from matu.vectors import Layout, draw_start

# The words of the papers, and what the attention projections are called in one library or another.
_SYNONYMS = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}


class AdaptedModel:
    """A frozen backbone with one LoRA adapter whose parameters and gradients are views of flat vectors.

    The start, A drawn from `adapter_seed` and B = 0 (or within ± `start_b`), is the same at every site: a task vector
    is parameters minus start (method: θ_p, τ).

    Parameters
    ----------
    backbone
        The frozen encoder; it is changed in place (adapters go into it).
    rank, alpha
        Of LoRA; the update is (alpha / rank) · B · A.
    targets
        Layers that get an adapter: "query", "key", "value", or the backbone's own layer names.
    adapter_seed
        Of A's draw.
    start_b
        B starts uniform in ± this; 0, the usual start, leaves the backbone as it is.
    device
        Where to compute.
    low_precision
        Frozen matrices in bfloat16, computation under bfloat16 autocast; the adapter stays float32.

    Raises
    ------
    ConfigError
        If the backbone has no such layer; the message lists those it has.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        adapter_seed: int,
        device: torch.device,
        low_precision: bool,
        start_b: float = 0.0,
    ) -> None:
        self.backbone, self.device, self.low_precision = backbone, device, low_precision
        names = _target_layers(backbone, targets)
        scale: Any = alpha  # PEFT names it a whole number, and divides it by the rank
        self.lora = LoraConfig(r=rank, lora_alpha=scale, target_modules=names, lora_dropout=0.0, bias="none")
        self.model: nn.Module = inject_adapter_in_model(self.lora, backbone.module)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.layout = Layout.of(trained)
        self.fingerprint = self.layout.fingerprint(
            backbone=backbone.digest, rank=rank, alpha=float(alpha), adapter_seed=adapter_seed,
            image_size=backbone.image_size, mean=str(backbone.mean), std=str(backbone.std),
            **({"start_b": start_b} if start_b else {}),
        )  # fmt: skip
        shapes = zip(self.layout.names, self.layout.shapes, strict=True)
        start = self.layout.flatten(dict(draw_start(shapes, adapter_seed, start_b)))
        self.model.to(device)
        if low_precision:
            _freeze_in_bfloat16(self.model)
        self.start = start.to(device)
        self.parameters = nn.Parameter(self.start.clone())
        self.parameters.grad = torch.zeros_like(self.parameters)
        self._tie(trained)
        self._fused: Sequence[FusedLora | FusedBlock] = []
        self._apart: list[FusedLora] = []
        self._mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(backbone.std, device=device).view(1, 3, 1, 1) * 255
        blank = torch.zeros(1, backbone.image_size, backbone.image_size, 3, dtype=torch.uint8)
        self._fused = fused_blocks(self.model) or fuse(self.model, lambda: self.features(blank))
        together = {id(layer) for group in self._fused for layer in group.layers}
        self._apart = [FusedLora([layer]) for layer in lora_layers(self.model) if id(layer) not in together]
        self.compute_together(True)

    def compute_together(self, fused: bool) -> None:
        """Compute LoRA layers of one input together, or each by PEFT's own forward."""
        for group in self._fused:
            group.attach() if fused else group.detach()

    def _tie(self, trained: dict[str, nn.Parameter]) -> None:
        """Make every LoRA matrix, and its gradient, a view of the flat vector: nothing is copied per step."""
        assert self.parameters.grad is not None
        values = self.layout.unflatten(self.parameters.data)
        gradients = self.layout.unflatten(self.parameters.grad)
        for name, parameter in trained.items():
            parameter.data, parameter.grad = values[name], gradients[name]

    def share_frozen(self, other: AdaptedModel) -> None:
        """Read frozen weights where those of another model of the same backbone lie; the adapter stays one's own."""
        for mine, theirs in zip(self.model.parameters(), other.model.parameters(), strict=True):
            if not mine.requires_grad:
                mine.data = theirs.data
        for group, of in zip((*self._fused, *self._apart), (*other._fused, *other._apart), strict=True):
            group.share_frozen(of)

    def free_weights(self) -> None:
        """Free all weights and keep what describes them (layout, fingerprint, backbone): a server trains nothing."""
        self.backbone = replace(self.backbone, module=nn.Identity())
        self.model = self.backbone.module
        self.start, self.parameters, self._fused, self._apart = torch.zeros(0), nn.Parameter(torch.zeros(0)), [], []

    @property
    def dim(self) -> int:
        """Number of LoRA parameters, d."""
        return self.layout.dim

    def load(self, task_vector: Tensor) -> None:
        """Set the parameters to start + task vector (float [d])."""
        with torch.no_grad():
            torch.add(self.start, task_vector.to(self.start), out=self.parameters.data)

    def features(self, images: Tensor) -> Tensor:
        """Image features: uint8 [n, size, size, 3] -> [n, features]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            return self.backbone.encode(self._normalised(images))

    def mixed_features(self, images: Tensor, adapters: Callable[[slice], Tensor]) -> Tensor:
        """Image features where every image has an adapter of its own, in one forward pass without gradients.

        Parameters
        ----------
        images
            uint8 [n, size, size, 3].
        adapters
            Gives a range of the n adapters' flat vectors (start + task vector): slice -> float [n, its length].
        """

        def own(matrix: Tensor) -> Tensor:
            first = matrix.storage_offset()  # it is a view of the flat vector
            return adapters(slice(first, first + matrix.numel())).unflatten(1, matrix.shape)

        with torch.inference_mode():
            return self._features_with(own, images)

    def stacked_features(self, images: Tensor, adapters: Tensor) -> Tensor:
        """Image features of k batches of one size, each with an adapter of its own; with gradients by the adapters.

        Parameters
        ----------
        images
            uint8 [k · n, size, size, 3], batch behind batch.
        adapters
            Flat vectors (start + task vector), float32 [k, d].

        Returns
        -------
        Tensor
            [k · n, features].
        """
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        parts = adapters.split(sizes, dim=1)  # at once: the gradient by all of them is one concatenation
        by_first = dict(zip(itertools.accumulate(sizes, initial=0), parts, strict=False))

        def own(matrix: Tensor) -> Tensor:
            if not matrix.numel():
                return matrix.expand(len(adapters), *matrix.shape)
            return by_first[int(matrix.storage_offset())].unflatten(1, matrix.shape)

        return self._features_with(own, images)

    def _features_with(self, own: Own, images: Tensor) -> Tensor:
        for group in (*self._fused, *self._apart):
            group.attach(own)
        try:
            return self.features(images)
        finally:
            for group in self._apart:
                group.detach()
            self.compute_together(True)

    def linearised_features(self, images: Tensor, adapters: Tensor | None = None) -> Tensor:
        """f(φ₀) + J(φ₀)(φ − φ₀): features linear in the adapter, by one forward-mode product; φ₀ is its start.

        The gradient by φ is J(φ₀)ᵀ times that by the features, whatever φ is: it goes back through f at φ₀, and not
        through the product. Where B starts at 0 the derivative by A is 0, and only B learns.

        Parameters
        ----------
        images, adapters
            As of `stacked_features`; None: the model's own adapter, for all images.

        Returns
        -------
        Tensor
            [n, features].
        """
        where = self.parameters[None] if adapters is None else adapters
        at_start = self.start + (where - where.detach())
        with forward_ad.dual_level(), warnings.catch_warnings():
            # torch's own forward-mode code is written in its deprecated script
            warnings.simplefilter("ignore", DeprecationWarning)
            dual = forward_ad.make_dual(at_start, where.detach() - self.start)
            features, change = forward_ad.unpack_dual(self.stacked_features(images, dual))
            return features.float() + change.detach()

    def _normalised(self, images: Tensor) -> Tensor:
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size] as the backbone was trained on."""
        pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return pixels.sub_(self._mean).div_(self._std)


def _target_layers(backbone: Backbone, targets: Sequence[str]) -> list[str]:
    """The full names of the layers to adapt, each target found under one of its names."""
    linear = [name for name, module in backbone.module.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for target in targets:
        endings = _SYNONYMS.get(target, (target,))
        hits = [name for name in linear if name.rpartition(".")[2] in endings]
        if not hits:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"targets: backbone '{backbone.name}' has no layer '{target}'; its linear layers are {', '.join(known)}"
            )
        found += hits
    return found


def _freeze_in_bfloat16(model: nn.Module) -> None:
    """Autocast would convert every frozen matrix anew in every step; converted once, it has nothing to do."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not any(p.requires_grad for p in module.parameters()):
            module.to(torch.bfloat16)
