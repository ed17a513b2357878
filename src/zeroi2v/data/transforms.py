"""Which pixels: how are the frames of one clip cropped, scaled, flipped and normalised? All frames of a clip alike.

Shapes: T frames, H, W pixels of the frames as decoded, S pixels a side of a view, C crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from zeroi2v.config import PixelsConfig
from zeroi2v.data.decode import scaled_size


def train_pixels(frames: Tensor, size: int, pixels: PixelsConfig, rng: Random) -> tuple[Tensor, bool]:
    """A random crop of uint8 (T, 3, H, W), scaled to (T, 3, S, S) and perhaps flipped; and whether it was flipped."""
    height, width = frames.shape[-2:]
    top, left, crop_height, crop_width = random_crop(height, width, pixels, rng)
    view = F.resized_crop(frames, top, left, crop_height, crop_width, [size, size], antialias=True)
    flipped = rng.random() < pixels.flip
    return (view.flip(-1) if flipped else view).contiguous(), flipped


def random_crop(height: int, width: int, pixels: PixelsConfig, rng: Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of random area and aspect (log-uniform), as torchvision's RandomResizedCrop draws it.

    If ten draws do not fit into the frame: the largest centred crop whose aspect is allowed.
    """
    low, high = pixels.crop_aspect
    for _ in range(10):
        area = height * width * rng.uniform(*pixels.crop_area)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return rng.randint(0, height - crop_height), rng.randint(0, width - crop_width), crop_height, crop_width
    crop_width, crop_height = min(width, round(height * high)), min(height, round(width / low))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def view_pixels(frames: Tensor, size: int, crops: int) -> Tensor:
    """Views for evaluation: uint8 (T, 3, H, W), its shorter side scaled to S, to (C, T, 3, S, S).

    One crop is the centre; three lie at the start, the centre and the end of the longer side.
    """
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        width, height = scaled_size(width, height, size)
        frames = F.resize(frames, [height, width], antialias=True)
    places = (1,) if crops == 1 else (0, 1, 2)  # halves of the way from start to end
    corners = [((height - size) * place // 2, (width - size) * place // 2) for place in places]
    return torch.stack([frames[..., top : top + size, left : left + size] for top, left in corners])


def normalise(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std of uint8 (..., 3, S, S), per channel: float32 on the same device, in two passes over memory."""
    mean_255, std_255 = (255 * torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (mean, std))
    return (clip - mean_255).div_(std_255)
