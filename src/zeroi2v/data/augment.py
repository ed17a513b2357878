"""What does RandAugment do to the frames of a training clip? It changes all frames alike.

Shapes: T frames, H, W pixels. Frames are uint8 (T, 3, H, W).

The operations, their probability, their jitter and their largest strengths are pytorchvideo's. The
official configurations name pytorchvideo's RandAugment, whose magnitudes go from 0 to 10.
torchvision's magnitudes go from 0 to 30, and torchvision applies every operation that was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random
from typing import TypeAlias

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from zeroi2v.config import PixelsConfig

GREY = 128  # the value of pixels that lie outside the frame

Operation: TypeAlias = Callable[[Tensor, float], Tensor]


def draw_operations(pixels: PixelsConfig, rng: Random) -> list[tuple[str, float]]:
    """The operations that a clip gets, in their order, each with a strength of -1 to 1.

    n different operations are drawn, and each is kept with its probability. A strength is the
    magnitude m / 10 plus jitter, held within 0 to 1, and negative in half of the draws. The sign
    matters only to operations that have two directions.
    """
    kept = []
    for name in rng.sample([*OPERATIONS], pixels.augment_operations):
        if rng.random() < pixels.augment_probability:
            magnitude = min(
                max(rng.gauss(pixels.augment_magnitude, pixels.augment_jitter), 0.0), 10.0
            )
            kept.append((name, rng.choice((-1, 1)) * magnitude / 10))
    return kept


def augment(frames: Tensor, operations: Iterable[tuple[str, float]]) -> Tensor:
    """The frames after these operations, one after the other.

    An operation that uses a mean or a histogram uses each frame's own.
    """
    for name, strength in operations:
        frames = OPERATIONS[name](frames.contiguous(), strength)
    return frames


def _affine(
    frames: Tensor, *, shear: tuple[float, float] = (0, 0), translate: tuple[float, float] = (0, 0)
) -> Tensor:
    """Pixel (x, y) of the result shows pixel (x + a y + c, y + b x + d) of the frames.

    `shear` is (a, b), `translate` is (c, d) in pixels. Either a or b is 0.
    """
    moved: Tensor = F.affine(
        frames,
        angle=0,
        translate=[-pixels for pixels in translate],
        scale=1,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        interpolation=InterpolationMode.BILINEAR,
        fill=[GREY] * 3,
        center=[0, 0],
    )
    return moved


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda frames, _: F.autocontrast(frames),
    "equalize": lambda frames, _: F.equalize(frames),
    "invert": lambda frames, _: F.invert(frames),
    "brightness": lambda frames, strength: F.adjust_brightness(frames, 1 + 0.9 * strength),
    "color": lambda frames, strength: F.adjust_saturation(frames, 1 + 0.9 * strength),
    "contrast": lambda frames, strength: F.adjust_contrast(frames, 1 + 0.9 * strength),
    # A blur is a convolution of each channel: on a CPU ten times as fast with channels last.
    "sharpness": lambda frames, strength: F.adjust_sharpness(
        frames.contiguous(memory_format=torch.channels_last), 1 + 0.9 * strength
    ),
    "posterize": lambda frames, strength: F.posterize(frames, 4 - int(4 * abs(strength))),
    "solarize": lambda frames, strength: F.solarize(frames, 255 * (1 - abs(strength))),
    "rotate": lambda frames, strength: F.rotate(
        frames, 30 * strength, interpolation=InterpolationMode.BILINEAR, fill=[GREY] * 3
    ),
    "shear_x": lambda frames, strength: _affine(frames, shear=(0.3 * strength, 0)),
    "shear_y": lambda frames, strength: _affine(frames, shear=(0, 0.3 * strength)),
    "translate_x": lambda frames, strength: _affine(
        frames, translate=(0.45 * strength * frames.shape[-1], 0)
    ),
    "translate_y": lambda frames, strength: _affine(
        frames, translate=(0, 0.45 * strength * frames.shape[-2])
    ),
}
