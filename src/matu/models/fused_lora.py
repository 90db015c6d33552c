"""LoRA for several linear layers of one input at once: the same products in fewer and larger matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Own = Callable[[Tensor], Tensor]
"""From a LoRA matrix to one of its shape for every sample of a batch, [n, …]."""


class _FusedLora(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ for layers i of one input, W and b frozen.

    The A_i are stacked, the B_i stand on the diagonal of one matrix: zeros cost less than small products do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(matrices) // 2
        a = torch.cat(matrices[:count]).to(weight.dtype)
        b = torch.block_diag(*matrices[count:]).to(weight.dtype).mul_(scale)
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        inner = rows @ a.T
        y = torch.addmm(bias, rows, weight.T) if bias is not None else rows @ weight.T
        y.addmm_(inner, b.T)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.shape, ctx.dtype, ctx.scale = x.shape, x.dtype, scale
        ctx.sizes = [m.shape for m in matrices]
        parts = y.view(*x.shape[:-1], -1).split([m.shape[0] for m in matrices[count:]], dim=-1)
        return tuple(parts) if count > 1 else (parts[0],)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        count = len(ctx.sizes) // 2
        outs = [size[0] for size in ctx.sizes[count:]]
        g = torch.cat([one.reshape(-1, n).to(weight.dtype) for one, n in zip(gradients, outs, strict=True)], dim=1)
        inner_g = g @ b
        into_a = inner_g.T @ rows
        into_b = (g.T @ inner).float() * ctx.scale
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = (g @ weight).addmm_(inner_g, a).view(ctx.shape).to(ctx.dtype)
        ranks = [size[0] for size in ctx.sizes[:count]]
        blocks, row, column = [], 0, 0
        for n, rank in zip(outs, ranks, strict=True):
            blocks.append(into_b[row : row + n, column : column + rank].contiguous())
            row, column = row + n, column + rank
        return into_x, None, None, None, *into_a.float().split(ranks), *blocks


class FusedLora:
    """Stands in for the forward of PEFT's LoRA layers that read one input, such as query, key and value.

    Whichever layer is called first computes all of them; the others, called with the very same tensor, take
    theirs. Called with another tensor, a layer computes anew: the result is right in any order of calls.

    Parameters
    ----------
    layers
        PEFT LoRA layers of equal input width and equal scale.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        bases: list[Any] = [layer.base_layer for layer in layers]
        self.weight = torch.cat([base.weight.detach() for base in bases])
        self.bias = None if bases[0].bias is None else torch.cat([base.bias.detach() for base in bases])
        for base, part in zip(bases, self.weight.split([base.out_features for base in bases]), strict=True):
            base.weight.data = part  # the frozen weights lie in memory once
        first: Any = layers[0]
        self.scale = float(first.scaling["default"])
        self._own: Own | None = None
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def attach(self, own: Own | None = None) -> None:
        """Replace the layers' forward; with `own`, every sample of a batch has matrices of its own (no gradients)."""
        self._own, self._input, self._outputs = own, None, {}
        for number, layer in enumerate(self.layers):
            layer.forward = self._forward_of(number)

    def detach(self) -> None:
        """Give the layers PEFT's forward back."""
        for layer in self.layers:
            layer.__dict__.pop("forward", None)
        self._own, self._input, self._outputs = None, None, {}

    def _forward_of(self, number: int) -> Any:
        def forward(x: Tensor) -> Tensor:
            if x is not self._input or number not in self._outputs:
                self._input, self._outputs = x, dict(enumerate(self._compute(x)))
            output = self._outputs.pop(number)
            if not self._outputs:
                self._input = None  # nothing is held for longer than it is needed
            return output

        return forward

    def _compute(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs of all layers."""
        layers: list[Any] = [*self.layers]
        a, b = ([getattr(layer, name)["default"].weight for layer in layers] for name in ("lora_A", "lora_B"))
        if self._own is None:
            return _FusedLora.apply(x, self.weight, self.bias, self.scale, *a, *b)
        dtype = self.weight.dtype
        return self._per_sample(x, [self._own(m).to(dtype) for m in a], [self._own(m).to(dtype) for m in b])

    def _per_sample(self, x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same with A_i [n, r, in] and B_i [n, out, r]; samples lie one behind the other in x."""
        rows = x.reshape(len(a[0]), -1, x.shape[-1]).to(self.weight.dtype)
        y = nn.functional.linear(rows, self.weight, self.bias)
        inner = torch.bmm(rows, torch.cat(list(a), dim=1).mT).split([m.shape[1] for m in a], dim=-1)
        parts = y.split([m.shape[1] for m in b], dim=-1)
        for part, one, matrices in zip(parts, inner, b, strict=True):
            part.baddbmm_(one, matrices.mT, alpha=self.scale)
        return [part.reshape(*x.shape[:-1], -1) for part in parts]


def lora_layers(model: nn.Module) -> list[nn.Module]:
    """PEFT's LoRA layers in a model."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def fuse(model: nn.Module, forward: Callable[[], object]) -> list[FusedLora]:
    """Group the LoRA layers of a model that read one and the same tensor; nothing is attached yet.

    Parameters
    ----------
    model
        With LoRA layers of PEFT in it.
    forward
        Runs the model once, on anything: which layers share an input is seen, not guessed from names.
    """
    inputs: dict[int, Tensor] = {}
    groups: dict[tuple[Any, ...], list[nn.Module]] = {}

    def see(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        inputs[id(x)] = x  # kept alive, or another tensor could get its id
        base: Any = module.base_layer
        groups.setdefault((id(x), base.bias is None), []).append(module)

    hooks = [layer.register_forward_pre_hook(see) for layer in lora_layers(model)]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    called = [layer for group in groups.values() for layer in group]
    once = {id(layer) for layer in called if called.count(layer) == 1}
    return [FusedLora(group) for group in groups.values() if all(id(layer) in once for layer in group)]
