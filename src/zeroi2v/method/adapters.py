"""What is trained beside the frozen weights? Linear adapters: equation 11 of the paper.

Shapes: any number of tokens, D channels, a bottleneck of r channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zeroi2v.method.fold import Affine, affine, compose, residual


class LinearAdapter(nn.Module):
    """x + scale * U(dropout(D(x))), with D: D -> r and U: r -> D. U starts at zero, so an attached adapter changes nothing."""

    def __init__(self, channels: int, width: int, *, scale: float, dropout: float, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width, bias=bias)
        self.up = nn.Linear(width, channels, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        for linear in (self.down, self.up):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.up(self.dropout(self.down(x))), alpha=self.scale)

    def affine(self) -> Affine:
        """(I + s U D) x + s (U b_D + b_U), in float64: what `forward` computes without dropout."""
        return residual(compose(affine(self.up), affine(self.down)), self.scale)

    def before_hook(self, site: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook: W (I + U D) x."""
        return (self(inputs[0]), *inputs[1:])

    def after_hook(self, site: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: (I + U D) W x."""
        adapted: Tensor = self(output)
        return adapted
