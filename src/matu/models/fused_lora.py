"""LoRA for several linear layers of one input at once: the same products in fewer and larger matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Own = Callable[[Tensor], Tensor]
"""From a LoRA matrix to k of its shape, [k, …], for k runs of a batch, of as many samples each."""


def products(
    rows: Tensor, weight: Tensor, bias: Tensor | None, scale: float, a: Sequence[Tensor], b: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ for layers i of one input, and k adapters with an equal share of the rows.

    In float32 the adapter is first added to the weights: W_i + s B_i A_i is exact to rounding, and nothing but the
    products of the backbone is left. bfloat16 would round small updates away.

    Parameters
    ----------
    rows
        x [k, n, in].
    weight, bias
        [Σ out_i, in] and [Σ out_i], frozen.
    scale
        s.
    a, b
        A_i [k, r_i, in] and B_i [k, out_i, r_i] of every layer, in the weights' precision.

    Returns
    -------
    tuple
        y [k, n, Σ out_i], and the weights with the adapter [k, Σ out_i, in] if they were made.
    """
    outs = [m.shape[1] for m in b]
    if weight.dtype == torch.float32 and 2 * rows.shape[1] > rows.shape[2]:  # for fewer rows, B A would cost more
        parts = [torch.baddbmm(w, y, x, alpha=scale) for w, x, y in zip(weight.split(outs), a, b, strict=True)]
        merged = torch.cat(parts, dim=1)
        return torch.bmm(rows, merged.mT) if bias is None else torch.baddbmm(bias, rows, merged.mT), merged
    y = nn.functional.linear(rows, weight, bias)
    inner = torch.bmm(rows, torch.cat(list(a), dim=1).mT).split([m.shape[1] for m in a], dim=-1)
    for part, one, matrices in zip(y.split(outs, dim=-1), inner, b, strict=True):
        part.baddbmm_(one, matrices.mT, alpha=scale)
    return y, None


