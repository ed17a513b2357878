"""How is a map of patches drawn over a frame?

Shapes: H x W pixels of a frame, g patches along a side of it.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from zeroi2v.errors import ConfigError

SIDE: Final = 192  # pixels that a drawn frame has at least along each side
COLOURS: Final = (  # from no attention to the most; their lightness rises evenly, so that they also read in grey
    *((0.00, 0.00, 0.02), (0.26, 0.04, 0.41), (0.58, 0.15, 0.40)),
    *((0.87, 0.32, 0.23), (0.99, 0.65, 0.04), (0.99, 1.00, 0.64)),
)
GREY: Final = (0.299, 0.587, 0.114)  # weights of red, green and blue in the lightness of a pixel


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
        for edge in (
            within[:, :line],
            within[:, -line:],
            within[:, :, :line],
            within[:, :, -line:],
        ):
            edge.fill_(value)
    return marked


def overlay(frame: Tensor, heat: Tensor, *, most: float | None = None) -> Tensor:
    """The enlarged frame in grey, the heat map (g, g) in colour over it: uint8.

    Where the map is 0 the frame stays grey; then purple, orange, and pale yellow at `most`, or else at the map's own maximum.
    """
    picture = enlarge(frame)
    share = heat.detach().to(picture.device, torch.float32).clamp(min=0)
    share = (
        share / max(share.max().item() if most is None else most, torch.finfo(share.dtype).tiny)
    ).clamp(max=1)
    share = F.interpolate(share[None, None], picture.shape[-2:], mode="nearest-exact")[
        0, 0
    ]  # one value per patch
    grey = torch.einsum(
        "chw,c->hw", picture.float() / 255, torch.tensor(GREY, device=picture.device)
    )
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
