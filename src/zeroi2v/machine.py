"""What is this machine, and which part of it is this process? Device, workers, memory, process group, provenance.

A process group is several processes that share one task, started by torchrun or `accelerate launch`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

REPORTED: Final = (
    "zeroi2v",
    "torch",
    "torchvision",
    "timm",
    "av",
)  # packages whose versions a figure is quoted with
GROUP_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_group() -> tuple[int, int] | None:
    """The rank of this process and the size of the process group that a launcher started; None for a process on its own.

    A launcher sets all of `GROUP_VARIABLES`. A cluster's scheduler may set some of them for a process that has no peers.
    """
    values = [os.environ.get(name, "") for name in GROUP_VARIABLES]
    if not all(values) or not all(values[place].isdecimal() for place in (0, 1, 2, 4)):
        return None
    rank, size = int(values[0]), int(values[2])
    return (rank, size) if rank < size and size > 1 else None


def place() -> tuple[int, int]:
    """The rank of this process, and how many processes share the task. (0, 1) before the process group has met."""
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def from_all(entries: list[Any]) -> list[Any]:
    """The entries of all processes of the group, those of the first process first. All processes must call it."""
    import torch.distributed

    _, size = place()
    if size == 1:
        return entries
    gathered: list[Any] = [None] * size
    torch.distributed.all_gather_object(gathered, entries)
    return [entry for part in gathered for entry in part]


def best_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def worker_count(asked: int) -> int:
    """The number of decoding processes. -1: one for each core beyond the first, at most 8."""
    return asked if asked >= 0 else min(8, (os.cpu_count() or 1) - 1)


def peak_memory(device: torch.device) -> int:
    """The most bytes that the GPU's allocator held so far, or that this process held on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """The main memory that this process can still take: of the system, or of its control group where that allows less."""
    described = Path("/proc/meminfo")
    if not described.exists():
        return (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        )  # macOS does not tell what is free
    kibibytes = {
        line.split()[0]: int(line.split()[1]) for line in described.read_text().splitlines()
    }
    free = kibibytes["MemAvailable:"] * 1024
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition("::")[2].lstrip("/")
        for folder in (group, *group.parents):
            free = min(free, _left_in(folder, free))
    return free


def _left_in(group: Path, otherwise: int) -> int:
    """The bytes that a control group leaves of its limit; files that are only cached do not count. `otherwise`: no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        held = int((group / "memory.current").read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return otherwise
    return otherwise if limit == "max" else max(0, int(limit) - held + int(told["inactive_file"]))


def provenance() -> dict[str, Any]:
    """What a figure must be quoted with: the date, the machine and the versions. A package that is not installed has None."""
    import torch

    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in REPORTED}}
    return {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name; Linux tells it only in a file."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
