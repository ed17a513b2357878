"""Which way does an object move, in pictures whose textures have the spectrum of photographs?

The second setting of motion videos, made as tensors. A textured object crosses a textured scene
with clutter, which stands still in the scene. A second object gives way when the first object
passes. The class is the motion of the first object in the scene: left, right, up or down, at a
fixed displacement per frame. If the camera moves, the scene moves in the picture, and the motion of
the object in the picture alone is right in three of four clips.

Every clip counts twice: as it is, and backwards with the opposite class. So the frames of a clip in
any other order tell nothing about which of the two classes is right. A single frame tells nothing
either: the scene is a torus, every place on the torus is equally likely at every time, and the
clips of all classes are the same clips, turned. So the law of a frame depends neither on the
sign of the motion nor on the frame's time. The torus is longer than the picture along the motion,
by at least the displacement in the picture: the object that leaves the picture comes back a frame
or more later, and never seems to jump from one side to the other.

Shapes: n clips, T frames, K objects of the clutter, H x W pixels of the torus, S pixels a side of
the picture. Places are (..., 2), x to the right and y down. Lengths are pixels.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from benchmarks.evidence_clips import Test
from zeroi2v.data.synthetic import FORWARD, MOTIONS, SHAPES, outlines

DIRECTIONS: Final = MOTIONS[:4]  # left, right, up, down: labels 2k and 2k + 1 are reversals
FRAMES: Final = 4
GRID: Final = 8  # patches a side of the picture
CLUTTER: Final = 6
AT_ONCE: Final = 16  # clips made together

# Ranges; lengths are in patches.
RADIUS: Final = (1.5, 2.2)  # of both moving objects
CLUTTER_RADIUS: Final = (0.4, 1.0)
SECOND_ASIDE: Final = (0.3, 1.0)  # from the way of the first object to the second object at rest
GIVES_WAY: Final = 1.5  # how far the second object moves aside at most
CONTRAST: Final = (0.06, 0.12)  # standard deviation of a texture, of 1
LIGHTER: Final = (0.3, 0.45)  # how far the mean of an object lies from the mean of the scene
NOISE: Final = 0.01  # standard deviation of the noise of each pixel


def crossing_test(
    training: int, testing: int, *, displacement: float, camera: bool, patch: int
) -> Test:
    """Clips with a displacement in patches per frame, judged within pairs of opposite directions.

    `training` clips are fold 0, `testing` clips are fold 1. Each clip is there in both directions.
    """
    count = training + testing
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(DIRECTIONS)
    pixels = torch.cat(
        [
            made(part, generator, displacement=displacement, camera=camera, patch=patch)
            for part in labels.split(AT_ONCE)
        ]
    )
    return Test(
        name_of(displacement, camera),
        pixels,
        torch.arange(count).repeat(2),
        torch.arange(2).repeat_interleave(count) == 1,
        torch.cat([labels, labels ^ 1]),
        (torch.arange(count) >= training).long().repeat(2),
        ("made",) * (2 * count),
        len(DIRECTIONS),
        within_pairs=True,
    )


def name_of(displacement: float, camera: bool) -> str:
    """The name of the test with a displacement, with or without motion of the camera."""
    return f"{displacement:g} patches a frame, camera {'moves' if camera else 'still'}"


def made(
    labels: Tensor, generator: torch.Generator, *, displacement: float, camera: bool, patch: int
) -> Tensor:
    """Clips of the classes `labels` (n,), indices into DIRECTIONS: uint8 (n, T, 3, S, S)."""
    frames = moving_right(len(labels), generator, displacement, camera, patch)
    turned = []
    for clip, label in zip(frames, labels.tolist(), strict=True):
        direction = DIRECTIONS[label]
        if direction not in FORWARD:
            clip = clip.flip(-1)
        if direction in ("up", "down"):
            clip = clip.transpose(-1, -2)
        turned.append(clip)
    return torch.stack(turned)


def moving_right(
    count: int, generator: torch.Generator, displacement: float, camera: bool, patch: int
) -> Tensor:
    """Clips whose first object moves to the right in the scene: uint8 (n, T, 3, S, S)."""
    size = GRID * patch
    reach = displacement * (1.5 if camera else 1.0)  # the largest displacement in the picture
    torus = (size, size + math.ceil(reach * patch))
    step = displacement * patch
    first_motion = torch.tensor([step, 0.0]).repeat(count, 1)
    scene_motion = torch.zeros(count, 2)
    if camera:
        shared = _uniform((count, 2), (-step, step), generator)
        scene_motion = shared - first_motion / 2
        first_motion = shared + first_motion / 2
    time = torch.arange(FRAMES)[:, None]
    first = _places(count, torus, generator)[:, None] + time * first_motion[:, None]
    second = _second(first, time * scene_motion[:, None], torus, patch, generator)

    mean = _uniform((count, 3, 1, 1), (0.35, 0.65), generator)
    scene = shifted(_scene(mean, torus, patch, generator), time * scene_motion[:, None])
    for places in (second, first):  # the first object is drawn last, on top
        radius = patch * _uniform((count,), RADIUS, generator)
        cover = _cover(places, radius, torus, generator)
        skin = _skin(mean, textures(count, torus, generator), generator)
        moving = shifted(skin, places - places[:, :1])
        scene = torch.lerp(scene, moving, cover[:, :, None])
    picture = scene[..., :size, :size]
    picture = picture + NOISE * torch.randn(picture.shape, generator=generator)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def textures(count: int, torus: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Colour noise with amplitudes of 1 / frequency: (n, 3, H, W), mean 0, deviation 1."""
    height, width = torus
    white = torch.randn((count, 4, height, width), generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    frequency[0, 0] = torch.inf  # no mean
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=torus)
    coloured = noise[:, :1] + 0.35 * noise[:, 1:]  # mostly light and dark, as in photographs
    scaled: Tensor = coloured / coloured.std((1, 2, 3), keepdim=True)
    return scaled


