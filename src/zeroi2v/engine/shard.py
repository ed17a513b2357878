"""How do several processes share the weights of one model? Each keeps a part of every tensor (FSDP), and all meet to use them.

The parts train. Beside them each process has the whole model on its CPU, which takes the parts' weights to be validated and saved, so a
run folder is the same as of a model that every process holds whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from zeroi2v.models.video import VideoClassifier


def shard(model: VideoClassifier, device: torch.device) -> VideoClassifier:
    """A copy of the model in parts, one per process, on their devices: weights, gradients, and so what an optimiser keeps of them.

    A tower's block is gathered when its turn comes; what is beside the blocks, adapters too, for the whole of a step.
    """
    parts = copy.deepcopy(model).to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    owners = {parts.tower.get_submodule(plan.block.owner): None for plan in parts.plan.blocks}
    for module in owners:
        fully_shard(module, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    return parts


@contextmanager
def gathered(learning: nn.Module, model: VideoClassifier) -> Iterator[None]:
    """Within it the model has the weights of the one that learns, on its device. Nothing is done where they are the same weights.

    All processes must enter it.
    """
    if not isinstance(learning, FSDPModule):
        yield
        return
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, part in learning.named_parameters():
            if part.requires_grad:
                own[name].copy_(whole(part))
        for mine, buffer in zip(model.buffers(), learning.buffers(), strict=True):
            torch.distributed.broadcast(buffer, 0)
            mine.copy_(buffer)
    model.to(next(learning.parameters()).device)
    try:
        yield
    finally:
        model.cpu()


@torch.no_grad()
def scatter(model: VideoClassifier, learning: nn.Module, optimizer: Any) -> None:
    """Give the one that learns, and its optimiser's averages, the parts of the model's weights, and of whole averages."""
    if not isinstance(learning, FSDPModule):
        return
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, part in [*learning.named_parameters(), *learning.named_buffers()]:
        part.copy_(_part(own[name], part))
    for part, averages in optimizer.state.items():
        averages |= {
            name: _part(average, part) for name, average in averages.items() if average.ndim
        }


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in parts like another, if that is in parts."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def whole(value: Any) -> Any:
    """A tensor in parts as one, and so those in a dictionary. All processes must call it."""
    if isinstance(value, Mapping):
        return {key: whole(one) for key, one in value.items()}
    return value.full_tensor() if isinstance(value, DTensor) else value
