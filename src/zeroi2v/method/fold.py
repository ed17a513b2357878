"""What is one affine map after another? Folding adapters into linear layers: equations 10 and 11 of the paper.

Shapes: an affine map from n to m channels has a weight (m, n) and, or not, a bias (m).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """x -> weight @ x + bias, in float64."""

    weight: Tensor  # (m, n)
    bias: Tensor | None  # (m)


def affine(linear: nn.Linear) -> Affine:
    """The map of a linear layer, in float64."""
    bias = linear.bias
    return Affine(linear.weight.detach().double(), None if bias is None else bias.detach().double())


def compose(outer: Affine, inner: Affine) -> Affine:
    """outer(inner(x)): W_o W_i x + (W_o b_i + b_o), without a bias when neither has one."""
    bias = outer.bias
    if inner.bias is not None:
        bias = outer.weight @ inner.bias + (0 if bias is None else bias)
    return Affine(outer.weight @ inner.weight, bias)


def residual(branch: Affine, scale: float) -> Affine:
    """x + scale * branch(x): I + s W, s b."""
    identity = torch.eye(branch.weight.shape[0], dtype=branch.weight.dtype, device=branch.weight.device)
    return Affine(identity + scale * branch.weight, None if branch.bias is None else scale * branch.bias)


@torch.no_grad()
def assign(linear: nn.Linear, folded: Affine) -> None:
    """Give a linear layer the folded map, rounded once to its own dtype. A bias appears only where the layer has one."""
    linear.weight.copy_(folded.weight)
    if folded.bias is not None:
        linear.bias.copy_(folded.bias)
