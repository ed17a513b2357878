"""How are the frames of a clip cropped, scaled, flipped, erased and normalised?

All frames of a clip are treated alike.

Shapes: T frames, H, W pixels of the frames as decoded, S pixels a side of a view, C crops.
"""

from __future__ import annotations

import math
from random import Random

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from zeroi2v.config import PixelsConfig
from zeroi2v.data.augment import GREY, augment, draw_operations


def train_pixels(
    frames: Tensor, size: int, pixels: PixelsConfig, rng: Random
) -> tuple[Tensor, bool]:
    """A training view of uint8 (T, 3, H, W): uint8 (T, 3, S, S), and whether it was flipped.

    The view is a random crop, scaled, perhaps flipped, augmented and erased. If the settings of one
    step change, the random draws of the other steps stay the same, unless that step is the crop.
    `augment_place` changes no draw.
    """
    height, width = frames.shape[-2:]
    top, left, crop_height, crop_width = random_crop(height, width, pixels, rng)
    flipped = rng.random() < pixels.flip
    # A generator of its own, since the number of the augmentation's draws varies.
    erasing = Random(rng.getrandbits(64))
    operations = draw_operations(pixels, rng)
    if pixels.augment_place == "before_crop":
        frames = augment(frames, operations)
    view = F.resized_crop(frames, top, left, crop_height, crop_width, [size, size], antialias=True)
    if flipped:
        view = view.flip(-1)
    if pixels.augment_place == "after_flip":
        view = augment(view, operations)
    return erase(view.contiguous(), pixels, erasing), flipped


def random_crop(
    height: int, width: int, pixels: PixelsConfig, rng: Random
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, drawn as torchvision's RandomResizedCrop draws it.

    The area of the crop is uniform and its aspect log-uniform within their ranges. If none of ten
    draws fits into the frame, the crop is the largest centred crop whose aspect is allowed.
    """
    for _ in range(10):
        crop_height, crop_width = _random_sides(
            height * width, pixels.crop_area, pixels.crop_aspect, rng
        )
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return (
                rng.randint(0, height - crop_height),
                rng.randint(0, width - crop_width),
                crop_height,
                crop_width,
            )
    low, high = pixels.crop_aspect
    crop_width, crop_height = min(width, round(height * high)), min(height, round(width / low))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def erase(frames: Tensor, pixels: PixelsConfig, rng: Random) -> Tensor:
    """The frames. With probability `pixels.erase` one rectangle is filled in all frames.

    The rectangle holds noise, new in each frame, or grey. Its area is random, and so is its aspect
    (log-uniform). A side that is longer than the frame's is cut to the frame's, and no side is
    shorter than a pixel.
    """
    if rng.random() >= pixels.erase:
        return frames
    height, width = frames.shape[-2:]
    drawn_height, drawn_width = _random_sides(
        height * width, pixels.erase_area, pixels.erase_aspect, rng
    )
    erased_height, erased_width = min(max(drawn_height, 1), height), min(max(drawn_width, 1), width)
    top, left = rng.randint(0, height - erased_height), rng.randint(0, width - erased_width)
    frames = frames.clone()
    rectangle = frames[..., top : top + erased_height, left : left + erased_width]
    if pixels.erase_fill == "noise":
        noise = torch.frombuffer(bytearray(rng.randbytes(rectangle.numel())), dtype=torch.uint8)
        rectangle.copy_(noise.view(rectangle.shape))
    else:
        rectangle.fill_(GREY)
    return frames


def _random_sides(
    frame_area: int, share: tuple[float, float], aspect: tuple[float, float], rng: Random
) -> tuple[int, int]:
    """Height and width of a rectangle whose size and aspect are drawn.

    Its share of the frame's area is uniform, and width / height log-uniform, within their bounds.
    """
    area = frame_area * rng.uniform(*share)
    ratio = math.exp(rng.uniform(*map(math.log, aspect)))
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
