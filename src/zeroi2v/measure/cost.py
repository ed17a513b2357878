"""How many parameters and multiply-adds does a model cost? Counted, without computing anything.

A multiply-add (MAC) is one multiplication and one addition. The paper's GFLOP is 1e9 multiply-adds,
attention products included.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zeroi2v.models.pictures import image_size, inflate, set_image_size
from zeroi2v.models.towers import build_tower
from zeroi2v.models.video import VideoClassifier


@dataclass(frozen=True)
class Cost:
    """Numbers of parameters, and 10^9 multiply-adds of one view (one clip)."""

    params: int  # of the whole model
    trainable_params: int
    new_params: int  # beyond the tower and the classifier
    gmacs: float  # of the whole model
    # beyond the classifier and the plain tower on T pictures (T frames as attention sees them)
    extra_gmacs: float


def cost(model: VideoClassifier) -> Cost:
    """Count the parameters of a model, and the multiply-adds on its own graph.

    The model runs on the meta device, which takes no memory for activations and computes nothing.
    The tower that `new_params` and `extra_gmacs` leave out is a tower of the same name, built anew:
    not the model's own.
    """
    clip = torch.empty(1, model.frames, 3, model.image_size, model.image_size, device="meta")
    total = count_macs(copy.deepcopy(model).to("meta").eval().requires_grad_(False), clip)
    tower = new_tower(model)
    pictures = torch.empty(len(model.temporal_embedding), *clip.shape[2:], device="meta")
    classifier = model.classifier.in_features * model.classifier.out_features
    return Cost(
        params=_parameters(model),
        trainable_params=sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        new_params=_parameters(model) - _parameters(tower) - _parameters(model.classifier),
        gmacs=total / 1e9,
        extra_gmacs=(total - count_macs(tower, pictures) - classifier) / 1e9,
    )


def new_tower(model: VideoClassifier) -> nn.Module:
    """A tower with the name, options and image size of a model's tower, without storage."""
    with torch.device("meta"):
        tower = _same_tower(model, tubelet=1)
    return tower.requires_grad_(False)


def plain_tower(model: VideoClassifier) -> nn.Module:
    """Only the image transformer of a model, built anew with the weights of the model's tower.

    The tower takes the pictures that `VideoClassifier.tower_input` gives.
    """
    tower = _same_tower(model, tubelet=model.spec.model.tubelet)
    tower.load_state_dict(model.tower.state_dict())
    weight = model.classifier.weight
    return tower.to(weight.device, weight.dtype).requires_grad_(False).eval()


def _same_tower(model: VideoClassifier, *, tubelet: int) -> nn.Module:
    config = model.spec.model
    tower = build_tower(config.tower, pretrained=False, options=config.tower_options)
    inflate(tower, tubelet, config.tower)
    if image_size(tower) != model.image_size:
        set_image_size(tower, model.image_size, config.tower)
    return tower


def count_macs(module: nn.Module, inputs: torch.Tensor) -> int:
    """The multiply-adds of matrix products, convolutions and attention in one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return int(counter.get_total_flops()) // 2


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
