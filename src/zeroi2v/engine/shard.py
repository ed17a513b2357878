"""How do several processes share the weights of one model? By sharding (FSDP).

Of a sharded model, each process keeps a shard: a part of every tensor. The processes gather the
tensors of a block when the block is called. The sharded model trains. Besides, each process keeps
the unsharded model in main memory. To validate and to save, the unsharded model takes the weights
of the sharded model, so a run folder does not show that the model was sharded in training.
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
    """A sharded copy of a model, on the device of each process.

    Weights and gradients are sharded, and therefore also the averages that an optimiser keeps. The
    weights of a block are gathered for the time of its call. All other weights, those of adapters
    included, are gathered for the time of a whole step.
    """
    sharded = copy.deepcopy(model).to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    owners = {sharded.tower.get_submodule(plan.block.owner): None for plan in sharded.plan.blocks}
    for module in owners:
        fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return sharded


@contextmanager
def gathered(trained: nn.Module, model: VideoClassifier) -> Iterator[None]:
    """Within the block `model` has the weights of `trained`, and is on the device of `trained`.

    If `trained` is not sharded, the two models share their weights, and nothing is done. All
    processes must enter the block.
    """
    if not isinstance(trained, FSDPModule):
        yield
        return
    with torch.no_grad():
        weights = dict(model.named_parameters())
        for name, shard_of_weight in trained.named_parameters():
            if shard_of_weight.requires_grad:
                weights[name].copy_(full_tensors(shard_of_weight))
        for target, buffer in zip(model.buffers(), trained.buffers(), strict=True):
            torch.distributed.broadcast(buffer, 0)
            target.copy_(buffer)
    model.to(next(trained.parameters()).device)
    try:
        yield
    finally:
        model.cpu()


@torch.no_grad()
def scatter(model: VideoClassifier, trained: nn.Module, optimizer: Any) -> None:
    """Copy the weights of `model` into the sharded model, and shard the optimiser's averages.

    The averages have been loaded unsharded. If `trained` is not sharded, nothing is done.
    """
    if not isinstance(trained, FSDPModule):
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, target in [*trained.named_parameters(), *trained.named_buffers()]:
        target.copy_(_sharded_like(target, tensors[name]))
    for weight, averages in optimizer.state.items():
        averages |= {
            name: _sharded_like(weight, average)
            for name, average in averages.items()
            if average.ndim
        }


def _sharded_like(model_tensor: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, sharded as `model_tensor` is; unchanged where `model_tensor` is not sharded."""
    if not isinstance(model_tensor, DTensor):
        return tensor
    device, mesh = model_tensor.device, model_tensor.device_mesh
    return distribute_tensor(tensor.to(device), mesh, model_tensor.placements)


def full_tensors(state: Any) -> Any:
    """A state with every sharded tensor replaced by the unsharded tensor.

    `state` is a tensor, or a dictionary of states such as `state_dict` returns; any other value is
    returned unchanged. The processes exchange their shards, so all processes must call this.
    """
    if isinstance(state, Mapping):
        return {name: full_tensors(entry) for name, entry in state.items()}
    return state.full_tensor() if isinstance(state, DTensor) else state
