"""Triton kernels of the method, for CUDA devices. Slow forms of the kernels check the results."""

from typing import Final

from torch import Tensor

# Whether the kernel of `move.py` moves keys and values on a CUDA device, instead of PyTorch's own
# operations. No GPU has run the kernel yet, so it is off.
MOVES: Final = False


def moves(projected: Tensor) -> bool:
    """Whether the kernel of `move.py` is to move keys and values in this tensor."""
    return MOVES and projected.device.type == "cuda"
