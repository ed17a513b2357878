"""Where does a head look? Attention and Grad-CAM of one block, on the frames that its heads read.

All is seen through hooks, in one forward pass; Grad-CAM adds a backward pass from the logit to this block.

Shapes: B clips, T frames, H heads, D channels of v per head, N tokens per frame, W windows of n tokens (1 of N where attention is
global), g patches along a side of the block's map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.method.relocate import Move, channel_offsets, frames_read
from zeroi2v.models.peers import peer_of
from zeroi2v.models.towers import Block, prefix_tokens
from zeroi2v.models.video import VideoClassifier


@dataclass(frozen=True)
class Watched:
    """What an attention block did in one forward pass of the model."""

    block: Block
    moves: tuple[Move, ...]  # what of K and V leaves its own frame
    class_token: bool  # whether token 0 is one
    maps: Tensor  # softmax attention (B*T*W, H, n, n), each row adding up to 1
    start: Tensor  # where the logits' graph begins: the fused projection's output (B*T*W, ..., C), after relocation
    projected: Tensor  # the same, with the biases that some attention modules add to it in place
    logits: Tensor  # (B, K)
    places: (
        Tensor  # (W, n) int64: the place of each token on the map, row by row; -1 where it has none
    )
    grid: tuple[int, int]  # of the map


@dataclass(frozen=True)
class Looks:
    """Where a group of heads looks in each frame that it reads."""

    attention: Tensor  # (T, g, g)
    grad_cam: Tensor  # (T, g, g)
    readers: tuple[
        tuple[int, ...], ...
    ]  # for each frame, the frames whose queries meet it; none: the maps are zero


def watch(model: VideoClassifier, clip: Tensor, block: int) -> Watched:
    """Pass clips (B, F, 3, S, S) through the model, adapted or merged, and keep what one block did. The model is left as it was.

    ConfigError if there is no such block; TowerError if its attention makes no softmax map per head, or its tokens have no place on
    a map; its message counts blocks from 1, as `zeroi2v show` does, and names the module.
    """
    blocks = [plan.block for plan in model.plan.blocks]
    if not 0 <= block < len(blocks):
        raise ConfigError(
            f"block must be 0 to {len(blocks) - 1} for {model.spec.model.tower}, got {block}"
        )
    found, prefix = blocks[block], model.plan.tower.prefix
    attention: Any = model.tower.get_submodule(found.name)
    where = (
        f"{model.spec.model.tower}: {type(attention).__name__} of block {block + 1} ({found.name})"
    )
    drop, fused = getattr(attention, "attn_drop", None), getattr(attention, "fused_attn", False)
    if not isinstance(drop, nn.Module):
        raise TowerError(f"{where} has no explicit attention map")
    caller = model.tower.get_submodule(found.owner)
    maps: list[Tensor] = []
    made: list[tuple[Tensor, Tensor]] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    shapes: list[torch.Size] = []

    def begin_graph(module: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> Tensor:
        leaf = projected.detach().requires_grad_()
        made.append((leaf, leaf.clone()))
        return made[-1][1]

    with ExitStack() as undo:
        undo.callback(model.train, model.training)
        if fused:
            undo.callback(setattr, attention, "fused_attn", fused)
            attention.fused_attn = (
                False  # the explicit route passes its softmax through `attn_drop`
            )
        model.eval()
        for parameter in model.parameters():
            if (
                parameter.requires_grad
            ):  # no graph before this block, and no gradient left in the model
                undo.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        for hook in (
            caller.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True),
            attention.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape)),
            attention.qkv.register_forward_hook(
                begin_graph
            ),  # after those of adapters and temporal heads
            drop.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].detach())),
        ):
            undo.callback(hook.remove)
        with torch.enable_grad():
            logits = model(clip)
        pictures = len(model.tower_input(clip))
        tokens = math.prod(shapes[0][1:-1])
        wanted = (math.prod(shapes[0][:-1]) // tokens, found.layout.head_count, tokens, tokens)
        if (
            len(maps) != 1
            or len(made) != 1
            or maps[0].shape != wanted
            or wanted[0] % pictures
            or not _adds_up(maps[0])
        ):
            peer = peer_of(
                model.plan.strategy
            )  # these are for towers whose own attention makes one
            cause = (
                f": strategy {model.spec.model.strategy} attends over frames with it too"
                if peer
                else ""
            )
            raise TowerError(f"{where} makes no single map per head{cause}")
        arguments, keywords = calls[0]
        if arguments[0].ndim == 3 and wanted[0] == pictures:
            grid = math.isqrt(tokens - prefix)
            order, sides = torch.arange(tokens)[None] - prefix, (grid, grid)
        else:
            order, sides = _order(caller, attention, found, arguments, keywords, pictures)
    placed = order[order >= 0].sort().values
    if not torch.equal(placed, torch.arange(sides[0] * sides[1])):
        raise TowerError(f"{where} has tokens whose place on a map cannot be told")
    class_token = prefix > 0 and model.plan.tower.has_class_token
    return Watched(
        found,
        model.plan.blocks[block].moves,
        class_token,
        maps[0],
        *made[0],
        logits,
        order.clamp(min=-1),
        sides,
    )


def _adds_up(maps: Tensor) -> bool:
    """Whether every row is a distribution, and so the softmax of one map."""
    sums = maps.float().sum(-1)
    return torch.allclose(
        sums, torch.ones_like(sums), atol=1e-2
    )  # half precision rounds each share


@torch.no_grad()
def _order(
    caller: nn.Module,
    attention: nn.Module,
    block: Block,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    pictures: int,
) -> tuple[Tensor, tuple[int, int]]:
    """The place (W, n) of each token that attention sees, and the sides of the map: padding has the place -1.

    Numbers are sent through the block, with all that is before attention giving back what it gets: only the windows are left.
    """
    tokens = arguments[0]  # (B*T, height, width, D), or channels first
    channel_axis = -1 if tokens.shape[-1] == block.width else 1
    height, width = tokens.movedim(channel_axis, -1).shape[1:3]
    numbers = (
        torch.arange(1.0, height * width + 1)
        .view(height, width, 1)
        .expand(pictures, -1, -1, block.width)
    )
    seen: list[Tensor] = []
    with ExitStack() as undo:
        for child in caller.children():
            if attention not in child.modules():
                undo.callback(
                    child.register_forward_hook(lambda _, inputs, output: inputs[0]).remove
                )
        for module, hook in (
            (caller, lambda _, inputs: (numbers.movedim(-1, channel_axis).to(tokens), *inputs[1:])),
            (attention, lambda _, inputs: seen.append(inputs[0])),
        ):
            undo.callback(module.register_forward_pre_hook(hook).remove)
        caller(*arguments, **keywords)
    windows = seen[0].flatten(1, -2)[..., 0]  # (B*T*W, n)
    return windows.unflatten(0, (pictures, -1))[0].round().long().cpu() - 1, (height, width)


def attention_maps(model: VideoClassifier, clip: Tensor, block: int) -> Tensor:
    """Softmax attention of every head of one global attention block: (B, T, H, N, N), each row adding up to 1.

    Row i of [b, t, h] says how the query of token i of frame t spreads over the tokens of the frame that head h reads.
    Errors as of `watch`; TowerError too if the block attends within windows.
    """
    seen = watch(model, clip, block)
    if len(seen.places) != 1:
        raise TowerError(
            f"{model.spec.model.tower}: block {block + 1} attends within windows, it makes no single map per head"
        )
    maps: Tensor = seen.maps.unflatten(0, (clip.shape[0], -1))
    return maps


def patch_map(attention_row: Tensor, model: VideoClassifier) -> Tensor:
    """One row of an attention map (N,) on the grid of patches: (g, g), without class and register tokens.

    It adds up to less than 1 where those tokens were looked at. ConfigError if the row does not fit.
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


