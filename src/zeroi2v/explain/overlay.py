"""How is a map of patches drawn over a frame?

Shapes: H x W pixels of a frame, g patches along a side of the frame.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from zeroi2v.errors import ConfigError

SIDE: Final = 192  # pixels that a drawn frame has at least along each side
# From no attention to the most. The lightness rises evenly, so the colours read in grey print too.
COLOURS: Final = (
    *((0.00, 0.00, 0.02), (0.26, 0.04, 0.41), (0.58, 0.15, 0.40)),
    *((0.87, 0.32, 0.23), (0.99, 0.65, 0.04), (0.99, 1.00, 0.64)),
)
GREY: Final = (0.299, 0.587, 0.114)  # weights of red, green and blue in the lightness of a pixel


def enlarge(frame: Tensor) -> Tensor:
    """A frame uint8 (3, H, W) enlarged by a whole factor to 192 pixels a side or more.

    Returns uint8 (3, H', W').
    """
    factor = max(1, math.ceil(SIDE / min(frame.shape[-2:])))
    size = [factor * side for side in frame.shape[-2:]]
    larger = F.interpolate(frame[None].float(), size, mode="bilinear", align_corners=False)[0]
    return larger.round().clamp(0, 255).to(torch.uint8)


def outline(picture: Tensor, patch: tuple[int, int], grid: int) -> Tensor:
    """A picture uint8 (3, H, W) with one patch outlined in black and white.

    `patch` is the (row, column) of one of `grid` x `grid` patches. ConfigError if there is no such
    patch.
    """
    if not (0 <= patch[0] < grid and 0 <= patch[1] < grid):
        raise ConfigError(f"a patch must be (row, column) within 0 to {grid - 1}, got {patch}")
    height, width = picture.shape[-2:]
    top, bottom = (round(height * edge / grid) for edge in (patch[0], patch[0] + 1))
    left, right = (round(width * edge / grid) for edge in (patch[1], patch[1] + 1))
    bottom, right = max(bottom, top + 8), max(right, left + 8)  # room for the three lines
    marked = picture.clone()
    for inset, value in ((0, 0), (1, 255), (3, 0)):  # white between black is visible on any ground
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


def overlay(frame: Tensor, heat: Tensor, *, largest: float | None = None) -> Tensor:
    """The enlarged frame in grey, with a heat map (g, g) in colour over it: uint8 (3, H', W').

    Where the map is 0 the frame stays grey. Purple, orange and pale yellow follow; pale yellow
    stands for the value `largest`, or for the largest value of the map if `largest` is None.
    """
    picture = enlarge(frame)
    heat = heat.detach().to(picture.device, torch.float32).clamp(min=0)
    top = heat.max().item() if largest is None else largest
    share = (heat / max(top, torch.finfo(heat.dtype).tiny)).clamp(max=1)
    # one value for each patch
    share = F.interpolate(share[None, None], picture.shape[-2:], mode="nearest-exact")[0, 0]
    weights = torch.tensor(GREY, device=picture.device)
    grey = torch.einsum("chw,c->hw", picture.float() / 255, weights)
    low, high = grey.aminmax()
    grey = (grey - low) / (high - low).clamp(min=0.1)  # shapes stay visible in a dark or pale frame
    lit = colour(share) * (0.6 + 0.4 * grey)
    blended = torch.lerp(0.1 + 0.45 * grey.expand_as(lit), lit, 0.2 + 0.7 * share)
    return (blended * 255).round().clamp(0, 255).to(torch.uint8)


def colour(share: Tensor) -> Tensor:
    """Shares of 0 to 1 (H, W) as colours of 0 to 1 (3, H, W): red, green, blue.

    A share between two colours of `COLOURS` becomes a mixture of the two.
    """
    colours = torch.tensor(COLOURS, device=share.device)
    scaled = share.clamp(0, 1) * (len(colours) - 1)
    lower = scaled.floor().long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[lower], colours[lower + 1], (scaled - lower)[..., None]).movedim(
        -1, 0
    )
