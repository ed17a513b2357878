"""What is this machine, and which process of a group is this?

Device, workers, memory, process group, and the origin of a measured figure.

A process group is several processes that share one task. A launcher such as torchrun or
`accelerate launch` starts the processes; the processes are connected once torch.distributed is
initialised.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zeroi2v.version import __version__

if TYPE_CHECKING:
    import torch

Entry = TypeVar("Entry")
# installed packages whose versions are reported with a figure
REPORTED: Final = ("torch", "torchvision", "timm", "av")
GROUP_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST_WORKERS: Final = 8


def started_group() -> tuple[int, int] | None:
    """The rank of this process and the size of the process group that a launcher started.

    None for a process on its own. A launcher sets all of `GROUP_VARIABLES`; the scheduler of a
    cluster may set some of them for a process that has no peers.
    """
    rank, local_rank, size, address, port = (os.environ.get(name, "") for name in GROUP_VARIABLES)
    if not address or not all(text.isdecimal() for text in (rank, local_rank, size, port)):
        return None
    return (int(rank), int(size)) if int(rank) < int(size) and int(size) > 1 else None


def announced_group() -> str:
    """The variables RANK and WORLD_SIZE as text, if they announce processes that nobody started.

    For example "RANK=1, WORLD_SIZE=4". The text is "" if a launcher started a group, or if the
    variables announce no group.
    """
    if started_group() is not None:
        return ""
    values = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    numbers = {name: int(text) if text.isdecimal() else 0 for name, text in values.items()}
    if numbers["RANK"] < 1 and numbers["WORLD_SIZE"] < 2:
        return ""
    return ", ".join(f"{name}={text}" for name, text in values.items() if text)


def rank_and_size() -> tuple[int, int]:
    """The rank of this process and the size of its process group.

    (0, 1) if torch.distributed is not initialised.
    """
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def from_all(entries: list[Entry]) -> list[Entry]:
    """The entries of all processes of the group, in the order of the ranks.

    Every process of the group must call this function.
    """
    import torch.distributed

    _, size = rank_and_size()
    if size == 1:
        return entries
    gathered: list[list[Entry]] = [[]] * size
    torch.distributed.all_gather_object(gathered, entries)
    return [entry for part in gathered for entry in part]


def best_device() -> torch.device:
    """The GPU of this process if there is a GPU, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def worker_count(asked: int, *, cores_kept: int = 1) -> int:
    """The number of worker processes: `asked`, or for -1 the automatic number.

    The automatic number is one worker for each core beyond the `cores_kept` cores that this process
    keeps busy itself, at most `MOST_WORKERS`.
    """
    return asked if asked >= 0 else min(MOST_WORKERS, (os.cpu_count() or 1) - cores_kept)


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: by the allocator of a GPU, or on a CPU by this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """The bytes of main memory that this process can still take.

    The limit is the free memory of the machine, or what the control group of the process leaves if
    that is less.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # macOS does not tell what is free: assume half
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    kibibytes = {line.split()[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
    free = kibibytes["MemAvailable:"] * 1024
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        group = Path("/sys/fs/cgroup") / line.rpartition("::")[2].lstrip("/")
        for folder in (group, *group.parents):
            limit_leaves = _free_in_control_group(folder)
            free = free if limit_leaves is None else min(free, limit_leaves)
    return free


def _free_in_control_group(folder: Path) -> int | None:
    """The bytes that the limit of a control group leaves; None if the group has no limit.

    Files in the cache do not count as used: the system drops them when memory is short.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(counts["inactive_file"]))


def provenance() -> dict[str, Any]:
    """The origin of a figure: date, machine and versions.

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
    versions = {
        "python": platform.python_version(),
        "zeroi2v": __version__,
        **{name: _version(name) for name in REPORTED},
    }
    return {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The name of the processor; Linux tells the name only in a file."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
