"""How is a data set changed to ask whether time matters in its videos?

Every clip appears twice: forwards with its label, and backwards with a label of its own. Both
versions show the same frames. Then only the order of the frames, or a trace of compression, tells
the two versions apart. Key frames are sharper than the frames between them, and their places betray
the direction. So every frame is blurred at random. `sharpness` measures the trace that remains.

Shapes: n frames or clips, T frames of a clip, H, W pixels, S pixels a side.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

# "forwards": the frames in their order, blurred. "backwards": the same frames in reverse order.
Direction: TypeAlias = Literal["forwards", "backwards"]
BACKWARDS: Final = ", backwards"  # what follows a label where the clip is played backwards
BLUR: Final = (0.3, 2.0)  # pixels: the deviations of the random blur, from and to
_KERNEL: Final = 13  # pixels: the width of the blur's kernel


def labels_in_both_directions(labels: Iterable[str]) -> tuple[str, ...]:
    """Label 2k is label k for clips played forwards; label 2k + 1 is for clips played backwards."""
    return tuple(name for label in labels for name in (label, label + BACKWARDS))


def random_deviations(count: int, rng: Random) -> list[float]:
    """The standard deviation, in pixels, of the blur of each of `count` frames."""
    return [rng.uniform(*BLUR) for _ in range(count)]


def blurred(frames: Tensor, deviations: Sequence[float]) -> Tensor:
    """The frames uint8 (n, 3, H, W), each blurred with a deviation (in pixels) of its own."""
    # The frame is mirrored at its edges, so the kernel reaches no further than the frame.
    height, width = (min(_KERNEL, 2 * side - 1) for side in frames.shape[-2:])
    blurry = torch.empty_like(frames)
    for target, frame, deviation in zip(blurry, frames, deviations, strict=True):
        rows = gaussian_blur(frame.float(), [width, 1], [deviation, deviation])
        target.copy_(gaussian_blur(rows, [1, height], [deviation, deviation]).round())
    return blurry


def blurred_alike(frames: Tensor) -> Tensor:
    """The frames uint8 (n, 3, H, W), blurred at random; the same frames are always blurred alike.

    The deviations are drawn from a generator that the pixels seed. So a clip is blurred alike in
    every evaluation, and in both directions.
    """
    pixels = frames.movedim(1, -1).contiguous()  # as decoded frames lie in memory
    seed = zlib.crc32(pixels.numpy().data)
    return blurred(frames, random_deviations(len(frames), Random(seed)))


def sharpness(clips: Tensor) -> Tensor:
    """How sharp each frame is: (..., T) float64, of clips of pixels (..., T, 3, S, S).

    The logarithm of 1 + the variance of the Laplacian of the grey frame.
    """
    grey = clips.float().mean(-3)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    edges = F.conv2d(grey.flatten(0, -3)[:, None], kernel).flatten(1)
    return edges.var(1).log1p().double().view(grey.shape[:-2])
