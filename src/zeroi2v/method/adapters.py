"""What is trained beside the frozen weights? The adapters of Table 2: equations 10 and 11, and what they are compared with.

Shapes: any number of tokens, D channels, a bottleneck of r channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.errors import MergeError
from zeroi2v.method.fold import Affine, add, affine, compose, identity_like, scaled
from zeroi2v.method.gradients import add_linear, keeping_source
from zeroi2v.method.relocate import ClipCount


class _Bottleneck(nn.Module):
    """scale * U(dropout(D(x))), with D: n -> r and U: r -> m. U starts at zero, so that attaching it changes nothing."""

    def __init__(
        self, inputs: int, width: int, outputs: int, *, scale: float, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, width, bias=bias)
        self.up = nn.Linear(width, outputs, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        for linear in (self.down, self.up):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def inner(self, x: Tensor) -> Tensor:
        """dropout(D(x)): (..., r), what U is applied to."""
        with keeping_source(x):
            down = self.down(x)
        inner: Tensor = self.dropout(self.between(down))
        return inner

    def between(self, down: Tensor) -> Tensor:
        """What happens in the bottleneck: nothing, so that all of it is linear."""
        return down

    def branch(self, x: Tensor) -> Tensor:
        """U(dropout(D(x))), not yet scaled."""
        out: Tensor = self.up(self.inner(x))
        return out

    def added(self, total: Tensor, x: Tensor) -> Tensor:
        """total + scale * U(dropout(D(x)))."""
        return add_linear(total, self.inner(x), self.up, self.scale)

    def affine_branch(self) -> Affine:
        """s U D x + s (U b_D + b_U), in float64: what the scaled branch computes without dropout."""
        return scaled(compose(affine(self.up), affine(self.down)), self.scale)


class LoRA(_Bottleneck):
    """W x + scale * U(D(x)): a linear map beside a frozen one (equation 10), without biases."""

    def beside_hook(self, linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook."""
        return self.added(output, inputs[0])

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        """W + s U D."""
        return add(frozen, self.affine_branch())


class LinearAdapter(_Bottleneck):
    """x + scale * U(D(x)): a linear map before or after a frozen one (equation 11)."""

    def __init__(
        self, channels: int, width: int, *, scale: float, dropout: float, bias: bool
    ) -> None:
        super().__init__(channels, width, channels, scale=scale, dropout=dropout, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x, x)

    def before_hook(self, site: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook: W (I + U D) x."""
        return (self(inputs[0]), *inputs[1:])

    def after_hook(self, site: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: (I + U D) W x."""
        adapted: Tensor = self(output)
        return adapted

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        """W (I + s U D), or (I + s U D) W, biases included. MergeError if the adapter is not linear."""
        branch = self.affine_branch()
        own = add(identity_like(branch), branch)
        return compose(frozen, own) if before else compose(own, frozen)


class GELUAdapter(LinearAdapter):
    """x + scale * U(dropout(GELU(D(x)))), which no linear layer can absorb."""

    def between(self, down: Tensor) -> Tensor:
        return F.gelu(down)

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        raise MergeError(
            "a GELU adapter is not linear and cannot be merged; strategy 'zeroi2v' can"
        )


class STAdapter(LinearAdapter):
    """x + scale * U(GELU(conv(D(x)))), conv depth-wise over three frames (Pan et al., 2022). The first `prefix` tokens keep x, so
    where a tower's feature is its class token, those in the last block after attention learn nothing.

    Tokens come as (B*T*W, N, D) or, as a map, (B*T*W, H, W, D); `count` tells B and T.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        scale: float,
        dropout: float,
        bias: bool,
        prefix: int,
        count: ClipCount,
    ) -> None:
        super().__init__(channels, width, scale=scale, dropout=dropout, bias=bias)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        nn.init.zeros_(self.conv.weight)
        nn.init.ones_(self.conv.weight[:, :, 1])
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a convolution with a bias
        self.prefix, self.count = prefix, count

    def added(self, total: Tensor, x: Tensor) -> Tensor:
        return torch.add(total, self.branch(x), alpha=self.scale)

    def branch(self, x: Tensor) -> Tensor:
        inner = self.down(x[:, self.prefix :])
        by_frame = inner.view(
            self.count.clips, self.count.frames, -1, inner.shape[-1]
        )  # (B, T, W * N, r)
        series = by_frame.permute(0, 2, 3, 1).flatten(0, 1)  # (B * W * N, r, T)
        mixed = (
            self.conv(series)
            .unflatten(0, (self.count.clips, -1))
            .permute(0, 3, 1, 2)
            .reshape(inner.shape)
        )
        out: Tensor = self.up(self.dropout(F.gelu(mixed)))
        return F.pad(out, (0, 0, self.prefix, 0)) if self.prefix else out

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        raise MergeError(
            "an ST-Adapter is not linear and mixes frames, so it cannot be merged; strategy 'zeroi2v' can"
        )


class TrainedRows(nn.Module):
    """The output channels of a linear that temporal heads own, with a weight of their own that trains. Starts as the frozen one."""

    rows: Tensor

    def __init__(self, linear: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[rows].clone())

    def beside_hook(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: these channels of the output are computed anew."""
        bias = None if linear.bias is None else linear.bias[self.rows]
        own = F.linear(inputs[0], self.weight, bias)
        return output.index_copy(-1, self.rows, own.to(output.dtype))

    def fold(self, linear: nn.Linear) -> None:
        """Write the weight into the linear."""
        with torch.no_grad():
            linear.weight[self.rows] = self.weight


class TrainedColumns(nn.Module):
    """The input channels of a linear that temporal heads own, with a weight of their own that trains. Starts as the frozen one."""

    columns: Tensor

    def __init__(self, linear: nn.Linear, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[:, columns].clone())

    def beside_hook(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: what these columns have learnt is added to the output."""
        return output + F.linear(
            inputs[0][..., self.columns], self.weight - linear.weight[:, self.columns]
        )

    def fold(self, linear: nn.Linear) -> None:
        """Write the weight into the linear."""
        with torch.no_grad():
            linear.weight[:, self.columns] = self.weight
