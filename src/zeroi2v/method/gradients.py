"""What does a training step keep for its gradients? Only what they need: three operations that autograd alone would keep more for.

Their outputs are those of the plain formulas, and so are their gradients; only memory and passes over it are saved.
Shapes: any number of tokens, n, m channels, a bottleneck of r.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from zeroi2v.method.relocate import ClipCount

_STEEPNESS: Final = 1.702  # of QuickGELU


class _AddLinear(torch.autograd.Function):
    """x + s (U z + b): the product is added where it is made. Keeps z, and neither x nor the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.scale = scale
        total = (
            x.clone(memory_format=torch.contiguous_format)
            if bias is None
            else torch.add(x.contiguous(), bias, alpha=scale)
        )
        rows = total.view(-1, total.shape[-1])
        torch.addmm(rows, z.reshape(-1, z.shape[-1]), weight.T, alpha=scale, out=rows)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_z = of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_z = (rows @ weight).mul_(ctx.scale).view(z.shape)
        if ctx.needs_input_grad[2]:
            of_weight = (rows.T @ z.reshape(-1, z.shape[-1])).mul_(ctx.scale)
        if ctx.needs_input_grad[3]:
            of_bias = rows.sum(0).mul_(ctx.scale)
        return gradient, of_z, of_weight, of_bias, None


def add_linear(x: Tensor, z: Tensor, linear: nn.Linear, scale: float) -> Tensor:
    """x + scale * linear(z), for x (..., m) and z (..., r)."""
    cast = x.dtype != linear.weight.dtype or (
        x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    )
    if cast or torch.compiler.is_compiling():
        return torch.add(x, linear(z), alpha=scale)  # which cast as their operators do
    total: Tensor = _AddLinear.apply(x, z, linear.weight, linear.bias, scale)
    return total


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x), keeping x alone. Its derivative is that of SiLU at 1.702 x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (_STEEPNESS * x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        steep: Tensor = _STEEPNESS * x
        torch.ops.aten.silu_backward.grad_input(gradient, steep, grad_input=steep)
        return steep


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    if not x.requires_grad or torch.compiler.is_compiling():
        return x * torch.sigmoid(_STEEPNESS * x)
    activated: Tensor = _QuickGELU.apply(x)
    return activated


class NormSource:
    """A forward hook of a norm. Its output remembers what it was made from, so that a gradient may keep that instead.

    The norm keeps its input in any case; whoever keeps its output too could compute it again, at the cost of one pass. Where blocks are
    checkpointed, neither is to be kept.
    """

    def __init__(self, count: ClipCount) -> None:
        self.count = count

    def hook(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if (
            torch.is_grad_enabled()
            and not self.count.checkpointed
            and not torch.compiler.is_compiling()
        ):
            output.normalised_from = (norm, output._version, inputs[0], inputs[0]._version)  # type: ignore[attr-defined]


def keeping_source(x: Tensor) -> AbstractContextManager[None]:
    """Within it, what would keep `x` for its gradient keeps the input of the norm that made it, where one did, and normalises again."""
    made = getattr(x, "normalised_from", None)
    if made is None or made[1] != x._version:  # it is not what the norm made any more
        return nullcontext()
    norm, _, source, version = made
    normed = weakref.ref(x)  # the graph keeps `pack`, so this must not keep x

    def pack(kept: Tensor) -> Any:
        own = normed()
        return kept.shape if own is not None and (kept is own or kept._base is own) else kept

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if source._version != version:
            raise RuntimeError(
                "the input of a norm was changed in place before its gradient was taken"
            )
        again: Tensor = norm.forward(source.detach())  # past the hooks, which would run twice
        return again.view(packed)

    return saved_tensors_hooks(pack, unpack)
