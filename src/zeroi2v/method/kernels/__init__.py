"""Triton kernels of the method, for CUDA devices. Slow forms of the kernels check the results.

This file says which kernel is in use, and makes what a kernel needs when a model is built.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from zeroi2v.method.moving import equal_runs

# Whether the kernel of `move.py` moves keys and values on a CUDA device, instead of PyTorch's own
# operations. No GPU has run the kernel yet, so it is off.
MOVES: Final = False
WIDEST_RUN: Final = 8  # channels that one thread reads at once: 16 bytes in half precision


def moves(projection: nn.Module, projected: Tensor) -> bool:
    """Whether the kernel of `move.py` is to move keys and values in the output of a projection."""
    return MOVES and projected.device.type == "cuda" and hasattr(projection, "moving_runs")


def run_tables(offsets: Sequence[int]) -> Mapping[str, Tensor]:
    """The tables of `move.py` for the offsets of the C channels of a fused projection.

    A run is some channels side by side that have one offset; all runs are equally wide, and are
    counted from 0. `every_run` (2, C / width) int32 holds the numbers of all runs and their
    offsets, `moving_runs` (2, M) int32 the same of the runs that move.
    """
    _, every = equal_runs(offsets, widest=WIDEST_RUN)
    moving = [run for run in every if run[1]]
    tables = {"moving_runs": moving, "every_run": every}
    return {
        name: torch.tensor(runs, dtype=torch.int32, device="cpu").reshape(-1, 2).T.contiguous()
        for name, runs in tables.items()
    }
