"""How much memory does a call take, and how much is there to take?"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEANING: Final = {  # of `peak_bytes`, by kind of device
    "cuda": "most bytes that the GPU's allocator held",
    "cpu": "most bytes of tensors alive between two operations; what an operation takes for itself is not seen",
}


class LiveTensors(TorchDispatchMode):
    """Follows every tensor that an operation makes, until it is freed. `peak`: the most bytes of them at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.bytes: int = 0
        self.peak: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and follow what it made: outputs that are views of its inputs hold no memory of their own."""
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                given.add(storage.data_ptr())
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, more: int) -> None:
        self.bytes += more
        self.peak = max(self.peak, self.bytes)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@torch.no_grad()  # inference mode would hide the operations that attention is made of
def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call held at one time beyond what was held before it; `MEANING` says of what kind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    live = LiveTensors()
    with live:
        call()
    return live.peak


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
