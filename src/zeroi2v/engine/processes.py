"""How are the processes of a group connected, and how do they share a training?

torchrun or `accelerate launch` starts the processes of a group. A process that was started by
itself has no group, and then this file does not need accelerate.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from zeroi2v.machine import best_device, from_all, started_group

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Processes:
    """The process group, as this process sees the group."""

    device: torch.device  # of this process
    rank: int = 0  # number of this process in the group, from 0
    size: int = 1  # number of processes in the group
    accelerator: Accelerator | None = None  # None: there is one process

    @property
    def is_first(self) -> bool:
        """Whether this process is the first. Only the first process writes files and messages."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device of this process.

        With several processes, the model is wrapped so that a backward pass averages the gradients
        over the processes.
        """
        if self.accelerator is None:
            return model.to(self.device)
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def keep_gradients(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the block a backward pass adds up gradients only in this process.

        The last part of a batch runs outside of the block. Its backward pass averages the gradients
        over the processes.
        """
        if self.accelerator is None:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return context

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        return value if self.size == 1 else sum(from_all([value]))

    def agree(self, decision: bool) -> bool:
        """The decision of the first process, so that all processes do the same."""
        return decision if self.size == 1 else bool(from_all([decision])[0])

    def wait(self) -> None:
        """Wait until all processes of the group have called this method."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def join_processes() -> Processes:
    """Meet the other processes of the group.

    The device of each process is its GPU, or the CPU where the machine has no GPU.
    """
    if started_group() is None:
        return Processes(best_device())
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    return Processes(
        accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator
    )
