"""How long does it take, and on what? Calls timed in turn in one run, so that a drift of the machine's speed falls on all alike."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

REPORTED: Final = ("zeroi2v", "torch", "torchvision", "timm", "av")


def interleave(calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each call in each round. Every round makes every call once; the rounds go through all orders in turn."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    orders = itertools.cycle(itertools.permutations(names))
    for turn, order in enumerate(itertools.islice(orders, warmup + rounds)):
        for name in order:
            _synchronize()
            start = time.perf_counter()
            calls[name]()
            _synchronize()
            if turn >= warmup:
                times[name].append((time.perf_counter() - start) * 1000)
    return times


def median_ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median over the rounds of one call's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def provenance() -> dict[str, Any]:
    """What a figure must be quoted with: the date, the machine and the versions."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in REPORTED}}
    return {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}


def _processor() -> str:
    """The processor's name; Linux tells it only in a file."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
