"""How much memory does a clip take? The peak of one pass, counted on tensors without storage: nothing is computed.

Every storage that an operation allocates counts from then on until nothing refers to it any more. Weights and the clip itself do not
count. The operations are those of the CPU, with its fused attention; what a kernel needs for itself, an optimiser's state and what
an allocator rounds up are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zeroi2v.models.video import VideoClassifier


@dataclass(frozen=True)
class Memory:
    """Peak bytes for one clip, beyond weights and clip."""

    training: int  # of a forward and backward pass: activations, their gradients, and the gradients of what trains
    inference: int  # of a forward pass


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made and not yet freed while it is active; `given` are no part of it."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.known = {tensor.untyped_storage()._cdata for tensor in given}
        self.live: int = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), settings: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the operation and take down what it has made."""
        made = operation(*arguments, **(settings or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return made

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def activation_memory(model: VideoClassifier, clips: int = 1) -> Memory:
    """The memory of one pass over so many clips, for training and for inference, in the precision of the model's weights."""
    was_training = model.training
    try:
        return Memory(
            training=_peak(model.train(), clips, backward=True), inference=_peak(model.eval(), clips, backward=False)
        )
    finally:
        model.train(was_training)


def _peak(model: VideoClassifier, clips: int, *, backward: bool) -> int:
    dtype = model.classifier.weight.dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").requires_grad_(
                backward and tensor.requires_grad
            )
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        clip = torch.empty(clips, model.frames, 3, model.image_size, model.image_size, dtype=dtype, device="cpu")
        with LiveBytes([*weights.values(), clip]) as counted, torch.set_grad_enabled(backward):
            logits = functional_call(model, weights, (clip,))
            if backward:
                logits.sum().backward()
        return int(counted.peak)
