"""How does EVL make the feature of a clip from the tokens of a frozen tower?

"Frozen CLIP Models are Efficient Video Learners", Lin et al., 2022. A learnt query passes through a
decoder with a layer for each of the tower's last blocks: the last four for Kinetics, the last
twelve for Something-Something. First a layer adds time to the tokens of its block: a depth-wise
convolution over three frames, an embedding of the frame, and temporal cross attention, which
compares the tower's own queries and keys. Then the query attends to these tokens of all frames. The
tower computes no gradient, because nothing before the decoder trains.

Activation and starting values are those of the authors' code: the query, the embeddings of frames
and the weights of displacements start at zero, the convolution as PyTorch starts a convolution, and
each matrix of attention and MLP as Glorot and Bengio start a matrix ("xavier").

Shapes: B clips, T frames, N tokens per frame, P of them patches, D channels, H heads;
R = (2h - 1)(2w - 1) displacements (rows, columns) from one patch to another patch of a grid of h
rows and w columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.call import Call, call_in_progress
from zeroi2v.models.peers.settings import PeerSettings
from zeroi2v.models.survey import prefix_tokens


class DecoderLayer(nn.Module):
    """One layer of the decoder, which reads the tokens, queries and keys of one block.

    `Keep` hooks bring the tokens, queries and keys to the layer.
    """

    displacements: Tensor  # (P, P) int64: number of the displacement from a patch to a patch

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        frames: int,
        prefix: int,
        grid: tuple[int, int],
        dropout: float,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.convolution = nn.Conv1d(channels, channels, 3, padding=1, groups=channels)
        self.frame_embedding = nn.Parameter(torch.zeros(frames, channels))
        count = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        # One weight (D) for each displacement to a patch of the previous or of the next frame.
        self.before = nn.Parameter(torch.zeros(count, channels))
        self.after = nn.Parameter(torch.zeros(count, channels))
        self.set_grid(grid)
        self.query_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        up, down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.mlp = nn.Sequential(up, activation, nn.Dropout(dropout), down)
        # q, k and v are matrices of their own, although they lie in one tensor.
        matrices = self.attention.in_proj_weight.chunk(3)
        for matrix in (*matrices, self.attention.out_proj.weight, up.weight, down.weight):
            nn.init.xavier_uniform_(matrix)
        for linear in (up, down):
            nn.init.normal_(linear.bias, std=1e-6)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Number the displacements between the patches of a grid of (rows, columns)."""
        self.grid = grid
        rows, columns = (torch.arange(side) for side in grid)
        patches = torch.cartesian_prod(rows, columns)  # (P, 2): row and column of each patch
        apart = patches[:, None] - patches[None] + torch.tensor(grid) - 1
        numbers = apart[..., 0] * (2 * grid[1] - 1) + apart[..., 1]
        self.register_buffer("displacements", numbers.to(self.before.device), persistent=False)

    def forward(self, query: Tensor, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """The query (B, 1, D) after this layer.

        The block has `tokens` (B, T, N, D), `queries` and `keys` (B, T, H, N, D / H).
        """
        memory = self.token_norm(self.in_time(tokens, queries, keys).flatten(1, 2))
        attended = self.attention(self.query_norm(query), memory, memory, need_weights=False)[0]
        query = query + attended
        out: Tensor = query + self.mlp(self.mlp_norm(query))
        return out

    def in_time(self, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Tokens (B, T, N, D) plus convolution, frame embedding and temporal cross attention."""
        series = tokens.permute(0, 2, 3, 1).flatten(0, 1)  # (B*N, D, T)
        mixed = self.convolution(series).unflatten(0, (len(tokens), -1)).permute(0, 3, 1, 2)
        queries, keys = queries[..., self.prefix :, :], keys[..., self.prefix :, :]
        before = self.cross_attention(queries[:, 1:], keys[:, :-1], self.before)
        after = self.cross_attention(queries[:, :-1], keys[:, 1:], self.after)
        patches = F.pad(before, (0, 0, 0, 0, 1, 0)) + F.pad(after, (0, 0, 0, 0, 0, 1))
        out: Tensor = (
            tokens + mixed + self.frame_embedding[:, None] + F.pad(patches, (0, 0, self.prefix, 0))
        )
        return out

    def cross_attention(self, queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        """Attention between the patches of two frames, times a weight (D) for each displacement.

        `weight` is (R, D). The attention is averaged over the heads. The result is (B, T - 1, P,
        D).
        """
        scores = queries * queries.shape[-1] ** -0.5 @ keys.mT
        attention = scores.softmax(-1).mean(2)  # (B, T - 1, P, P)
        return torch.einsum("btqk,qkd->btqd", attention, weight[self.displacements])


class Decoder(nn.Module):
    """The learnt query, the layers that it passes through, and the norm after them."""

    def __init__(self, layers: Sequence[DecoderLayer], channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.query = nn.Parameter(torch.zeros(channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, call: Call) -> Tensor:
        """The feature of each clip, repeated for each frame of the clip: (B*T, D)."""
        query = self.query.expand(call.clips, 1, -1)
        for number, layer in enumerate(self.layers):
            outputs = (call.kept.pop((number, name)) for name in ("tokens", "queries", "keys"))
            query = layer(query, *(output.unflatten(0, (call.clips, -1)) for output in outputs))
        feature: Tensor = self.norm(query).expand(-1, call.frames, -1).flatten(0, 1)
        return feature

    @torch.no_grad()
    def resize(self, *, frames: int, grid: tuple[int, int]) -> None:
        """Make the decoder take clips of `frames` frames, with a grid of (rows, columns) patches.

        The embeddings of the frames are interpolated linearly, the weights of the displacements
        bilinearly.
        """
        layers: Any = self.layers
        for layer in layers:
            if frames != len(layer.frame_embedding):
                series = layer.frame_embedding.T[None]
                layer.frame_embedding = nn.Parameter(
                    F.interpolate(series, frames, mode="linear")[0].T.contiguous()
                )
            if grid != layer.grid:
                old, new = ([2 * side - 1 for side in sides] for sides in (layer.grid, grid))
                for name in ("before", "after"):
                    table = getattr(layer, name).T.unflatten(1, old)[None]
                    resized = (
                        F.interpolate(table, new, mode="bilinear")[0].flatten(1).T.contiguous()
                    )
                    setattr(layer, name, nn.Parameter(resized))
                layer.set_grid(grid)


class Keep:
    """A forward hook: the call keeps the output of the module for a layer of the decoder."""

    def __init__(self, layer: int, name: str) -> None:
        self.key = (layer, name)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        call = call_in_progress()
        if call is not None:
            call.kept[self.key] = output


def read_tower(tower: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook of the tower: the decoder's feature of a clip replaces the tower's output."""
    call = call_in_progress()
    if call is None:
        return output
    feature: Tensor = call.adapters[-1]["decoder"](call)
    return feature


def build(tower: VisionTransformer, settings: PeerSettings) -> list[dict[str, nn.Module]]:
    """The modules of every block: the last block has the decoder, the others have no modules."""
    blocks: Any = tower.blocks
    layers = [
        DecoderLayer(
            tower.embed_dim,
            block.attn.num_heads,
            frames=settings.frames,
            prefix=prefix_tokens(tower),
            grid=tower.patch_embed.grid_size,
            dropout=settings.dropout,
            activation=QuickGELU() if settings.activation == "quick_gelu" else nn.GELU(),
        )
        for block in blocks[-settings.layers :]
    ]
    return [*({} for _ in blocks[:-1]), {"decoder": Decoder(layers, tower.embed_dim)}]


def attach(
    tower: VisionTransformer,
    adapters: Sequence[Mapping[str, nn.Module]],
    settings: PeerSettings,
) -> None:
    """Hook each layer to its block, and the decoder to the output of the tower."""
    blocks: Any = tower.blocks
    for number, block in enumerate(blocks[-settings.layers :]):
        block.attn.q_norm.register_forward_hook(Keep(number, "queries"))
        block.attn.k_norm.register_forward_hook(Keep(number, "keys"))
        block.register_forward_hook(Keep(number, "tokens"))
    tower.register_forward_hook(read_tower)
