"""How much memory does a pass or a call take, counted or measured, and how much is there to take?

Every storage that an operation allocates counts from then on until nothing refers to it any more. What a kernel needs for itself, an
optimiser's state and what an allocator rounds up are left out.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
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

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
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
        with LiveBytes() as counted, torch.set_grad_enabled(backward):
            logits = functional_call(model, weights, (clip,))
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


def free_bytes() -> int:
    """The main memory that this process can still take: what the system has, or less where its control group allows less."""
    described = Path("/proc/meminfo")
    if not described.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS does not tell what is free
    kibibytes = {line.split()[0]: int(line.split()[1]) for line in described.read_text().splitlines()}
    free = kibibytes["MemAvailable:"] * 1024
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition("::")[2].lstrip("/")
        for folder in (group, *group.parents):
            free = min(free, _left_in(folder, free))
    return free


def _left_in(group: Path, otherwise: int) -> int:
    """What a control group leaves of its limit, the files that are only cached not counted; `otherwise` if it has none."""
    try:
        limit = (group / "memory.max").read_text().strip()
        held = int((group / "memory.current").read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return otherwise
    return otherwise if limit == "max" else max(0, int(limit) - held + int(told["inactive_file"]))
