"""How do the processes of a group meet? They are started by torchrun or `accelerate launch`; one process meets nobody."""

from __future__ import annotations

import torch
from accelerate import Accelerator


def join_processes() -> Accelerator:
    """Meet the other processes of this task. The device of each process is its GPU, or the CPU where there is none."""
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
