"""Which modules are trained beside frozen linear layers? The adapters of Table 2.

Equation 10 of the paper is `LoRA`, equation 11 is `LinearAdapter`. In the formulas D is the down
projection of an adapter, U its up projection, s its scale, and W the weight of the frozen linear
layer.

Shapes: any number of tokens of n channels; a bottleneck of r channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.errors import MergeError
from zeroi2v.method.call import call_in_progress
from zeroi2v.method.fold import Affine, add, affine, compose, identity_like, scaled
from zeroi2v.method.gradients import add_linear, keep_norm_input


class _Bottleneck(nn.Module):
    """The two linear layers of an adapter: U(dropout(D(x))), the branch, which is added times s.

    D maps n to r channels, and U maps r to m channels. U starts at zero. So a model gives the same
    output before and after adapters are attached.
    """

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

    def bottleneck(self, x: Tensor) -> Tensor:
        """dropout(D(x)), the input of U: (..., r)."""
        if torch.is_grad_enabled():
            with keep_norm_input(x):
                narrow = self.down(x)
        else:
            narrow = self.down(x)
        narrow = self.activate(narrow)
        return self.dropout(narrow) if self.training else narrow

    def activate(self, narrow: Tensor) -> Tensor:
        """The function between D and U: here the identity, so that the branch is linear."""
        return narrow

    def branch(self, x: Tensor) -> Tensor:
        """U(dropout(D(x))), without the scale."""
        branch: Tensor = self.up(self.bottleneck(x))
        return branch

    def add_branch(self, total: Tensor, x: Tensor) -> Tensor:
        """total + s U(dropout(D(x)))."""
        return add_linear(total, self.bottleneck(x), self.up, self.scale)

    def scaled_affine_branch(self) -> Affine:
        """The branch times s, without dropout, as an affine map: s U D x + s (U b_D + b_U).

        The map is in float64.
        """
        return scaled(compose(affine(self.up), affine(self.down)), self.scale)


class LoRA(_Bottleneck):
    """W x + s U(D(x)): a linear map beside a frozen linear layer (equation 10), without biases."""

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """W x + s U(D(x)), where `output` is W x."""
        return self.add_branch(output, x)

    def part(self, linear: nn.Linear, rows: Tensor, x: Tensor) -> Tensor:
        """U(D(x)). The caller adds s U(D(x)) to the output channels `rows` of `linear`."""
        return self.branch(x)

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        """W + s U D."""
        return add(frozen, self.scaled_affine_branch())


class LinearAdapter(_Bottleneck):
    """x + s U(D(x)): a linear map before or after a frozen linear layer (equation 11)."""

    def __init__(
        self, channels: int, width: int, *, scale: float, dropout: float, bias: bool
    ) -> None:
        super().__init__(channels, width, channels, scale=scale, dropout=dropout, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.add_branch(x, x)

    def part(self, linear: nn.Linear, rows: Tensor, x: Tensor) -> Tensor:
        """W U(D(x)), where W has the rows `rows` of the weight of `linear`.

        The caller adds s W U(D(x)) to the output channels `rows`. So the adapter changes only
        the input of these output channels: W (x + s U(D(x))) = W x + s W U(D(x)).
        """
        return F.linear(self.branch(x), linear.weight[rows])

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        """W (I + s U D) with `before`, else (I + s U D) W; the biases are folded likewise.

        MergeError if the adapter is not linear.
        """
        branch = self.scaled_affine_branch()
        adapter = add(identity_like(branch), branch)
        return compose(frozen, adapter) if before else compose(adapter, frozen)


class GELUAdapter(LinearAdapter):
    """x + s U(dropout(GELU(D(x)))). No linear layer can absorb this adapter."""

    def activate(self, narrow: Tensor) -> Tensor:
        return F.gelu(narrow)

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        raise MergeError(
            "a GELU adapter is not linear and cannot be merged; "
            "train with strategy 'zeroi2v', whose adapters can be merged"
        )


class STAdapter(LinearAdapter):
    """x + s U(conv(D(x))), with conv depth-wise over three frames (Pan et al., 2022, as released).

    The convolution starts at zero, so the adapter starts as the identity. D and U start as PyTorch
    starts a linear layer, but with biases of zero. With `gelu`, a GELU follows the convolution, as
    under the older rules (`strategies.py`).

    The adapter leaves the first `prefix` tokens of a frame as they are. So where the feature of a
    tower is its class token, an ST-Adapter after the last attention learns nothing.

    Shapes: B clips, T frames, V windows of a frame. Tokens are (B*T*V, N, n) or, as a map,
    (B*T*V, height, width, n). The call in progress tells B and T.
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
        gelu: bool = False,
    ) -> None:
        super().__init__(channels, width, scale=scale, dropout=dropout, bias=bias)
        for linear in (self.down, self.up):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # a convolution with a bias
        self.prefix, self.gelu = prefix, gelu

    def add_branch(self, total: Tensor, x: Tensor) -> Tensor:
        return torch.add(total, self.branch(x), alpha=self.scale)

    def activate(self, narrow: Tensor) -> Tensor:
        return F.gelu(narrow) if self.gelu else narrow

    def branch(self, x: Tensor) -> Tensor:
        call = call_in_progress()
        if call is None:
            raise RuntimeError(
                "an ST-Adapter was called outside of a model; "
                "only a model's forward pass says how many frames a clip has"
            )
        narrow = self.down(x[:, self.prefix :])
        by_frame = narrow.view(call.clips, call.frames, -1, narrow.shape[-1])  # (B, T, V * N, r)
        series = by_frame.permute(0, 2, 3, 1).flatten(0, 1)  # (B * V * N, r, T)
        mixed = self.conv(series).unflatten(0, (call.clips, -1)).permute(0, 3, 1, 2)
        branch: Tensor = self.up(self.dropout(self.activate(mixed.reshape(narrow.shape))))
        return F.pad(branch, (0, 0, self.prefix, 0)) if self.prefix else branch

    def folded(self, frozen: Affine, *, before: bool) -> Affine:
        raise MergeError(
            "an ST-Adapter mixes frames, so no linear layer can absorb it and it cannot be merged; "
            "train with strategy 'zeroi2v', whose adapters can be merged"
        )