def gradients(
    g: Tensor, rows: Tensor, weight: Tensor, merged: Tensor | None, scale: float, a: Sequence[Tensor],
    b: Sequence[Tensor], *, of_input: bool,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:  # fmt: skip
    """Of `products` by x (where asked), A_i and B_i, for the gradient g [k, n, Σ out_i] by y."""
    ranks, all_a = [m.shape[1] for m in a], torch.cat(list(a), dim=1)
    inner = torch.bmm(rows, all_a.mT).split(ranks, dim=-1)
    by_part = g.split([m.shape[1] for m in b], dim=-1)
    into_b = [torch.bmm(one.mT, part).mT * scale for one, part in zip(inner, by_part, strict=True)]
    inner_g = torch.cat([torch.bmm(part, m) for part, m in zip(by_part, b, strict=True)], dim=-1).mul_(scale)
    into_a = torch.bmm(inner_g.mT, rows).split(ranks, dim=1)
    into_x = None
    if of_input:
        into_x = torch.bmm(g, merged) if merged is not None else (g @ weight).baddbmm_(inner_g, all_a)
    return into_x, list(into_a), into_b


def tangents(
    dx: Tensor, rows: Tensor, weight: Tensor, scale: float, many: Sequence[Tensor], changes: Sequence[Tensor]
) -> Tensor:
    """How y of `products` changes, to first order, where x does by dx, and A_1 … B_1 … by their changes."""
    half = len(many) // 2
    a, b = many[:half], many[half:]
    da, db = (
        [m.view_as(of).to(of) for m, of in zip(changes[i : i + half], many[i : i + half], strict=True)]
        for i in (0, half)
    )
    dy, _ = products(dx, weight, None, scale, a, b)
    for inward, outward in ((a, db), (da, b)):
        inner = torch.bmm(rows, torch.cat(list(inward), dim=1).mT).split([m.shape[1] for m in inward], dim=-1)
        for part, one, m in zip(dy.split([m.shape[1] for m in b], dim=-1), inner, outward, strict=True):
            part.baddbmm_(one, m.mT, alpha=scale)
    return dy


class _FusedLora(torch.autograd.Function):
    """`products` of x [..., in], with adapters of two dimensions, or of three with one for each run of samples."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        many = [(m if m.ndim == 3 else m[None]).to(weight.dtype) for m in matrices]
        a, b = many[: len(many) // 2], many[len(many) // 2 :]
        rows = x.reshape(len(a[0]), -1, x.shape[-1]).to(weight.dtype)
        y, merged = products(rows, weight, bias, scale, a, b)
        ctx.save_for_backward(rows, weight, merged, *many)
        ctx.save_for_forward(rows, weight, merged, *many)
        ctx.shape, ctx.dtype, ctx.scale, ctx.shapes = x.shape, x.dtype, scale, [m.shape for m in matrices]
        parts = y.view(*x.shape[:-1], -1).split([m.shape[1] for m in b], dim=-1)
        return tuple(parts) if len(b) > 1 else (parts[0],)

    @staticmethod
    def backward(ctx: Any, *by_part: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, merged, *many = ctx.saved_tensors
        a, b = many[: len(many) // 2], many[len(many) // 2 :]
        g = torch.cat([part.reshape(*rows.shape[:2], -1).to(weight.dtype) for part in by_part], dim=-1)
        asked = ctx.needs_input_grad[0]
        into_x, into_a, into_b = gradients(g, rows, weight, merged, ctx.scale, a, b, of_input=asked)
        if into_x is not None:
            into_x = into_x.view(ctx.shape).to(ctx.dtype)
        found = [m.float().reshape(shape) for m, shape in zip((*into_a, *into_b), ctx.shapes, strict=True)]
        return into_x, None, None, None, *found

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, dx: Tensor, *changes: Any) -> tuple[Tensor, ...]:
        rows, weight, _, *many = ctx.saved_tensors
        dy = tangents(dx.reshape(rows.shape).to(rows), rows, weight, ctx.scale, many, changes[3:])
        return tuple(dy.view(*ctx.shape[:-1], -1).split([m.shape[1] for m in many[len(many) // 2 :]], dim=-1))


class FusedLora:
    """Stands in for the forward of PEFT's LoRA layers that read one input, such as query, key and value.

    Whichever layer is called first computes all of them; the others, called with the very same tensor, take
    theirs. Called with another tensor, a layer computes anew: the result is right in any order of calls.

    Parameters
    ----------
    layers
        PEFT LoRA layers of equal input width and equal scale, or plain linear layers among them.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = [layer for layer in layers if hasattr(layer, "lora_A")]
        bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.weight = torch.cat([base.weight.detach() for base in bases])
        self.bias = None if bases[0].bias is None else torch.cat([base.bias.detach() for base in bases])
        for base, part in zip(bases, self.weight.split([base.out_features for base in bases]), strict=True):
            base.weight.data = part  # the frozen weights lie in memory once
        first: Any = self.layers[0]
        self.scale = float(first.scaling["default"])
        pairs = [_matrices(layer) for layer in layers]
        self.matrices = [a for a, _ in pairs] + [b for _, b in pairs]
        self._own: Own | None = None
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def share_frozen(self, other: Any) -> None:
        """Keep no weights of one's own: those of an equal group serve too."""
        self.weight, self.bias = other.weight, other.bias

    def attach(self, own: Own | None = None) -> None:
        """Replace the layers' forward; with `own`, runs of a batch have matrices of their own."""
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
        matrices = self.matrices if self._own is None else [self._own(m) for m in self.matrices]
        return _FusedLora.apply(x, self.weight, self.bias, self.scale, *matrices)


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B of a layer; of rank 0 where it has none."""
    if hasattr(layer, "lora_A"):
        return layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return layer.weight.new_zeros(0, layer.in_features), layer.weight.new_zeros(layer.out_features, 0)


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
