"""What do motion videos show, and the still pictures on which the embedded tower was pretrained?

A picture shows a main object with a light and a dark half, two plain distractors and a textured
background. An object that leaves the picture on one side comes in on the other. A motion video
moves the main object in one of eight ways. Four of the ways are the time reversals of the other
four. Every video is written together with its own time reversal, so that only the order of the
frames tells the two videos apart.

Shapes: N pictures or frames, K objects (object 0 is the main object), S pixels a side, T frames.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zeroi2v.data.encode import encode_video
from zeroi2v.data.workers import worker_loader
from zeroi2v.errors import DatasetError

MOTIONS = ("left", "right", "up", "down", "nearer", "farther", "clockwise", "anticlockwise")
PAIRS = tuple(zip(MOTIONS[::2], MOTIONS[1::2], strict=True))  # motions and their time reversals
REVERSE = dict(PAIRS) | {second: first for first, second in PAIRS}
FORWARD = ("right", "down", "nearer", "clockwise")  # x, y, size and angle grow
MIRROR = (("left", "right"), ("clockwise", "anticlockwise"))  # a left-right flip exchanges them
SHAPES = ("disc", "square", "triangle", "cross", "bar", "half-disc", "star", "ring")

# Ranges of the main object; lengths are shares of the picture's side.
PLACE_RANGE = (0.12, 0.88)  # x and y of the centre
SIZE_RANGE = (0.08, 0.30)  # the radius
STEADY_SIZE_RANGE = (0.15, 0.30)  # the radius where the size stays: a rotation must be visible
TILT_RANGE = (-1.4, 1.4)  # the angle while it rotates, in radians


@dataclass(frozen=True)
class Scene:
    """N pictures of K objects each.

    Lengths are shares of the side, angles are radians (clockwise on the screen), colours 0..1.
    """

    shape: Tensor  # (N, K) int64, index into SHAPES
    place: Tensor  # (N, K, 2) of the centre, x to the right, y down
    radius: Tensor  # (N, K)
    angle: Tensor  # (N, K)
    colours: Tensor  # (N, K, 2, 3) of the two halves
    stripes: Tensor  # (N, K) number of stripes across the object; 0: two halves
    ground: Tensor  # (N, 2, 3) the two colours of the background
    waves: Tensor  # (N, 2, 2) whole periods of the background's two gratings along x and y
    phase: Tensor  # (N, 2) phases of the two gratings, in periods
    noise: Tensor  # (N,) standard deviation of the pixel noise


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _log_uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    return torch.exp(_uniform(shape, math.log(bounds[0]), math.log(bounds[1]), generator))


def random_scene(count: int, generator: torch.Generator) -> Scene:
    """`count` independent pictures, distributed as in the pretraining of the embedded tower."""
    objects = 3
    radius = _uniform((count, objects), 0.04, 0.09, generator)
    radius[:, 0] = _log_uniform((count,), SIZE_RANGE, generator)
    ground = torch.rand((count, 2, 3), generator=generator)
    ground[:, 1] = ground[:, 0] + _uniform((count, 3), -0.3, 0.3, generator)
    colours = torch.rand((count, objects, 2, 3), generator=generator)
    swing = _uniform((count, 1, 3), 0.15, 0.5, generator)
    # The first half is the lighter half, so that the angle has a meaning.
    colours[:, 0] = 0.5 + torch.cat([swing, -swing], 1)
    colours[:, 1:, 1] = colours[:, 1:, 0]  # distractors are plain
    stripes = torch.randint(0, 2, (count, objects), generator=generator) * 2
    place = torch.rand((count, objects, 2), generator=generator)
    low, high = PLACE_RANGE
    place[:, 0] = low + (high - low) * place[:, 0]
    return Scene(
        shape=torch.randint(0, len(SHAPES), (count, objects), generator=generator),
        place=place,
        radius=radius,
        angle=_uniform((count, objects), -math.pi, math.pi, generator),
        colours=colours,
        stripes=stripes,
        ground=ground,
        waves=torch.randint(-4, 5, (count, 2, 2), generator=generator),
        phase=torch.rand((count, 2), generator=generator),
        noise=_uniform((count,), 0.0, 0.05, generator),
    )


def _outline(shape: int, u: Tensor, v: Tensor) -> Tensor:
    """The distance from points (u, v) to the outline of one shape, as `outlines` defines it."""
    length, wide, high = torch.sqrt(u * u + v * v + 1e-9), u.abs(), v.abs()
    match SHAPES[shape]:
        case "disc":
            return length - 0.9
        case "square":
            return torch.maximum(wide, high) - 0.8
        case "triangle":
            return torch.maximum(wide * 0.866 + v * 0.5, -v) - 0.5
        case "cross":
            return torch.minimum(
                torch.maximum(wide - 1.0, high - 0.35), torch.maximum(high - 1.0, wide - 0.35)
            )
        case "bar":
            return torch.maximum(wide - 1.0, high - 0.4)
        case "half-disc":
            return torch.maximum(length - 1.0, v - 0.1)
        case "star":
            return length - 0.7 - 0.25 * torch.cos(5 * torch.atan2(v, u))
        case _:  # ring
            return (length - 0.65).abs() - 0.3


def outlines(shapes: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The approximate signed distance from points to the outlines of shapes of unit size.

    `shapes` (...) are indices into SHAPES; `u` and `v` (..., H, W) are the points of each shape.
    The distance (..., H, W) is negative inside a shape.
    """
    distance = torch.empty_like(u)
    for shape in shapes.unique().tolist():
        drawn = shapes == shape
        distance[drawn] = _outline(shape, u[drawn], v[drawn])
    return distance


