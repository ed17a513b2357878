"""How does a model compute in bfloat16 without autocast? Its weights are cast, not its activations.

Autocast casts every input of every matrix product, and keeps the residual stream in float32. Here
frozen weights are cast once, weights that train are cast once a step in one operation, and all
activations are bfloat16. Norms compute their statistics in float32. The weights that the
optimiser moves, and that are saved, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


def cast_weights(
    model: nn.Module, dtype: torch.dtype | None, clip_shape: Sequence[int]
) -> CastWeights | None:
    """The cast weights of a model on a GPU for steps in bfloat16; None for all other steps.

    None too if the model cannot compute in bfloat16 without autocast. Some towers compute with
    buffers in float32; if such a tower needs cast buffers, the buffers are cast as well. One clip
    of the shape (F, 3, S, S) shows what the model needs.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    clip = torch.zeros(1, *clip_shape, device=device)
    return next((weights for weights in _candidates(model, dtype) if weights.fit(clip)), None)


def _candidates(model: nn.Module, dtype: torch.dtype) -> Iterator[CastWeights]:
    yield CastWeights(model, dtype)
    yield CastWeights(model, dtype, casts_buffers=True)


class CastWeights:
    """The weights of a model in another dtype, for the calls of a training.

    Batch norms keep their weights and buffers: PyTorch's operation takes tokens in bfloat16 beside
    statistics in float32.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, *, casts_buffers: bool = False
    ) -> None:
        self.model, self.dtype = model, dtype
        kept = {
            tensor
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for tensor in (*module.parameters(), *module.buffers())
        }
        buffers = model.named_buffers() if casts_buffers else ()
        named = [
            (name, tensor)
            for name, tensor in (*model.named_parameters(), *buffers)
            if tensor.is_floating_point() and tensor not in kept
        ]
        self.frozen = {
            name: tensor.detach().to(dtype) for name, tensor in named if not tensor.requires_grad
        }
        self.trained = {name: tensor for name, tensor in named if tensor.requires_grad}

    def fit(self, clip: Tensor) -> bool:
        """Whether the model can compute a clip (1, F, 3, S, S) with the cast weights."""
        was_training = self.model.training
        self.model.eval()  # no moving average changes, and no random number is drawn
        try:
            self.call(lambda model: model(clip.to(self.dtype)).sum())
        except RuntimeError:  # operations refuse tensors of two dtypes
            return False
        finally:
            self.model.train(was_training)
        return True

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
