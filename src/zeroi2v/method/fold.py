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


def affine(linear: nn.Linear, rows: Tensor | slice = slice(None)) -> Affine:
    """The map of a linear layer, or of some of its output channels, in float64."""
    bias = linear.bias
    return Affine(
        linear.weight.detach()[rows].double(),
        None if bias is None else bias.detach()[rows].double(),
    )


def compose(outer: Affine, inner: Affine) -> Affine:
    """outer(inner(x)): W_o W_i x + (W_o b_i + b_o), without a bias when neither has one."""
    bias = outer.bias
    if inner.bias is not None:
        bias = outer.weight @ inner.bias + (0 if bias is None else bias)
    return Affine(outer.weight @ inner.weight, bias)


def add(one: Affine, other: Affine) -> Affine:
    """one(x) + other(x)."""
    biases = [part.bias for part in (one, other) if part.bias is not None]
    return Affine(one.weight + other.weight, torch.stack(biases).sum(0) if biases else None)


def scaled(branch: Affine, scale: float) -> Affine:
    """scale * branch(x)."""
    return Affine(scale * branch.weight, None if branch.bias is None else scale * branch.bias)


def identity_like(branch: Affine) -> Affine:
    """x, for as many channels as a square map has."""
    return Affine(
        torch.eye(len(branch.weight), dtype=branch.weight.dtype, device=branch.weight.device), None
    )


@torch.no_grad()
def assign(linear: nn.Linear, folded: Affine, rows: Tensor | slice = slice(None)) -> None:
    """Give a linear layer, or some of its output channels, the folded map, rounded once to its own dtype.

    A bias appears only where the layer has one.
    """
    linear.weight[rows] = folded.weight.to(linear.weight.dtype)
    if folded.bias is not None:
        linear.bias[rows] = folded.bias.to(linear.bias.dtype)