def render(scene: Scene, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the scenes: pictures uint8 (N, 3, S, S), and the share of the main object in each pixel.

    The shares are float (N, S, S).
    """
    grid = (torch.arange(size) + 0.5) / size
    periods = torch.einsum(
        "ngd,dhw->nghw", scene.waves.float(), torch.stack(torch.meshgrid(grid, grid, indexing="xy"))
    )
    waves = torch.sin(2 * math.pi * (periods + scene.phase[..., None, None]))
    mix = 0.5 + 0.25 * waves.sum(1)  # (N, S, S)
    picture = torch.lerp(
        scene.ground[:, 0, :, None, None], scene.ground[:, 1, :, None, None], mix[:, None]
    )

    offset = grid - scene.place[..., None]  # (N, K, 2, S)
    offset = offset - torch.round(offset)  # the shorter way, perhaps across the picture's edge
    x, y = offset[:, :, 0, None, :], offset[:, :, 1, :, None]
    cos, sin = torch.cos(scene.angle)[..., None, None], torch.sin(scene.angle)[..., None, None]
    radius = scene.radius[..., None, None]
    # (N, K, S, S) in the coordinates of the object
    u, v = (x * cos + y * sin) / radius, (y * cos - x * sin) / radius
    cover = (0.5 - outlines(scene.shape, u, v) * radius * size).clamp(0, 1)
    stripes = scene.stripes[..., None, None]
    tone = torch.where(stripes > 0, torch.sin(u * math.pi * stripes * 0.75 - 0.8), u)
    tone = (0.5 + tone * radius * size).clamp(0, 1)
    for k in range(scene.shape.shape[1] - 1, -1, -1):  # the main object is drawn last, on top
        colours = scene.colours[:, k, :, :, None, None]
        fill = torch.lerp(colours[:, 0], colours[:, 1], tone[:, k, None])
        picture = torch.lerp(picture, fill, cover[:, k, None])
    noise = torch.randn(picture.shape, generator=generator) * scene.noise[:, None, None, None]
    picture = picture + noise
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8), cover[:, 0]


def _within(bounds: tuple[float, float], share: Tensor) -> Tensor:
    return bounds[0] + share * (bounds[1] - bounds[0])


def motion_frames(
    motion: str, generator: torch.Generator, *, frames: int = 17, size: int = 64
) -> Tensor:
    """One video of a class: uint8 (T, 3, S, S). Backwards, it is a video of `REVERSE[motion]`.

    The main object crosses 50 to 90 % of its range of place, log size or tilt about a random
    middle, at a steady pace with a shake. It drifts a little across its way. The background and
    the distractors drift in any direction. Of 17 frames, segment sampling takes the frames 2, 6,
    10, 14 for a clip of 4, and 1, 3, .. 15 for a clip of 8. It takes the same frames of the
    reversed video.
    """
    start = random_scene(1, generator)
    still = {name: value.repeat_interleave(frames, 0) for name, value in vars(start).items()}
    # -0.5 .. 0.5, so that a reversal changes the sign and nothing else
    time = (torch.arange(frames) - (frames - 1) / 2) / (frames - 1)
    forward = 1 if motion in FORWARD else -1
    share = float(_uniform((), 0.5, 0.9, generator))
    middle = float(_uniform((), share / 2, 1 - share / 2, generator))
    progress = middle + forward * share * time  # 0..1 of the range
    slant = float(_uniform((), -0.25, 0.25, generator)) * share

    place, angle, radius, phase = (
        still[name].clone() for name in ("place", "angle", "radius", "phase")
    )
    phase += time[:, None] * (torch.rand(2, generator=generator) - 0.5) * 0.4
    place[:, 1:] += time[:, None, None] * (torch.rand((2, 2), generator=generator) - 0.5) * 0.4
    place[:, 0] += torch.randn((frames, 2), generator=generator) * 0.006
    angle[:, 0] += torch.randn(frames, generator=generator) * 0.06
    if motion not in ("nearer", "farther"):
        radius[:, 0] = _log_uniform((), STEADY_SIZE_RANGE, generator)
    if motion in ("left", "right", "up", "down"):
        axis = 0 if motion in ("left", "right") else 1
        place[:, 0, axis] += _within(PLACE_RANGE, progress) - start.place[0, 0, axis]
        place[:, 0, 1 - axis] += time * slant
    elif motion in ("nearer", "farther"):
        smallest, largest = map(math.log, SIZE_RANGE)
        radius[:, 0] = torch.exp(_within((smallest, largest), progress))
    else:
        angle[:, 0] += _within(TILT_RANGE, progress) - start.angle[0, 0]
    moving = {"place": place, "angle": angle, "radius": radius, "phase": phase}
    return render(Scene(**{**still, **moving}), size, generator)[0]


class _Writer(Dataset["str | OSError"]):
    """Item i of a split writes a video and its time reversal, and gives their motion.

    Both videos depend only on (seed, split, i).
    """

    def __init__(self, folder: Path, split: str, seed: int) -> None:
        self.folder, self.split, self.seed = folder, split, seed

    def __getitem__(self, index: int) -> str | OSError:
        digest = hashlib.sha256(f"{self.seed}/{self.split}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        motion = MOTIONS[index % len(MOTIONS)]
        frames = motion_frames(motion, generator)
        classes = self.folder / self.split
        try:
            encode_video(classes / motion / f"{index:05d}.mp4", frames, fps=8)
            reversed_path = classes / REVERSE[motion] / f"{index:05d}_reversed.mp4"
            encode_video(reversed_path, frames.flip(0), fps=8)
        except OSError as error:
            return error  # raised in the process that asked for the item
        return motion


def write_motion_videos(
    folder: Path, counts: Mapping[str, int], *, seed: int, workers: int = 0
) -> Generator[str, None, None]:
    """Write `counts[split]` videos into folder/split/motion/*.mp4, each with its time reversal.

    Gives the motion of each pair when the pair is written. The folder appears when the last pair
    is written. The same seed gives the same bytes. DatasetError if the folder is already there or
    cannot be written, or a count is not an even number of at least 16.
    """
    if folder.exists():
        raise DatasetError(f"{folder}: already there; choose another folder, or remove it")
    for split, count in counts.items():
        if count < 2 * len(MOTIONS) or count % 2:
            raise DatasetError(
                f"{split}: the number of videos must be an even number, "
                f"at least {2 * len(MOTIONS)}, got {count}"
            )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for split, count in counts.items():
            for motion in MOTIONS:
                (unfinished / split / motion).mkdir(parents=True)
            writer = _Writer(unfinished, split, seed)
            pairs = range(count // 2)
            for written in worker_loader(writer, workers, batch_size=None, sampler=pairs):
                if isinstance(written, OSError):
                    raise written
                yield written
        unfinished.rename(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
