"""What can this machine do, and which part of the work is this process's?

Device, workers, memory, process group, and the provenance of measured figures. A process group is
several processes that share one task; torchrun or `accelerate launch` starts them.
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

# `provenance` names the versions of these packages.
REPORTED: Final = ("zeroi2v", "torch", "torchvision", "timm", "av")
GROUP_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_group() -> tuple[int, int] | None:
    """The rank of this process and the size of its group, as a launcher announced them.

    None if no launcher started this process, or if the group has one process. A launcher sets all
    of `GROUP_VARIABLES`. Some of these variables alone mean nothing: the scheduler of a cluster may
    set them for a process that has no group.
    """
    values = [os.environ.get(name, "") for name in GROUP_VARIABLES]
    address = GROUP_VARIABLES.index("MASTER_ADDR")  # the only value that is not a number
    numbers = [value for index, value in enumerate(values) if index != address]
    if not all(values) or not all(number.isdecimal() for number in numbers):
        return None
    rank, size = int(values[0]), int(values[2])
    return (rank, size) if rank < size and size > 1 else None


def rank_and_size() -> tuple[int, int]:
    """The rank of this process in its group, and the number of processes of the group.

    (0, 1) for a process without a group, or before the processes of the group have met.
    """
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def from_all(entries: list[Any]) -> list[Any]:
    """The entries of all processes of the group in one list, in the order of the ranks.

    All processes of the group must call this function.
    """
    import torch.distributed

    _, size = rank_and_size()
    if size == 1:
        return entries
    gathered: list[Any] = [None] * size
    torch.distributed.all_gather_object(gathered, entries)
    return [entry for entries_of_process in gathered for entry in entries_of_process]


def best_device() -> torch.device:
    """The GPU of this process; the CPU if the machine has no GPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def worker_count(asked: int) -> int:
    """The number of processes that decode videos, if `asked` for that many.

    -1 asks for one process for each core beyond the first, at most 8.
    """
    return asked if asked >= 0 else min(8, (os.cpu_count() or 1) - 1)


def peak_memory(device: torch.device) -> int:
    """The largest number of bytes in use so far: of the GPU, or for a CPU of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """The bytes of main memory that this process can still allocate.

    The free memory of the system, or less where the control group of the process allows less.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # macOS does not say how much memory is free: half of all is assumed
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    kibibytes = {line.split()[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
    free = kibibytes["MemAvailable:"] * 1024
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition("::")[2].lstrip("/")
        for folder in (group, *group.parents):
            left = _left_in_group(folder)
            free = free if left is None else min(free, left)
    return free


def _left_in_group(group: Path) -> int | None:
    """The bytes that are left of the memory limit of a control group; None without a limit.

    The group counts cached files as used memory. Here they count as free, because the system gives
    their memory to any process that asks for memory.
    """
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(counts["inactive_file"]))


def provenance() -> dict[str, Any]:
    """The date, the machine and package versions, with which a measured figure is quoted.

    The version of a package that is not installed is None.
    """
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
    """The name of the processor. On Linux only a file holds the name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
