"""Which tensors must a training step keep for its gradients? Three operations that keep fewer.

`add_linear`, `quick_gelu` and the pair `remember_norm_input` and `keep_norm_input` give the outputs
and gradients of the plain formulas, which autograd computes with more memory.

Shapes: any number of tokens of m channels; a bottleneck of r channels.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_STEEPNESS: Final = 1.702  # of QuickGELU


def exports() -> bool:
    """Whether torch.export makes a graph of this call."""
    # torch.compile of PyTorch 2.10 takes `torch.compiler.is_exporting()` for true in every graph
    return torch.compiler._is_exporting_flag


def follows_operations() -> bool:
    """Whether PyTorch follows the operations of this call one by one, to make something of them.

    torch.compile and torch.export make a graph, torch.func makes a gradient or a batch.
    """
    # no public function says that torch.func is at work
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _added(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """x + s (U z + b).

    The matrix product adds into a copy of x, so no second tensor of the size of x is made.
    """
    total = (
        x.clone(memory_format=torch.contiguous_format)
        if bias is None
        else torch.add(x.contiguous(), bias, alpha=scale)
    )
    outputs, width = weight.shape
    rows = total.view(-1, outputs)
    # PyTorch's counters of operations know `addmm`, and do not know `addmm_`.
    torch.addmm(rows, z.reshape(-1, width), weight.t(), alpha=scale, out=rows)
    return total


class _AddLinear(torch.autograd.Function):
    """`_added`. The operation keeps z for the gradient, and neither x nor the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.scale = scale
        return _added(x, z, weight, bias, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        z_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[1]:
            z_gradient = _scaled(rows @ weight, ctx.scale).view(z.shape)
        if ctx.needs_input_grad[2]:
            weight_gradient = _scaled(rows.T @ z.reshape(-1, z.shape[-1]), ctx.scale)
        if ctx.needs_input_grad[3]:
            bias_gradient = _scaled(rows.sum(0), ctx.scale)
        return gradient, z_gradient, weight_gradient, bias_gradient, None


def _scaled(gradient: Tensor, scale: float) -> Tensor:
    """The gradient times a scale, in place. A scale of 1, the usual one, starts no kernel."""
    return gradient if scale == 1 else gradient.mul_(scale)


def add_linear(x: Tensor, z: Tensor, linear: nn.Linear, scale: float) -> Tensor:
    """x + scale * linear(z), for x (..., m) and z (..., r)."""
    weight, device = linear.weight, x.device.type
    mixes_dtypes = x.dtype != weight.dtype or (
        device != "meta" and torch.is_autocast_enabled(device)
    )
    if mixes_dtypes or follows_operations():
        return torch.add(x, linear(z), alpha=scale)  # torch's own operators cast as autocast says
    if not torch.is_grad_enabled():
        return _added(x, z, weight, linear.bias, scale)
    total: Tensor = _AddLinear.apply(x, z, weight, linear.bias, scale)
    return total


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x). The operation keeps only x for the gradient.

    The derivative of QuickGELU at x is the derivative of SiLU at 1.702 x.
    """

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
    """QuickGELU: x * sigmoid(1.702 x)."""
    if not x.requires_grad or follows_operations():
        return x * torch.sigmoid(_STEEPNESS * x)
    activated: Tensor = _QuickGELU.apply(x)
    return activated


def remember_norm_input(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """A forward hook of a norm: attach the norm and its input to the output, for `keep_norm_input`.

    A training step keeps the input of a norm in any case. From its input the norm can compute its
    output again, so the step need not keep the output as well.
    """
    if torch.is_grad_enabled() and not follows_operations():
        origin = (norm, output._version, inputs[0], inputs[0]._version)
        output.normalised_from = origin  # type: ignore[attr-defined]  # for keep_norm_input


def keep_norm_input(norm_output: Tensor) -> AbstractContextManager[None]:
    """Within the block, no operation keeps `norm_output` for its gradient.

    When the gradient is computed, the norm computes its output again from its input, which the
    graph keeps anyway. The norm must have the hook `remember_norm_input`. For any other tensor, and
    for an output that was changed after the norm returned, the block changes nothing.
    """
    origin = getattr(norm_output, "normalised_from", None)
    if origin is None or origin[1] != norm_output._version:
        return nullcontext()
    norm, _, norm_input, version = origin
    # The graph keeps `pack`. A plain reference in `pack` would keep the output after all.
    output_reference = weakref.ref(norm_output)

    def pack(kept: Tensor) -> Tensor | torch.Size:
        """The shape of `kept` if `kept` is the norm's output or a view of it; else `kept`."""
        output = output_reference()
        is_output = output is not None and (kept is output or kept._base is output)
        return kept.shape if is_output else kept

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        """The tensor that `pack` was given."""
        if isinstance(packed, Tensor):
            return packed
        if norm_input._version != version:
            raise RuntimeError(
                "the input of a norm was changed in place before the gradient was computed; "
                "a training step must leave the inputs of norms as they are"
            )
        recomputed: Tensor = norm.forward(norm_input.detach())  # `forward` runs no hook again
        return recomputed.view(packed)

    return saved_tensors_hooks(pack, unpack)
