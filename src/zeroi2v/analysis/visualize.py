"""Where does a head look? The attention maps of one block, and how one of them is drawn over a frame.

Shapes: B clips, T frames, H heads, N tokens per frame, g patches along a side of a frame.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.models.towers import find_blocks, prefix_tokens
from zeroi2v.models.video import VideoClassifier

SIDE: Final = 192  # pixels that a drawn frame has at least along each side
COLOURS: Final = (  # from no attention to the most; their lightness rises evenly, so that they also read in grey
    *((0.00, 0.00, 0.02), (0.26, 0.04, 0.41), (0.58, 0.15, 0.40)),
    *((0.87, 0.32, 0.23), (0.99, 0.65, 0.04), (0.99, 1.00, 0.64)),
)
GREY: Final = (0.299, 0.587, 0.114)  # weights of red, green and blue in the lightness of a pixel


@torch.no_grad()
def attention_maps(model: VideoClassifier, clip: Tensor, block: int) -> Tensor:
    """Softmax attention of every head of one attention block: (B, T, H, N, N), each row adding up to 1.

    Row i of [b, t, h] says how the query of token i of frame t spreads over the tokens of the frame that head h reads.
    The model may be adapted or merged and is left as it was. ConfigError if there is no such block, TowerError if its
    attention does not make such a map.
    """
    blocks = find_blocks(model.tower, model.config.tower)
    if not 0 <= block < len(blocks):
        raise ConfigError(f"block must be 0 to {len(blocks) - 1} for {model.config.tower}, got {block}")
    attention: Any = model.tower.get_submodule(blocks[block].name)
    where = f"{model.config.tower}: {type(attention).__name__} of block {block}"
    drop, fused = getattr(attention, "attn_drop", None), getattr(attention, "fused_attn", None)
    if not isinstance(drop, nn.Module) or not isinstance(fused, bool):
        raise TowerError(f"{where} has no explicit attention map")
    seen: list[Tensor] = []
    hook = drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training = model.training
    try:
        attention.fused_attn = False  # the explicit route passes its softmax through `attn_drop`
        model.eval()
        tokens = model.tokens(clip).shape[2]
    finally:
        attention.fused_attn = fused
        model.train(training)
        hook.remove()
    wanted = (len(model.tower_input(clip)), blocks[block].layout.head_count, tokens, tokens)
    if len(seen) != 1 or seen[0].shape != wanted:
        raise TowerError(f"{where} makes no single map per head")
    maps: Tensor = seen[0].unflatten(0, (clip.shape[0], -1))
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
        raise ConfigError(f"a row must be (N,), {prefix} tokens before a square grid of patches, got {shape}")
    on_grid: Tensor = patches.unflatten(0, (grid, grid))
    return on_grid


def enlarge(frame: Tensor) -> Tensor:
    """A frame uint8 (3, H, W) made a whole number of times larger, to 192 pixels a side or more: uint8 (3, H', W')."""
    times = max(1, math.ceil(SIDE / min(frame.shape[-2:])))
    size = [times * side for side in frame.shape[-2:]]
    larger = F.interpolate(frame[None].float(), size, mode="bilinear", align_corners=False)[0]
    return larger.round().clamp(0, 255).to(torch.uint8)


def outline(picture: Tensor, patch: tuple[int, int], grid: int) -> Tensor:
    """A picture uint8 (3, H, W) with one of its `grid` x `grid` patches (row, column) outlined in black and white.

    ConfigError if there is no such patch.
    """
    if not (0 <= patch[0] < grid and 0 <= patch[1] < grid):
        raise ConfigError(f"a patch must be (row, column) within 0 to {grid - 1}, got {patch}")
    height, width = picture.shape[-2:]
    top, bottom = (round(height * edge / grid) for edge in (patch[0], patch[0] + 1))
    left, right = (round(width * edge / grid) for edge in (patch[1], patch[1] + 1))
    bottom, right = max(bottom, top + 8), max(right, left + 8)  # room for the three lines
    marked = picture.clone()
    for inset, value in ((0, 0), (1, 255), (3, 0)):  # white between black: seen on any ground
        line = 2 if value else 1
        within = marked[:, top + inset : bottom - inset, left + inset : right - inset]
        for edge in (within[:, :line], within[:, -line:], within[:, :, :line], within[:, :, -line:]):
            edge.fill_(value)
    return marked


def overlay(frame: Tensor, heat: Tensor) -> Tensor:
    """The enlarged frame in grey, the heat map (g, g) in colour over it: uint8.

    Where the map is 0 the frame stays grey; then purple, orange, and pale yellow at the map's own maximum.
    """
    picture = enlarge(frame)
    share = heat.detach().to(picture.device, torch.float32).clamp(min=0)
    share = share / share.max().clamp(min=torch.finfo(share.dtype).tiny)
    share = F.interpolate(share[None, None], picture.shape[-2:], mode="nearest-exact")[0, 0]  # one value per patch
    grey = torch.einsum("chw,c->hw", picture.float() / 255, torch.tensor(GREY, device=picture.device))
    low, high = grey.aminmax()
    grey = (grey - low) / (high - low).clamp(min=0.1)  # shapes stay visible in a dark or pale frame
    lit = colour(share) * (0.6 + 0.4 * grey)
    blended = torch.lerp(0.1 + 0.45 * grey.expand_as(lit), lit, 0.2 + 0.7 * share)
    return (blended * 255).round().clamp(0, 255).to(torch.uint8)


def colour(share: Tensor) -> Tensor:
    """Colours of 0..1, red, green and blue first: (H, W) -> (3, H, W), between the neighbouring two of `COLOURS`."""
    stops = torch.tensor(COLOURS, device=share.device)
    place = share.clamp(0, 1) * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[below], stops[below + 1], (place - below)[..., None]).movedim(-1, 0)
