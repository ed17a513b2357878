"""What must a training step keep for its gradients? Three operations for which autograd alone would keep more.

The outputs and the gradients equal those of the plain formulas; the operations save memory, and passes over memory.
Shapes: any number of tokens, n, m channels, a bottleneck of r.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_STEEPNESS: Final = 1.702  # of QuickGELU


class _AddLinear(torch.autograd.Function):
    """x + s (U z + b): the matrix product adds into its own output. Keeps z, and neither x nor the sum."""

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


def remember_source(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """A forward hook of a norm: its output remembers the input, so that a gradient may keep the input instead.

    The norm keeps its input in any case. Whoever keeps the output too could compute it again, at the cost of one pass.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        source = (norm, output._version, inputs[0], inputs[0]._version)
        output.normalised_from = source  # type: ignore[attr-defined]


def keeping_source(x: Tensor) -> AbstractContextManager[None]:
    """Within the block an operation that would keep `x` keeps the input of the norm that made `x`, and normalises again.

    Nothing changes where no norm made `x`.
    """
    made = getattr(x, "normalised_from", None)
    if made is None or made[1] != x._version:  # `x` was changed since the norm made it
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