class TrainedRows(nn.Module):
    """A trained copy of some rows of a frozen linear layer.

    A row of the weight makes one output channel. These rows make the channels of temporal heads.
    The copy starts equal to the frozen rows.
    """

    rows: Tensor

    def __init__(self, linear: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[rows].clone())

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """The layer's `output`, in which trained rows make the channels of temporal heads."""
        bias = None if linear.bias is None else linear.bias[self.rows]
        trained = F.linear(x, self.weight, bias)
        return output.index_copy(-1, self.rows, trained.to(output.dtype))

    def fold(self, linear: nn.Linear) -> None:
        """Write the trained rows into the linear layer."""
        with torch.no_grad():
            linear.weight[self.rows] = self.weight


class TrainedColumns(nn.Module):
    """A trained copy of some columns of a frozen linear layer.

    A column of the weight reads one input channel. These columns read the channels of temporal
    heads. The copy starts equal to the frozen columns.
    """

    columns: Tensor

    def __init__(self, linear: nn.Linear, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        self.weight = nn.Parameter(linear.weight.detach()[:, columns].clone())

    def beside(self, linear: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        """The layer's `output`, plus the difference that the trained columns make."""
        change = self.weight - linear.weight[:, self.columns]
        return output + F.linear(x[..., self.columns], change)

    def fold(self, linear: nn.Linear) -> None:
        """Write the trained columns into the linear layer."""
        with torch.no_grad():
            linear.weight[:, self.columns] = self.weight
