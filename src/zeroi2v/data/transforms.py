"""How are the frames of a clip cropped, scaled, flipped, erased and normalised?

All frames of a clip are treated alike.

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
from zeroi2v.data.augment import GREY, augment, draw_operations
from zeroi2v.data.display import scaled_size


def train_pixels(
    frames: Tensor, size: int, pixels: PixelsConfig, rng: Random
) -> tuple[Tensor, bool]:
    """A training view of uint8 (T, 3, H, W): uint8 (T, 3, S, S), and whether it was flipped.

    The view is a random crop, scaled, perhaps flipped, augmented and erased. A change of one
    step's settings changes no random draw of another step, except that the settings of the crop may
    do so. `augment_place` changes no draw.
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


def view_pixels(frames: Tensor, size: int, crops: int) -> Tensor:
    """The C views of an evaluation, uint8 (C, T, 3, S, S), of frames uint8 (T, 3, H, W).

    The frames are first scaled to a shorter side of S. One crop is the centre. Three crops lie
    along the longer side, at its start, its centre and its end, evenly spaced; if a pixel is left
    over, it is the last pixel of the side ("ThreeCrop").
    """
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        width, height = scaled_size(width, height, size)
        frames = F.resize(frames, [height, width], antialias=True)
    halves = (1,) if crops == 1 else (0, 1, 2)  # of the way from the first to the last corner
    corners = [((height - size) // 2 * half, (width - size) // 2 * half) for half in halves]
    return torch.stack([frames[..., top : top + size, left : left + size] for top, left in corners])


def normalise(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std per channel of uint8 (..., 3, S, S): float32 on the same device.

    The function passes over the memory of the clip twice.
    """
    # A tensor of numbers would be copied to a GPU, and Python would wait for the copy.
    mean_255, std_255 = (
        255 * torch.stack([torch.full((1, 1), value, device=clip.device) for value in values])
        for values in (mean, std)
    )
    return (clip - mean_255).div_(std_255)
