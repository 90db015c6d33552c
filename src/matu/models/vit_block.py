"""A block of a frozen Vision Transformer with its backward written out: what training LoRA needs, and no more.

Autograd through the library's modules copies queries, keys and values and their gradients into other layouts, keeps
what only gradients of frozen weights would need, and works on all tokens of the last block, of which one is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTModel
from transformers.activations import GELUActivation

from matu.models.fused_lora import FusedLora, Own, gradients, lora_layers, products, tangents

_ops: Any = torch.ops.aten


class _Attention:
    """softmax(s Q Kᵀ) V in the precision of its input, softmax in float32; `read` queries, all keys.

    Contiguous copies of Q, K, V are made once: faster on CPUs than fused attention at few tokens, or in bfloat16.
    """

    def __init__(self, heads: int, scale: float) -> None:
        self.heads, self.scale = heads, scale

    def forward(self, qkv: Tensor, read: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[n, t, 3 d] -> [n, read, d], and what `backward` needs."""
        n = len(qkv)
        q, k, v = self._apart(qkv, read)
        p = torch.bmm(q, k.mT).mul_(self.scale).softmax(-1, dtype=torch.float32).to(qkv.dtype)
        return self._joined(torch.bmm(p, v), n), (q, k, v, p)

    def backward(self, g: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Gradient [n, read, d] by the output -> [n, t, 3 d] by the input."""
        q, k, v, p = kept
        n, read, d = g.shape
        g = g.view(n, read, self.heads, -1).transpose(1, 2).reshape(q.shape)
        into = q.new_empty((3, *k.shape)) if read == k.shape[1] else q.new_zeros((3, *k.shape))
        by_scores = _ops._softmax_backward_data(torch.bmm(g, v.mT), p, -1, p.dtype).mul_(self.scale)
        into[0, :, :read] = torch.bmm(by_scores, k)
        torch.bmm(by_scores.mT, q, out=into[1])
        torch.bmm(p.mT, g, out=into[2])
        return into.view(3, n, self.heads, k.shape[1], -1).permute(1, 3, 0, 2, 4).reshape(n, -1, 3 * d)

    def jvp(self, change: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """How the output changes, [n, read, d], where the input does by [n, t, 3 d], to first order."""
        q, k, v, p = kept
        dq, dk, dv = self._apart(change, q.shape[1])
        by_scores = torch.bmm(dq, k.mT).baddbmm_(q, dk.mT).mul_(self.scale)
        dp = _ops._softmax_backward_data(by_scores, p, -1, p.dtype)  # the Jacobian is symmetric
        return self._joined(torch.bmm(dp, v).baddbmm_(p, dv), len(change))

    def _apart(self, qkv: Tensor, read: int) -> tuple[Tensor, ...]:
        n, t, _ = qkv.shape
        q, k, v = qkv.view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return tuple(part.reshape(n * self.heads, part.shape[2], -1) for part in (q[:, :, :read], k, v))

    def _joined(self, heads: Tensor, n: int) -> Tensor:
        return heads.view(n, self.heads, heads.shape[1], -1).transpose(1, 2).reshape(n, heads.shape[1], -1)


def _norm(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _ops.native_layer_norm(
        x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    return found


def _norm_backward(norm: nn.LayerNorm, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    into: Tensor = _ops.native_layer_norm_backward(
        g.to(x.dtype), x, norm.normalized_shape, mean, rstd, norm.weight, norm.bias, [True, False, False]
    )[0]
    return into


def _norm_jvp(norm: nn.LayerNorm, change: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    into: Tensor = _ops.native_layer_norm_backward(  # without scale and shift the Jacobian is symmetric
        change, x, norm.normalized_shape, mean, rstd, None, None, [True, False, False]
    )[0]
    return into.mul_(norm.weight)


def _plus_linear(x: Tensor, rows: Tensor, linear: nn.Linear) -> Tensor:
    """x + rows Wᵀ + b."""
    if rows.dtype == x.dtype:
        return torch.add(x, linear.bias).flatten(0, 1).addmm_(rows.flatten(0, 1), linear.weight.T).view_as(x)
    return x + nn.functional.linear(rows, linear.weight, linear.bias)


class _Block(torch.autograd.Function):
    """x -> x' = x + attention(norm(x)) -> x' + mlp(norm(x')), of all tokens or the first alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: FusedBlock, *matrices: Tensor) -> Tensor:
        layer, low, read = block.layer, block.qkv.weight.dtype, block.read or x.shape[1]
        half = len(matrices) // 2
        many = [(m if m.ndim == 3 else m[None]).to(low) for m in matrices]
        h, mean, rstd = _norm(layer.layernorm_before, x)
        rows = h.to(low).view(len(many[0]), -1, x.shape[-1])
        qkv, merged = products(rows, block.qkv.weight, block.qkv.bias, block.qkv.scale, many[:half], many[half:])
        o, kept = block.attention.forward(qkv.view(*x.shape[:2], -1), read)
        after = _plus_linear(x[:, :read], o, layer.attention.o_proj)
        h, after_mean, after_rstd = _norm(layer.layernorm_after, after)
        inside = nn.functional.linear(h.to(low), layer.mlp.fc1.weight, layer.mlp.fc1.bias)
        ctx.block, ctx.shapes = block, [m.shape for m in matrices]
        for_later = (x, mean, rstd, rows, merged, after, after_mean, after_rstd, inside, *kept, *many)
        ctx.save_for_backward(*for_later)
        ctx.save_for_forward(*for_later)
        return _plus_linear(after, nn.functional.gelu(inside), layer.mlp.fc2)

    @staticmethod
    def backward(ctx: Any, *by_output: Tensor) -> tuple[Tensor | None, ...]:
        block, layer = ctx.block, ctx.block.layer
        x, mean, rstd, rows, merged, after, after_mean, after_rstd, inside, *others = ctx.saved_tensors
        kept, many = tuple(others[:4]), others[4:]
        (g,) = by_output
        by_inside = g.to(rows.dtype) @ layer.mlp.fc2.weight
        by_inside = _ops.gelu_backward.grad_input(by_inside, inside, grad_input=by_inside)
        by_after = _norm_backward(
            layer.layernorm_after, by_inside @ layer.mlp.fc1.weight, after, after_mean, after_rstd
        )
        by_after += g
        by_qkv = block.attention.backward(by_after.to(rows.dtype) @ layer.attention.o_proj.weight, kept)
        half, asked = len(many) // 2, ctx.needs_input_grad[0]
        by_rows, into_a, into_b = gradients(
            by_qkv.view(*rows.shape[:2], -1), rows, block.qkv.weight, merged, block.qkv.scale,
            many[:half], many[half:], of_input=asked,
        )  # fmt: skip
        into_x = None
        if by_rows is not None:
            into_x = _norm_backward(layer.layernorm_before, by_rows.view(x.shape), x, mean, rstd)
            into_x[:, : g.shape[1]] += by_after
        found = [m.float().reshape(shape) for m, shape in zip((*into_a, *into_b), ctx.shapes, strict=True)]
        return into_x, None, *found

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, dx: Tensor, _: None, *changes: Tensor) -> Tensor:
        block, layer = ctx.block, ctx.block.layer
        x, mean, rstd, rows, _, after, after_mean, after_rstd, inside, *others = ctx.saved_tensors
        kept, many = tuple(others[:4]), others[4:]
        d_rows = _norm_jvp(layer.layernorm_before, dx, x, mean, rstd).to(rows).view_as(rows)
        d_qkv = tangents(d_rows, rows, block.qkv.weight, block.qkv.scale, many, changes)
        d_o = block.attention.jvp(d_qkv.view(*x.shape[:2], -1), kept)
        d_after = dx[:, : after.shape[1]] + d_o @ layer.attention.o_proj.weight.T
        d_inside = _norm_jvp(layer.layernorm_after, d_after, after, after_mean, after_rstd).to(inside)
        d_inside = d_inside @ layer.mlp.fc1.weight.T
        d_inside = _ops.gelu_backward.grad_input(d_inside, inside, grad_input=d_inside)
        return d_after + d_inside @ layer.mlp.fc2.weight.T


class FusedBlock:
    """Stands in for the forward of a block of the Transformers library's ViT with LoRA at query, key or value.

    Parameters
    ----------
    layer
        The block.
    read
        How many of its first tokens are read; 0: all.
    """

    def __init__(self, layer: Any, read: int) -> None:
        self.layer, self.read = layer, read
        attention = layer.attention
        self.attention = _Attention(attention.num_attention_heads, attention.scaling)
        self.qkv = FusedLora([attention.q_proj, attention.k_proj, attention.v_proj])
        self.layers = self.qkv.layers
        self._own: Own | None = None

    def share_frozen(self, other: Any) -> None:
        """As of its `FusedLora`; the block's other weights are the layer's."""
        self.qkv.share_frozen(other.qkv)

    def attach(self, own: Own | None = None) -> None:
        """Replace the block's forward; with `own`, runs of a batch have matrices of their own."""
        self._own = own
        self.layer.forward = self._forward

    def detach(self) -> None:
        """Give the block its own forward back."""
        self._own = None
        self.layer.__dict__.pop("forward", None)

    def _forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        matrices = self.qkv.matrices if self._own is None else [self._own(m) for m in self.qkv.matrices]
        found: Tensor = _Block.apply(x, self, *matrices)
        return found


def fused_blocks(model: nn.Module) -> list[FusedBlock]:
    """The blocks of the library's ViT that is read at its class token; none of any other model or other LoRA layers."""
    if type(model) is not ViTModel or model.pooler is not None:
        return []
    layers: list[Any] = list(model.layers)
    ours = [p for layer in layers for p in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)]
    if not {id(layer) for layer in lora_layers(model)} <= {id(p) for p in ours} or not lora_layers(layers[-1]):
        return []
    if not all(type(layer.mlp.activation_fn) is GELUActivation for layer in layers):
        return []
    return [FusedBlock(layer, read=int(layer is layers[-1])) for layer in layers]
