"""Where does a head look? Attention and Grad-CAM of one block, on the frames that its heads read.

Hooks watch the block in one forward pass; Grad-CAM adds a backward pass from a logit to this block.

Shapes: B clips, T frames, H heads, D channels of v per head, N tokens per frame, W windows of n
tokens (one window of N tokens where attention is global), g patches along a side of the block's
map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.method.relocate import Move, channel_offsets, frames_read
from zeroi2v.models.peers import peer_of
from zeroi2v.models.survey import Block, prefix_tokens
from zeroi2v.models.video import VideoClassifier


@dataclass(frozen=True)
class Watched:
    """What an attention block did in one forward pass of the model."""

    block: Block
    moves: tuple[Move, ...]  # the channels of K and V that are relocated
    class_token: bool  # whether token 0 is a class token
    maps: Tensor  # softmax attention (B*T*W, H, n, n), each row adding up to 1
    # Where the graph of the logits begins: the output of the fused projection (B*T*W, ..., C) after
    # relocation. `projected` is this output with the biases that some modules add to it in place.
    start: Tensor
    projected: Tensor
    logits: Tensor  # (B, K)
    positions: Tensor  # (W, n) int64: where each token lies on the map, row by row; -1: nowhere
    grid: tuple[int, int]  # height and width of the map


@dataclass(frozen=True)
class Looks:
    """Where a group of heads looks in each frame that it reads."""

    attention: Tensor  # (T, g, g)
    grad_cam: Tensor  # (T, g, g)
    # For each frame, the frames whose queries read it. A frame without readers has maps of zeros.
    readers: tuple[tuple[int, ...], ...]


def watch(model: VideoClassifier, clip: Tensor, block: int) -> Watched:
    """Pass clips (B, F, 3, S, S) through the model, adapted or merged, and keep what one block did.

    The model is left as it was. ConfigError if there is no such block. TowerError if the block
    makes no softmax map per head, or if its tokens have no position on a map; the message counts
    blocks from 1, as `zeroi2v show` does, and names the module.
    """
    blocks = [plan.block for plan in model.plan.blocks]
    if not 0 <= block < len(blocks):
        last = len(blocks) - 1
        raise ConfigError(f"block must be 0 to {last} for {model.spec.model.tower}, got {block}")
    watched, prefix = blocks[block], model.plan.tower.prefix
    attention = model.tower.get_submodule(watched.name)
    where = f"{type(attention).__name__} of block {block + 1} ({watched.name})"
    where = f"{model.spec.model.tower}: {where}"
    softmax = getattr(attention, "attn_drop", None)  # the module that the softmax passes through
    if not isinstance(softmax, nn.Module):
        raise TowerError(f"{where} has no explicit attention map; choose another block or tower")
    caller = model.tower.get_submodule(watched.owner)
    record = _Record()
    with ExitStack() as undo:
        _quieten(model, attention, undo)
        for hook in record.hooks(caller, attention, softmax):
            undo.callback(hook.remove)
        with torch.enable_grad():
            logits = model(clip)
        frames = len(model.tower_input(clip))
        if not record.one_map_per_head(frames, watched.layout.head_count):
            cause = ""
            if peer_of(model.plan.strategy):  # a peer may use the tower's attention for more
                name = model.spec.model.strategy
                cause = f": strategy {name} also attends over several frames with this module"
            raise TowerError(
                f"{where} makes no single map per head{cause}; choose another block or tower"
            )
        positions, grid = _positions(caller, attention, watched, prefix, record, frames)
    on_map = positions[positions >= 0].sort().values
    if not torch.equal(on_map, torch.arange(grid[0] * grid[1])):
        raise TowerError(
            f"{where} has tokens whose position on a map cannot be told; "
            "choose another block or tower"
        )
    return Watched(
        watched,
        model.plan.blocks[block].moves,
        prefix > 0 and model.plan.tower.has_class_token,
        record.maps[0],
        *record.projections[0],
        logits,
        positions.clamp(min=-1),
        grid,
    )


def _quieten(model: VideoClassifier, attention: Any, undo: ExitStack) -> None:
    """Make the model compute explicit softmax maps without dropout and without gradients of
    weights.

    `undo` gives the model back as it was.
    """
    undo.callback(model.train, model.training)
    if getattr(attention, "fused_attn", False):
        undo.callback(setattr, attention, "fused_attn", attention.fused_attn)
        attention.fused_attn = False  # the explicit route passes its softmax through `attn_drop`
    model.eval()
    for parameter in model.parameters():
        # the graph begins at the watched block, and no gradient stays in the model
        if parameter.requires_grad:
            undo.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class _Record:
    """What the hooks on one block keep of a forward pass: an entry for each call of the hook."""

    maps: list[Tensor] = field(default_factory=list)
    projections: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # leaf, and its clone
    shapes: list[torch.Size] = field(default_factory=list)  # of the input of the attention module
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def hooks(
        self, caller: nn.Module, attention: nn.Module, softmax: nn.Module
    ) -> Iterable[RemovableHandle]:
        """Hook the modules: the caller of the attention, the attention, and two modules inside."""

        def begin_graph(_: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> Tensor:
            leaf = projected.detach().requires_grad_()
            self.projections.append((leaf, leaf.clone()))
            return self.projections[-1][1]

        yield caller.register_forward_pre_hook(
            lambda _, *call: self.calls.append(call), with_kwargs=True
        )
        yield attention.register_forward_pre_hook(
            lambda _, inputs: self.shapes.append(inputs[0].shape)
        )
        # after the hooks of adapters and temporal heads, which were there before
        yield attention.get_submodule("qkv").register_forward_hook(begin_graph)
        yield softmax.register_forward_pre_hook(
            lambda _, inputs: self.maps.append(inputs[0].detach())
        )

    @property
    def tokens(self) -> int:
        """The number of tokens in a window."""
        return math.prod(self.shapes[0][1:-1])

    @property
    def windows(self) -> int:
        """The number of windows in all frames of all clips: B*T*W."""
        return math.prod(self.shapes[0][:-1]) // self.tokens

    def one_map_per_head(self, frames: int, heads: int) -> bool:
        """Whether the block made one softmax map for each head, in each window of each frame."""
        if len(self.maps) != 1 or len(self.projections) != 1 or self.windows % frames:
            return False
        if self.maps[0].shape != (self.windows, heads, self.tokens, self.tokens):
            return False
        sums = self.maps[0].float().sum(-1)  # half precision rounds each share
        return torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


@torch.no_grad()
def _positions(
    caller: nn.Module,
    attention: nn.Module,
    block: Block,
    prefix: int,
    record: _Record,
    frames: int,
) -> tuple[Tensor, tuple[int, int]]:
    """The position (W, n) on the map of each token that attention sees, and the map's sides.

    Padding and the tokens before the patches have negative positions. Where the block attends
    within windows, this function calls the block with position numbers in place of tokens. Hooks
    make every other module of the block return its input, so the block only divides the numbers
    into windows.
    """
    arguments, keywords = record.calls[0]
    tokens = arguments[0]  # (B*T, N, D), or (B*T, height, width, D), or channels first
    if tokens.ndim == 3 and record.windows == frames:
        side = math.isqrt(record.tokens - prefix)
        return torch.arange(record.tokens)[None] - prefix, (side, side)
    channel_axis = -1 if tokens.shape[-1] == block.width else 1
    height, width = tokens.movedim(channel_axis, -1).shape[1:3]
    numbers = torch.arange(1.0, height * width + 1).view(height, width, 1)
    numbers = numbers.expand(frames, -1, -1, block.width).movedim(-1, channel_axis).to(tokens)
    seen: list[Tensor] = []
    with ExitStack() as undo:
        for child in caller.children():
            if attention not in child.modules():
                hook = child.register_forward_hook(lambda _, inputs, output: inputs[0])
                undo.callback(hook.remove)
        for hook in (
            caller.register_forward_pre_hook(lambda _, inputs: (numbers, *inputs[1:])),
            attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        ):
            undo.callback(hook.remove)
        caller(*arguments, **keywords)
    windows = seen[0].flatten(1, -2)[..., 0]  # (B*T*W, n)
    return windows.unflatten(0, (frames, -1))[0].round().long().cpu() - 1, (height, width)


def attention_maps(model: VideoClassifier, clip: Tensor, block: int) -> Tensor:
    """Softmax attention of every head of one global attention block: (B, T, H, N, N).

    Row i of [b, t, h] says how the query of token i of frame t spreads over the tokens of the frame
    that head h reads; each row adds up to 1. Raises the errors of `watch`, and TowerError also if
    the block attends within windows.
    """
    watched = watch(model, clip, block)
    if len(watched.positions) != 1:
        raise TowerError(
            f"{model.spec.model.tower}: block {block + 1} attends within windows, "
            "so it makes no single map per head; choose another block"
        )
    maps: Tensor = watched.maps.unflatten(0, (clip.shape[0], -1))
    return maps


def patch_map(attention_row: Tensor, model: VideoClassifier) -> Tensor:
    """One row of an attention map (N,) on the grid of patches: (g, g).

    Class and register tokens are left out, so the map adds up to less than 1 where the row looks at
    these tokens. ConfigError if the row does not fit.
    """
    prefix = prefix_tokens(model.tower)
    patches = attention_row[prefix:]
    grid = math.isqrt(len(patches))
    if attention_row.ndim != 1 or grid == 0 or grid * grid != len(patches):
        shape = tuple(attention_row.shape)
        raise ConfigError(
            f"a row must be (N,), {prefix} tokens before a square grid of patches, got {shape}"
        )
    on_grid: Tensor = patches.unflatten(0, (grid, grid))
    return on_grid


def head_looks(watched: Watched, label: int) -> dict[str, Looks]:
    """Attention and Grad-CAM of one clip (B = 1), by group of heads, for the logit y of a class.

    `label` is the number of the class. The groups are "spatial heads", "temporal heads", "all
    heads" if the block has both kinds, and "offset o" for every offset but 0 if there are several.
    A split head belongs to several groups by its channels.

    Both maps lie on the frame s that is read, over its patches j. With S[t, h, i, j] the softmax
    attention from query i of frame t, v[s, j, h, d] the values, and `t reads s` by channel:

        Grad-CAM[s, j]
            = ReLU( sum over t that reads s, over i, over h, d in the group,
                    of  S[t, h, i, j] dy/dS[t, h, i, j] )
            = ReLU( sum over h, d in the group,  of  v[s, j, h, d] dy/dv[s, j, h, d] )

    The two sums are equal because the output is linear in S and in v; the second sum is computed.
    The gradient weights the channels token by token, without the mean over positions of the first
    Grad-CAM paper. The part of register and class tokens is left out.

        attention[s, j] = mean over h in the group and t that reads s, of S[t, h, c, j]

    Here c is the class token; without a class token, the mean over all queries is taken.
    """
    layout, windows = watched.block.layout, len(watched.positions)
    frames = len(watched.maps) // windows
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(watched.logits[0, label], watched.start)
    # (T*W, ..., H, D) -> (T, W, n, H, D)
    evidence = (watched.projected.detach() * gradient).cpu()[..., layout.rows()[2]]
    evidence = evidence.flatten(1, -3).unflatten(0, (frames, windows))
    rows = watched.maps[:, :, 0] if watched.class_token else watched.maps.mean(2)
    rows = rows.cpu().unflatten(0, (frames, windows)) / windows  # (T, W, H, n)
    # (T, H, D, S): whether frame S is read
    read = nn.functional.one_hot(frames_read(layout, watched.moves, frames), frames)
    looks = {}
    for name, channels in _groups(channel_offsets(layout, watched.moves)).items():
        chosen = (read * channels[..., None]).to(evidence)
        weights = chosen.mean(2)  # (T, H, S): a split head counts by its share
        total = weights.sum((0, 1)).clamp(min=torch.finfo(weights.dtype).tiny)
        attention = torch.einsum("twhn,ths->swn", rows, weights) / total[:, None, None]
        grad_cam = torch.einsum("twnhd,thds->swn", evidence, chosen).relu()
        reads = (weights.sum(1) > 0).T  # (S, T)
        readers = tuple(tuple(frame.nonzero().flatten().tolist()) for frame in reads)
        looks[name] = Looks(_on_map(attention, watched), _on_map(grad_cam, watched), readers)
    return looks


def _groups(offsets: Tensor) -> dict[str, Tensor]:
    """The groups of heads, each with its channels of v as bool (H, D)."""
    groups = {"spatial heads": offsets == 0, "temporal heads": offsets != 0}
    groups = {name: mask for name, mask in groups.items() if mask.any()}
    if len(groups) == 2:
        groups["all heads"] = torch.ones_like(offsets, dtype=torch.bool)
    others = sorted({*offsets.flatten().tolist()} - {0}, key=lambda offset: (abs(offset), offset))
    if len(others) > 1:
        groups |= {f"offset {offset:+d}": offsets == offset for offset in others}
    return groups


def _on_map(values: Tensor, watched: Watched) -> Tensor:
    """Values of tokens (T, W, n) at the positions of the tokens: (T, g, g)."""
    is_patch = watched.positions >= 0
    flat = values.new_zeros(len(values), math.prod(watched.grid))
    flat[:, watched.positions[is_patch]] = values[:, is_patch]
    on_map: Tensor = flat.unflatten(1, watched.grid)
    return on_map
