"""How much memory does a call take? Estimated without computing anything, or measured.

The storage of a tensor counts from the operation that allocates the storage until no tensor uses it
any more. What a kernel needs for itself, the state of an optimiser and what an allocator rounds up
are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zeroi2v.measure.pretended import pretended
from zeroi2v.models.video import VideoClassifier

# Gives a context for a model. Within the context the model computes as it does in training.
TrainingMode: TypeAlias = Callable[[VideoClassifier], AbstractContextManager[None]]

MEANING: Final = {  # type of device -> what `peak_bytes` counts there
    "cuda": "most bytes that the GPU's allocator held",
    "cpu": "most bytes of tensors alive between two operations; "
    "what an operation takes for itself is not seen",
}


class LiveBytes(TorchDispatchMode):
    """While active, counts the bytes of storages that operations allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.live: int = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), settings: Any = None
    ) -> Any:
        """Do an operation, and count the storages of its outputs.

        An output that is a view of an input has the storage of the input, which is not counted
        again.
        """
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((arguments, settings))}
        outputs = operation(*arguments, **(settings or {}))
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return outputs

    def _count(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def inference_memory(model: VideoClassifier, *, clips: int = 1) -> int:
    """Estimate the most bytes that a forward pass holds at once, beyond the weights and the clips.

    The pass is made in the precision of the weights, on tensors without storage: nothing is
    computed. The operations are those of the CPU, with its fused attention.
    """
    with pretended(model, "cpu") as copied:
        clip = _clips(copied.eval(), clips)
        with torch.no_grad(), LiveBytes() as counter:
            copied(clip)
    return int(counter.peak)


def training_memory(model: VideoClassifier, mode: TrainingMode, *, clips: int = 1) -> int:
    """Estimate the most bytes that a training step holds at once, beyond the weights and the clips.

    The step is a forward and a backward pass, made within `mode` and otherwise as in
    `inference_memory`. It holds activations, their gradients and the gradients of the parameters
    that train. The engine trains in the mode `zeroi2v.engine.spare.spared`.
    """
    with pretended(model, "cpu") as copied:
        clip = _clips(copied.train(), clips)
        with mode(copied), torch.enable_grad(), LiveBytes() as counter:
            logits = copied(clip)
            logits.sum().backward()
    return int(counter.peak)


def _clips(model: VideoClassifier, clips: int) -> Tensor:
    """Clips (B, F, 3, S, S) for a model, in the precision of the model, on the CPU."""
    size = (clips, model.frames, 3, model.image_size, model.image_size)
    return torch.empty(size, dtype=model.classifier.weight.dtype, device="cpu")


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure the most bytes that a call holds at once, beyond the bytes held before the call.

    `MEANING` says which bytes count. On a CPU make the call in `torch.no_grad`:
    `torch.inference_mode` hides the operations that attention consists of.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with LiveBytes() as counter:
        call()
    return int(counter.peak)
