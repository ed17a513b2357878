"""What is trained beside the frozen weights? The adapters of Table 2: equations 10 and 11, and their rivals.

Shapes: any number of tokens, D channels, a bottleneck of r channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.errors import MergeError
from zeroi2v.method.call import call_in_progress
from zeroi2v.method.fold import Affine, add, affine, compose, identity_like, scaled
from zeroi2v.method.gradients import add_linear, keeping_source


class _Bottleneck(nn.Module):
    """scale * U(dropout(D(x))), with D: n -> r and U: r -> m. U starts at zero, so that attaching changes no output."""

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
        """dropout(D(x)): (..., r), the input of U."""
        with keeping_source(x):
            down = self.down(x)
        inner: Tensor = self.dropout(self.between(down))
        return inner

    def between(self, down: Tensor) -> Tensor:
        """The map between D and U: the identity, so that the whole branch is linear."""
        return down

    def branch(self, x: Tensor) -> Tensor:
        """U(dropout(D(x))), not yet scaled."""
        out: Tensor = self.up(self.inner(x))
        return out

    def added(self, total: Tensor, x: Tensor) -> Tensor:
        """total + scale * U(dropout(D(x)))."""
        return add_linear(total, self.inner(x), self.up, self.scale)

    def affine_branch(self) -> Affine:
        """s U D x + s (U b_D + b_U), in float64: the scaled branch without dropout."""
        return scaled(compose(affine(self.up), affine(self.down)), self.scale)


class LoRA(_Bottleneck):
    """W x + scale * U(D(x)): a linear map beside a frozen linear (equation 10), without biases."""

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """W x + scale * U(D(x)), where `output` is W x."""
        return self.added(output, x)

    def part(self, linear: nn.Linear, rows: Tensor, x: Tensor) -> Tensor:
        """U(D(x)): what the branch adds, times `scale`, to the output channels `rows` of the linear."""
        return self.branch(x)

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        """W + s U D."""
        return add(frozen, self.affine_branch())


class LinearAdapter(_Bottleneck):
    """x + scale * U(D(x)): a linear map before or after a frozen linear (equation 11)."""

    def __init__(
        self, channels: int, width: int, *, scale: float, dropout: float, bias: bool
    ) -> None:
        super().__init__(channels, width, channels, scale=scale, dropout=dropout, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x, x)

    def part(self, linear: nn.Linear, rows: Tensor, x: Tensor) -> Tensor:
        """W U(D(x)): what an adapter before the output channels `rows` of W adds to them, times `scale`."""
        return F.linear(self.branch(x), linear.weight[rows])

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
    """x + scale * U(GELU(conv(D(x)))), with conv depth-wise over three frames (Pan et al., 2022).

    The first `prefix` tokens stay as they are. So where the feature of a tower is its class token, an ST-Adapter after the
    last attention learns nothing. Tokens come as (B*T*W, N, D) or, as a map, (B*T*W, H, W, D); the call tells B and T.
    """

    def __init__(
        self, channels: int, width: int, *, scale: float, dropout: float, bias: bool, prefix: int
    ) -> None:
        super().__init__(channels, width, scale=scale, dropout=dropout, bias=bias)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        nn.init.zeros_(self.conv.weight)
        nn.init.ones_(self.conv.weight[:, :, 1])
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a convolution with a bias
        self.prefix = prefix

    def added(self, total: Tensor, x: Tensor) -> Tensor:
        return torch.add(total, self.branch(x), alpha=self.scale)

    def branch(self, x: Tensor) -> Tensor:
        call = call_in_progress()
        if call is None:
            raise RuntimeError("an ST-Adapter mixes the frames of a clip: call it within a model")
        inner = self.down(x[:, self.prefix :])
        by_frame = inner.view(call.clips, call.frames, -1, inner.shape[-1])  # (B, T, W * N, r)
        series = by_frame.permute(0, 2, 3, 1).flatten(0, 1)  # (B * W * N, r, T)
        mixed = self.conv(series).unflatten(0, (call.clips, -1)).permute(0, 3, 1, 2)
        out: Tensor = self.up(self.dropout(F.gelu(mixed.reshape(inner.shape))))
        return F.pad(out, (0, 0, self.prefix, 0)) if self.prefix else out

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        raise MergeError(
            "an ST-Adapter is not linear and mixes frames, so it cannot be merged; strategy 'zeroi2v' can"
        )


class TrainedRows(nn.Module):
    """A trained copy of the rows of a linear that make the channels of temporal heads. It starts as the frozen rows."""

    rows: Tensor

    def __init__(self, linear: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[rows].clone())

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """The output of the linear, with these channels made by the trained rows."""
        bias = None if linear.bias is None else linear.bias[self.rows]
        own = F.linear(x, self.weight, bias)
        return output.index_copy(-1, self.rows, own.to(output.dtype))

    def fold(self, linear: nn.Linear) -> None:
        """Write the trained rows into the linear."""
        with torch.no_grad():
            linear.weight[self.rows] = self.weight


class TrainedColumns(nn.Module):
    """A trained copy of the columns of a linear that read the channels of temporal heads. It starts as the frozen columns."""

    columns: Tensor

    def __init__(self, linear: nn.Linear, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[:, columns].clone())

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """The output of the linear, plus what the trained columns have learnt."""
        change = self.weight - linear.weight[:, self.columns]
        return output + F.linear(x[..., self.columns], change)

    def fold(self, linear: nn.Linear) -> None:
        """Write the trained columns into the linear."""
        with torch.no_grad():
            linear.weight[:, self.columns] = self.weight