def shifted(pictures: Tensor, by: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) moved on the torus by `by` (n, T, 2) pixels: (n, T, 3, H, W).

    The move is exact at any fraction of a pixel: a factor for each frequency.
    """
    height, width = pictures.shape[-2:]
    x, y = torch.fft.rfftfreq(width), torch.fft.fftfreq(height)[:, None]
    turns = by[..., 0, None, None] * x + by[..., 1, None, None] * y
    factors = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
    moved = torch.fft.rfft2(pictures)[:, None] * factors[:, :, None]
    frames: Tensor = torch.fft.irfft2(moved, s=(height, width))
    return frames


def _uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)


def _sign(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1


def _places(count: int, torus: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random places on the torus, (n, 2)."""
    return torch.rand((count, 2), generator=generator) * torch.tensor(torus[::-1])


def _second(
    first: Tensor,
    scene: Tensor,
    torus: tuple[int, int],
    patch: int,
    generator: torch.Generator,
) -> Tensor:
    """The places of the second object (n, T, 2), from those of the first object and the scene.

    The second object stands in the scene, near the way of the first object. The nearer the first
    object is, the further the second object is pushed aside. How far depends on the distance alone,
    and not on the direction of the motion.
    """
    count = len(first)
    side = _sign((count, 1), generator)
    aside = side * patch * _uniform((count, 1), SECOND_ASIDE, generator)
    width = torus[1]
    x = width * torch.rand((count, 1), generator=generator) + scene[..., 0]
    distance = first[..., 0] - x
    distance = distance - width * torch.round(distance / width)
    pushed = side * patch * GIVES_WAY * torch.exp(-((distance / (2 * patch)) ** 2))
    return torch.stack([x, first[:, :1, 1] + scene[..., 1] + aside + pushed], -1)


def _scene(mean: Tensor, torus: tuple[int, int], patch: int, generator: torch.Generator) -> Tensor:
    """What stands still: a textured ground with clutter, (n, 3, H, W)."""
    count = len(mean)
    contrast = _uniform((count, 1, 1, 1), CONTRAST, generator)
    scene = mean + contrast * textures(count, torus, generator)
    texture = textures(count, torus, generator)
    for number in range(CLUTTER):
        radius = patch * _uniform((count,), CLUTTER_RADIUS, generator)
        cover = _cover(_places(count, torus, generator)[:, None], radius, torus, generator)
        other = texture.roll(number * torus[1] // CLUTTER, -1)
        scene = torch.lerp(scene, _skin(mean, other, generator), cover)
    return scene


def _skin(mean: Tensor, texture: Tensor, generator: torch.Generator) -> Tensor:
    """The surface of an object, lighter or darker than the mean of the scene: (n, 3, H, W)."""
    count = len(mean)
    lighter = _uniform((count, 1, 1, 1), LIGHTER, generator) * _sign((count, 1, 1, 1), generator)
    tint = _uniform((count, 3, 1, 1), (-0.1, 0.1), generator)
    return mean + lighter + tint + _uniform((count, 1, 1, 1), CONTRAST, generator) * texture


def _cover(
    places: Tensor, radius: Tensor, torus: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """The share of each pixel that an object of a random shape covers: (n, T, H, W).

    `places` is (n, T, 2), `radius` is (n,).
    """
    count, frames = places.shape[:2]
    shape = torch.randint(0, len(SHAPES), (count, 1), generator=generator).expand(count, frames)
    angle = _uniform((count, 1, 1, 1), (-math.pi, math.pi), generator)
    height, width = torus
    x = torch.arange(width) + 0.5 - places[..., 0, None]
    y = torch.arange(height) + 0.5 - places[..., 1, None]
    x = (x - width * torch.round(x / width))[..., None, :]
    y = (y - height * torch.round(y / height))[..., :, None]
    scale = radius[:, None, None, None]
    u = (x * angle.cos() + y * angle.sin()) / scale
    v = (y * angle.cos() - x * angle.sin()) / scale
    return (0.5 - outlines(shape, u, v) * scale).clamp(0, 1)
