"""How does a model compute in bfloat16 without autocast? Its weights are cast, not its activations.

Autocast casts every input of every matrix product, and keeps the residual stream in float32. Here
frozen weights are cast once, weights that train are cast once a step in one operation, and all
activations are bfloat16. Norms compute their statistics in float32. The weights that the
optimiser moves, and that are saved, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def cast_weights(model: nn.Module, dtype: torch.dtype | None) -> CastWeights | None:
    """The cast weights of a model on a GPU for steps in bfloat16; None for all other steps."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    return CastWeights(model, dtype) if on_gpu and dtype == torch.bfloat16 else None


class CastWeights:
    """The weights of a model in another dtype, for the calls of a training."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        named = [
            (name, weight)
            for name, weight in model.named_parameters()
            if weight.is_floating_point()
        ]
        self.frozen = {
            name: weight.detach().to(dtype) for name, weight in named if not weight.requires_grad
        }
        self.trained = {name: weight for name, weight in named if weight.requires_grad}

    def call(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        """The result of `function(model)`, where the model has the cast weights.

        A backward pass within `function` gives the gradients of the float32 weights.
        """
        cast = _Cast.apply(self.dtype, *self.trained.values())
        weights = {**self.frozen, **dict(zip(self.trained, cast, strict=True))}
        holder = _Holder(self.model, function)
        named = {f"model.{name}": weight for name, weight in weights.items()}
        result: Tensor = functional_call(holder, named, ())
        return result


class _Holder(nn.Module):
    """A module whose forward pass is a function of the module that it holds."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Tensor:
        return self.function(self.model)


class _Cast(torch.autograd.Function):
    """Many tensors in another dtype, cast in one operation, and their gradients cast likewise."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(_cast(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [number for number, gradient in enumerate(gradients) if gradient is not None]
        results: list[Tensor | None] = [None] * len(gradients)
        cast = _cast(
            [gradient for gradient in gradients if gradient is not None],
            [ctx.dtypes[number] for number in present],
        )
        for number, gradient in zip(present, cast, strict=True):
            results[number] = gradient
        return (None, *results)


def _cast(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    """The tensors in other dtypes, by one operation for all of them."""
    results = [
        torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    ]
    if results:
        torch._foreach_copy_(results, tensors)
    return results
