"""How much memory does a pass or a call take, counted or measured, and how much is there to take?

Every storage that an operation allocates counts from then on until nothing refers to it any more. What a kernel needs for itself, an
optimiser's state and what an allocator rounds up are left out.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zeroi2v.models.video import VideoClassifier

MEANING: Final = {  # of `peak_bytes`, by kind of device
    "cuda": "most bytes that the GPU's allocator held",
    "cpu": "most bytes of tensors alive between two operations; what an operation takes for itself is not seen",
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made and not yet freed while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.live: int = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), settings: Any = None
    ) -> Any:
        """Do the operation, and follow what it made: outputs that are views of its inputs hold no memory of their own."""
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((arguments, settings))}
        made = operation(*arguments, **(settings or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, more: int) -> None:
        self.live += more
        self.peak = max(self.peak, self.live)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Memory:
    """Peak bytes for one clip, beyond weights and clip."""

    training: int  # of a forward and backward pass: activations, their gradients, and the gradients of what trains
    inference: int  # of a forward pass


def activation_memory(model: VideoClassifier, clips: int = 1) -> Memory:
    """The memory of one pass over so many clips, for training and for inference, in the precision of the model's weights.

    Counted on tensors without storage: nothing is computed. The operations are those of the CPU, with its fused attention.
    """
    shape = copy.deepcopy(model).to("meta")
    return Memory(
        training=_peak(shape.train(), clips, backward=True),
        inference=_peak(shape.eval(), clips, backward=False),
    )


def _peak(shape: VideoClassifier, clips: int, *, backward: bool) -> int:
    model = copy.deepcopy(shape)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    made = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                    module._parameters[name] = nn.Parameter(made, weight.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(
                        buffer.shape, dtype=buffer.dtype, device="cpu"
                    )
        size = (clips, model.frames, 3, model.image_size, model.image_size)
        clip = torch.empty(size, dtype=model.classifier.weight.dtype, device="cpu")
        with LiveBytes() as counted, torch.set_grad_enabled(backward):
            logits = model(clip)
            if backward:
                logits.sum().backward()
        return int(counted.peak)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call held at one time beyond what was held before it; `MEANING` says of what kind.

    On a CPU inference mode would hide the operations that attention is made of: use no_grad.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with LiveBytes() as live:
        call()
    return int(live.peak)
