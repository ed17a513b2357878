"""Which pixels: how are the frames of one clip cropped, scaled, flipped, erased and normalised? All frames of a clip alike.

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
    """A random crop of uint8 (T, 3, H, W), scaled to (T, 3, S, S), perhaps flipped, augmented and erased; and whether it was flipped.

    What is drawn for one of the four depends on no setting of the others but the crop's, nor on the place of the augmentation.
    """
    height, width = frames.shape[-2:]
    top, left, crop_height, crop_width = random_crop(height, width, pixels, rng)
    flipped = rng.random() < pixels.flip
    erasing = Random(
        rng.getrandbits(64)
    )  # its own, for the augmentation draws as often as it likes
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
    """Top, left, height and width of a crop of random area and aspect (log-uniform), as torchvision's RandomResizedCrop draws it.

    If ten draws do not fit into the frame: the largest centred crop whose aspect is allowed.
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
    """With its probability, the frames with one rectangle of them all filled: with noise, new in each frame, or with grey.

    Its area and aspect (log-uniform) are random; a side too long for the frame is cut to the frame's, and none is below a pixel.
    """
    if rng.random() >= pixels.erase:
        return frames
    height, width = frames.shape[-2:]
    wanted = _random_sides(height * width, pixels.erase_area, pixels.erase_aspect, rng)
    erased_height, erased_width = (
        min(max(one, 1), side) for one, side in zip(wanted, (height, width), strict=True)
    )
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
    """Height and width of a rectangle: uniform in its share of the frame's area, log-uniform in width / height."""
    area = frame_area * rng.uniform(*share)
    ratio = math.exp(rng.uniform(*map(math.log, aspect)))
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


def view_pixels(frames: Tensor, size: int, crops: int) -> Tensor:
    """Views for evaluation: uint8 (T, 3, H, W), its shorter side scaled to S, to (C, T, 3, S, S).

    One crop is the centre; three lie at the start, the centre and the end of the longer side, evenly spaced: where that leaves
    one pixel over, it is the last ("ThreeCrop").
    """
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        width, height = scaled_size(width, height, size)
        frames = F.resize(frames, [height, width], antialias=True)
    places = (1,) if crops == 1 else (0, 1, 2)  # halves of the way from start to end
    corners = [((height - size) // 2 * place, (width - size) // 2 * place) for place in places]
    return torch.stack([frames[..., top : top + size, left : left + size] for top, left in corners])


def normalise(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std of uint8 (..., 3, S, S), per channel: float32 on the same device, in two passes over memory."""
    mean_255, std_255 = (
        255 * torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (mean, std)
    )
    return (clip - mean_255).div_(std_255)
