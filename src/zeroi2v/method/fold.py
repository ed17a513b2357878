"""Which single linear layer equals a linear layer and an adapter? Folding (equations 10 and 11).

Two affine maps, one after the other, are one affine map, and so is the sum of two affine maps.

Shapes: an affine map from n to m channels has a weight (m, n) and may have a bias (m).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """The map x -> weight @ x + bias, in float64."""

    weight: Tensor  # (m, n)
    bias: Tensor | None  # (m); None: the map has no bias


def affine(linear: nn.Linear, rows: Tensor | slice = slice(None)) -> Affine:
    """The map of a linear layer, or only of the layer's output channels `rows`, in float64."""
    bias = linear.bias
    return Affine(
        linear.weight.detach()[rows].double(),
        None if bias is None else bias.detach()[rows].double(),
    )


def compose(outer: Affine, inner: Affine) -> Affine:
    """The map outer(inner(x)): W_o W_i x + (W_o b_i + b_o).

    The result has no bias where neither `outer` nor `inner` has a bias.
    """
    bias = outer.bias
    if inner.bias is not None:
        bias = outer.weight @ inner.bias + (0 if bias is None else bias)
    return Affine(outer.weight @ inner.weight, bias)


def add(first: Affine, second: Affine) -> Affine:
    """The map first(x) + second(x)."""
    biases = [term.bias for term in (first, second) if term.bias is not None]
    return Affine(first.weight + second.weight, torch.stack(biases).sum(0) if biases else None)


def scaled(branch: Affine, scale: float) -> Affine:
    """The map scale * branch(x)."""
    return Affine(scale * branch.weight, None if branch.bias is None else scale * branch.bias)


def identity_like(branch: Affine) -> Affine:
    """The map x -> x, with the channels, dtype and device of `branch`, which must be square."""
    return Affine(
        torch.eye(len(branch.weight), dtype=branch.weight.dtype, device=branch.weight.device), None
    )


@torch.no_grad()
def assign(linear: nn.Linear, folded: Affine, rows: Tensor | slice = slice(None)) -> None:
    """Write a folded map into a linear layer, or only into the output channels `rows`.

    The float64 numbers are rounded once, to the dtype of the layer. If the folded map has a bias,
    the layer must have a bias too.
    """
    linear.weight[rows] = folded.weight.to(linear.weight.dtype)
    if folded.bias is not None:
        linear.bias[rows] = folded.bias.to(linear.bias.dtype)
