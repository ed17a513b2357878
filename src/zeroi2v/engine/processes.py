"""How do several processes share one task? Which part of it is this one's, and what did all of them find?

Processes are started by torchrun or `accelerate launch`; without either there is one, and everything here does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object


def join_processes() -> Accelerator:
    """Meet the other processes of this task, if there are any. The device of each is its GPU, or the CPU where there is none."""
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def from_all(found: list[Any]) -> list[Any]:
    """The entries that all processes found, the first one's first."""
    return list(gather_object(found)) if place()[1] > 1 else found
