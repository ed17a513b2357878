"""How do the processes of a group meet, and share a training? They are started by torchrun or `accelerate launch`.

A process on its own meets nobody, and needs no library for it.
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
    """The processes of one task, seen from this one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    accelerator: Accelerator | None = None  # None: there is one process

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device of this process; with several processes one that shares its gradients among them."""
        if self.accelerator is None:
            return model.to(self.device)
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def keep_gradients(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the block a backward pass does not share its gradients yet: another part of the batch follows."""
        if self.accelerator is None:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return context

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        return value if self.size == 1 else sum(from_all([value]))

    def agree(self, wanted: bool) -> bool:
        """The wish of the first process, which all must follow."""
        return wanted if self.size == 1 else bool(from_all([wanted])[0])

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def join_processes() -> Processes:
    """Meet the other processes of the task. The device of each process is its GPU, or the CPU where there is none."""
    if started_group() is None:
        return Processes(best_device())
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    return Processes(
        accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator
    )
