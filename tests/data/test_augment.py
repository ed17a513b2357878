"""Is RandAugment pytorchvideo's: its operations, how often, how strong, alike in all frames?"""

import math
import re
from collections import Counter
from collections.abc import Callable
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from zeroi2v.config import PixelsConfig
from zeroi2v.data.augment import OPERATIONS, augment, draw_operations
from zeroi2v.errors import ConfigError

LOOKS = [
    "auto_contrast",
    "equalize",
    "invert",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
]
PLACES = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
NAMES = LOOKS + PLACES
PAPER = PixelsConfig(augment_operations=4)
ALWAYS = PixelsConfig(augment_operations=4, augment_probability=1)
CHI_SQUARE_13 = 34.5  # exceeded by chance once in 1000, 13 degrees of freedom
CHI_SQUARE_4 = 18.5


def photographs(count: int = 2, height: int = 96, width: int = 128) -> Tensor:
    """Frames with soft light, hard edges and grain, neither black nor white.

    They are uint8 (count, 3, height, width).
    """
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(count, 3, 6, 8, generator=generator)
    soft = torch.nn.functional.interpolate(light, size=(height, width), mode="bicubic").clamp(0, 1)
    soft[..., height // 4 : height // 2, width // 3 : width // 2] *= 0.4
    soft[..., height // 2 :, ::16] = soft[..., height // 2 :, ::16] * 0.5 + 0.5
    grain = torch.randn(soft.shape, generator=generator) * 4
    return (soft * 190 + 30 + grain).clamp(12, 240).to(torch.uint8)


def pictures(frames: Tensor) -> list[Image.Image]:
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]


def chi_square(observed: Counter[int], expected: dict[int, float]) -> float:
    return sum((observed[key] - mean) ** 2 / mean for key, mean in expected.items())


def test_the_operations_are_the_fourteen() -> None:
    everything = draw_operations(
        PixelsConfig(augment_operations=14, augment_probability=1), Random(0)
    )
    assert sorted(OPERATIONS) == sorted(NAMES) == sorted(name for name, _ in everything)


def test_each_operation_is_drawn_as_often_as_any_other_and_none_twice() -> None:
    rng = Random(0)
    draws = [[name for name, _ in draw_operations(ALWAYS, rng)] for _ in range(7000)]
    assert all(len(set(names)) == 4 for names in draws)
    for place in range(4):  # in every place, or one of them would tend to come first
        counts = Counter(NAMES.index(names[place]) for names in draws)
        assert chi_square(counts, dict.fromkeys(range(14), 500)) < CHI_SQUARE_13


def test_half_of_the_drawn_operations_are_applied_each_for_itself() -> None:
    rng = Random(1)
    counts = Counter(len(draw_operations(PAPER, rng)) for _ in range(8000))
    assert (
        chi_square(counts, {number: 8000 * math.comb(4, number) / 16 for number in range(5)})
        < CHI_SQUARE_4
    )


@pytest.mark.parametrize(("magnitude", "jitter"), [(7, 0.5), (9.8, 0.5), (0.1, 0.5), (3, 2)])
def test_the_magnitude_is_normal_about_its_setting_held_within_0_and_10_of_either_sign(
    magnitude: float, jitter: float
) -> None:
    rng = Random(2)
    pixels = PixelsConfig(
        augment_operations=4,
        augment_probability=1,
        augment_magnitude=magnitude,
        augment_jitter=jitter,
    )
    strengths = [strength for _ in range(5000) for _, strength in draw_operations(pixels, rng)]
    found = np.sort(np.abs(strengths)) * 10
    normal = NormalDist(magnitude, jitter)
    inside = (found > 0) & (found < 10)
    distance = np.abs(
        np.arange(1, len(found) + 1) / len(found) - [normal.cdf(value) for value in found]
    )[inside].max()
    assert distance < 1.95 / math.sqrt(len(found))  # Kolmogorov's test, once in 1000
    assert found.max() <= 10
    error = math.sqrt(0.25 / len(found))
    assert abs(np.mean(found >= 10) - (1 - normal.cdf(10))) < 4 * error
    assert abs(np.mean(found <= 0) - normal.cdf(0)) < 4 * error
    nonzero = np.asarray([strength for strength in strengths if strength])
    assert abs(np.mean(nonzero > 0) - 0.5) < 4 * error


def enhanced(
    kind: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, sign: kind(image).enhance(1 + sign * 0.63)  # 0.9 * 7 / 10


def moved(
    matrix: Callable[[int, int, int], tuple[float, ...]],
) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, sign: image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix(sign, *image.size),
        Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )


# Magnitude 7 of 10, worked out by hand; a matrix says which point of the picture comes to (x, y).
REFERENCES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "solarize": lambda image, _: ImageOps.solarize(image, 77),  # 255 * 0.3 = 76.5
    "posterize": lambda image, _: ImageOps.posterize(image, 2),  # 4 - 2.8, cut
    "brightness": enhanced(ImageEnhance.Brightness),
    "contrast": enhanced(ImageEnhance.Contrast),
    "color": enhanced(ImageEnhance.Color),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "rotate": lambda image, sign: image.rotate(
        sign * 21, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    ),  # counter-clockwise
    "shear_x": moved(lambda sign, width, height: (1, sign * 0.21, 0, 0, 1, 0)),
    "shear_y": moved(lambda sign, width, height: (1, 0, 0, sign * 0.21, 1, 0)),
    "translate_x": moved(lambda sign, width, height: (1, 0, sign * 0.315 * width, 0, 1, 0)),
    "translate_y": moved(lambda sign, width, height: (1, 0, 0, 0, 1, sign * 0.315 * height)),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_at_magnitude_7_is_pillows(name: str, sign: int) -> None:
    frames = photographs()
    found = augment(frames, [(name, sign * 0.7)]).permute(0, 2, 3, 1).int().numpy()
    for frame, image in zip(found, pictures(frames), strict=True):
        off = np.abs(frame - np.asarray(REFERENCES[name](image, sign), dtype=int))
        if name in ("equalize", "invert", "solarize", "posterize"):
            assert off.max() == 0
        elif name in PLACES:
            # Pillow rounds the sampling point, and blends no edge of a picture with its outside.
            assert np.mean(off > 2) < 0.03
        else:
            assert off.max() <= 2
    assert not np.array_equal(found, frames.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("strength", "bits"), [(0.0, 4), (0.24, 4), (0.25, 3), (-0.5, 2), (0.74, 2), (0.75, 1), (1, 0)]
)
def test_posterizing_keeps_fewer_bits_the_stronger_it_is(strength: float, bits: int) -> None:
    frames = photographs()
    step = 2 ** (8 - bits)
    assert torch.equal(
        augment(frames, [("posterize", strength)]).int(), frames.int() // step * step
    )


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness", *PLACES])
def test_an_operation_of_no_strength_changes_nothing(name: str) -> None:
    frames = photographs()
    assert torch.equal(augment(frames, [(name, 0.0)]), frames)


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_of_a_clip_are_changed_alike_and_the_clip_itself_is_not(name: str) -> None:
    frames = photographs(3)
    before = frames.clone()
    clip = augment(frames, [(name, 0.7)])
    alone = torch.cat([augment(frame[None], [(name, 0.7)]) for frame in frames])
    assert torch.equal(clip, alone)
    assert clip.dtype == torch.uint8
    assert torch.equal(frames, before)
    assert torch.equal(
        clip, augment(frames.contiguous(memory_format=torch.channels_last), [(name, 0.7)])
    )


def test_operations_follow_one_another_in_their_order() -> None:
    frames = photographs()
    both = [("solarize", 0.7), ("brightness", 0.7)]
    assert torch.equal(augment(frames, both), augment(augment(frames, both[:1]), both[1:]))
    assert not torch.equal(augment(frames, both), augment(frames, both[::-1]))


def test_the_same_generator_draws_the_same_operations() -> None:
    assert draw_operations(PAPER, Random(7)) == draw_operations(PAPER, Random(7))
    assert len({str(draw_operations(PAPER, Random(seed))) for seed in range(50)}) > 40
    assert draw_operations(PixelsConfig(), Random(7)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment_operations": 15}, "augment_operations must be 0 to 14, got 15"),
        ({"augment_magnitude": 10.5}, "augment_magnitude must be 0 to 10, got 10.5"),
        ({"augment_jitter": -1.0}, "augment_jitter must be at least 0, got -1.0"),
        ({"augment_probability": 1.5}, "augment_probability must be a probability, got 1.5"),
        ({"erase": -0.5}, "erase must be a probability, got -0.5"),
        ({"erase_area": (0.0, 0.5)}, "erase_area must be 0 < low <= high <= 1, got 0.0, 0.5"),
        ({"erase_aspect": (2.0, 0.5)}, "erase_aspect must be 0 < low <= high, got 2.0, 0.5"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        PixelsConfig(**settings)
