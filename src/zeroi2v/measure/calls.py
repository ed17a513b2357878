"""How is a subject of `zeroi2v bench` called? On random clips, for its time or for its memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zeroi2v.measure.memory import peak_bytes
from zeroi2v.measure.subjects import Subject


class Clips:
    """Batches of random clips. Subjects whose clips have the same shape share the batches."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.batches: dict[tuple[int, ...], Tensor] = {}  # by shape

    def __call__(self, subject: Subject, batch: int) -> Tensor:
        """`batch` clips for a subject.

        Batches of another size are dropped, except batches of a single clip.
        """
        self.batches = {
            shape: clips for shape, clips in self.batches.items() if shape[0] in (1, batch)
        }
        shape = (batch, *subject.shape)
        if shape not in self.batches:
            self.batches[shape] = torch.randn(shape, dtype=self.dtype, device=self.device)
        return self.batches[shape]


def timed_call(subject: Subject, clips: Tensor) -> Callable[[], object]:
    """A call of a subject, to be timed."""
    return torch.inference_mode()(lambda: subject.timed(clips))


def peak_of_call(subject: Subject, batch: int, clips: Clips) -> int | None:
    """The `peak_bytes` of one call on a batch; None where the memory does not suffice.

    On a CPU the call is not compiled: nothing can follow the tensors of a compiled call. On a GPU
    an extra call comes first and compiles, so that the memory of compiling does not count.
    """
    try:
        inputs = clips(subject, batch)
        if clips.device.type == "cpu":
            with torch.no_grad():
                return peak_bytes(lambda: subject.run(inputs), clips.device)
        call = timed_call(subject, inputs)
        if subject.is_compiled:
            call()
        return peak_bytes(call, clips.device)
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
    if clips.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch says that the memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