def head_looks(seen: Watched, label: int) -> dict[str, Looks]:
    """Attention and Grad-CAM of one clip (B = 1), by group of heads, for the logit y of class `label`.

    The groups are "spatial heads", "temporal heads", "all heads" where a block has both, and "offset o" for every offset if it has
    several but 0. A split head belongs to several groups by its channels.

    Both maps lie on the frame s that is read, over its patches j. With S[t, h, i, j] the softmax attention from query i of frame t,
    v[s, j, h, d] the values, and `t reads s` by channel:

        Grad-CAM[s, j] = ReLU( sum over h, d in the group and t that read s, of  sum_i S[t, h, i, j] dy/dS[t, h, i, j] )
                       = ReLU( sum over h, d in the group, of  v[s, j, h, d] dy/dv[s, j, h, d] )

    The two are equal since the output is linear in S and in v. The second is computed: gradients weight the channels token by
    token, without the mean over places of the first Grad-CAM. What registers and class token pass on is left out.

        attention[s, j] = mean over h in the group and t that read s, of S[t, h, c, j]

    where c is the class token, and the mean over all queries where there is none. A frame that no frame reads has maps of zeros.
    """
    layout, windows = seen.block.layout, len(seen.places)
    frames = len(seen.maps) // windows
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(seen.logits[0, label], seen.start)
    evidence = (seen.projected.detach() * gradient).cpu()[..., layout.rows()[2]]  # (T*W, ..., H, D)
    evidence = evidence.flatten(1, -3).unflatten(0, (frames, windows))  # (T, W, n, H, D)
    rows = seen.maps[:, :, 0] if seen.class_token else seen.maps.mean(2)
    rows = rows.cpu().unflatten(0, (frames, windows)) / windows  # (T, W, H, n)
    read = nn.functional.one_hot(
        frames_read(layout, seen.moves, frames), frames
    )  # (T, H, D, S): S is read
    found = {}
    for name, channels in _groups(channel_offsets(layout, seen.moves)).items():
        chosen = (read * channels[..., None]).to(evidence)
        weights = chosen.mean(2)  # (T, H, S): a split head counts by its share
        total = weights.sum((0, 1)).clamp(min=torch.finfo(weights.dtype).tiny)
        attention = torch.einsum("twhn,ths->swn", rows, weights) / total[:, None, None]
        grad_cam = torch.einsum("twnhd,thds->swn", evidence, chosen).relu()
        readers = tuple(tuple(one.nonzero().flatten().tolist()) for one in (weights.sum(1) > 0).T)
        found[name] = Looks(_on_map(attention, seen), _on_map(grad_cam, seen), readers)
    return found


def _groups(offsets: Tensor) -> dict[str, Tensor]:
    """The channels of v (H, D), as bool, that each group of heads has."""
    groups = {"spatial heads": offsets == 0, "temporal heads": offsets != 0}
    groups = {name: mask for name, mask in groups.items() if mask.any()}
    if len(groups) == 2:
        groups["all heads"] = torch.ones_like(offsets, dtype=torch.bool)
    others = sorted({*offsets.flatten().tolist()} - {0}, key=lambda offset: (abs(offset), offset))
    if len(others) > 1:
        groups |= {f"offset {offset:+d}": offsets == offset for offset in others}
    return groups


def _on_map(values: Tensor, seen: Watched) -> Tensor:
    """Values of tokens (T, W, n) at their places: (T, g, g)."""
    has_place = seen.places >= 0
    placed = values.new_zeros(len(values), math.prod(seen.grid))
    placed[:, seen.places[has_place]] = values[:, has_place]
    on_map: Tensor = placed.unflatten(1, seen.grid)
    return on_map
