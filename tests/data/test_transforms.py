"""Are the pixels of a view the frames', cropped and scaled as by torchvision, all frames alike?"""

import math
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from zeroi2v.config import PixelsConfig
from zeroi2v.data import transforms
from zeroi2v.data.augment import augment
from zeroi2v.data.transforms import erase, random_crop, train_pixels
from zeroi2v.data.views import view_pixels
from zeroi2v.inference.scores import normalise

PLACES: tuple[Literal["before_crop", "after_flip"], ...] = ("before_crop", "after_flip")


def noise(*shape: int) -> Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_random_crops_are_distributed_as_torchvisions() -> None:
    pixels = PixelsConfig()
    rng = Random(0)
    torch.manual_seed(0)
    image = noise(3, 120, 160)
    ours = torch.tensor([random_crop(120, 160, pixels, rng) for _ in range(4000)]).double()
    reference = v2.RandomResizedCrop(224, pixels.crop_area, pixels.crop_aspect, antialias=True)
    theirs = torch.tensor(
        [
            [params[side] for side in ("top", "left", "height", "width")]
            for params in (reference.make_params([image]) for _ in range(4000))
        ]
    ).double()
    error = (
        ours.var(0) / 4000 + theirs.var(0) / 4000
    ).sqrt()  # standard error of a difference of means
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.06, atol=0)


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10), (31, 200)])
def test_where_no_crop_fits_it_is_torchvisions_centre(height: int, width: int) -> None:
    pixels = PixelsConfig(crop_area=(1, 1))
    reference = v2.RandomResizedCrop(224, pixels.crop_area, pixels.crop_aspect, antialias=True)
    params = reference.make_params([noise(3, height, width)])
    expected = tuple(params[side] for side in ("top", "left", "height", "width"))
    assert random_crop(height, width, pixels, Random(0)) == expected


def test_a_training_clip_is_one_crop_of_all_its_frames() -> None:
    frames = noise(5, 3, 60, 80)
    pixels = PixelsConfig(flip=0)
    found, flipped = train_pixels(frames, 32, pixels, Random(3))
    top, left, height, width = random_crop(60, 80, pixels, Random(3))
    expected = [
        F.resize(frame[:, top : top + height, left : left + width], [32, 32], antialias=True)
        for frame in frames
    ]
    assert torch.equal(found, torch.stack(expected))
    assert not flipped
    assert found.is_contiguous()


def test_channels_last_frames_give_the_same_pixels() -> None:
    frames = noise(5, 3, 60, 80)
    one, other = (
        train_pixels(x, 32, PixelsConfig(), Random(3))[0]
        for x in (frames, frames.contiguous(memory_format=torch.channels_last))
    )
    assert torch.equal(one, other)
    assert one.stride() == other.stride()


def test_a_flip_mirrors_the_crop_and_is_reported() -> None:
    frames = noise(2, 3, 60, 80)
    plain, unflipped = train_pixels(frames, 32, PixelsConfig(flip=0), Random(3))
    mirrored, flipped = train_pixels(frames, 32, PixelsConfig(flip=1), Random(3))
    assert (unflipped, flipped) == (False, True)
    assert torch.equal(mirrored, plain.flip(-1))
    rng = Random(0)
    share = (
        sum(train_pixels(frames[:1], 8, PixelsConfig(flip=0.25), rng)[1] for _ in range(400)) / 400
    )
    assert math.isclose(share, 0.25, abs_tol=0.09)


def test_an_augmentation_is_drawn_alike_before_the_crop_or_after_the_flip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = noise(2, 3, 60, 80)
    calls: list[tuple[Tensor, list[tuple[str, float]]]] = []

    def recorded(given: Tensor, operations: Iterable[tuple[str, float]]) -> Tensor:
        calls.append((given, [*operations]))
        return augment(given, operations)

    monkeypatch.setattr(transforms, "augment", recorded)
    before = PixelsConfig(augment_operations=4, augment_probability=1, flip=1)
    plain, _ = train_pixels(frames, 32, PixelsConfig(flip=1), Random(5))
    found = [
        train_pixels(frames, 32, replace(before, augment_place=place), Random(5))
        for place in PLACES
    ]
    (first, operations), (second, again) = calls[1:]
    assert calls[0][1] == []
    assert len(operations) == 4
    assert operations == again
    assert torch.equal(first, frames)
    assert torch.equal(second, plain)
    crop = random_crop(60, 80, before, Random(5))
    assert torch.equal(
        found[0][0], F.resized_crop(augment(frames, operations), *crop, [32, 32]).flip(-1)
    )
    assert torch.equal(found[1][0], augment(plain, operations))


def test_what_is_switched_off_shifts_no_other_draw() -> None:
    frames = noise(2, 3, 60, 80)

    def clip(**changes: Any) -> Tensor:
        return train_pixels(frames, 32, PixelsConfig(**changes), Random(5))[0]

    plain, erased = clip(), clip(erase=1, erase_fill="grey")
    rectangle = (plain != erased).any(0).any(0)
    assert 0 < rectangle.sum() < 32 * 32
    assert torch.equal(plain[..., ~rectangle], erased[..., ~rectangle])
    assert torch.equal(plain, clip(erase=0.001))
    unapplied = {"augment_operations": 4, "augment_probability": 0}
    assert torch.equal(plain, clip(**unapplied))
    assert torch.equal(erased, clip(**unapplied, erase=1, erase_fill="grey"))
    assert torch.equal(
        clip(flip=0, erase=1, erase_fill="grey")[..., ~rectangle], clip(flip=0)[..., ~rectangle]
    )
    augmented = clip(augment_operations=14, erase=1, erase_fill="grey")
    assert (augmented[..., rectangle] == 128).all()  # the erasing is the last, and where it was


def test_a_clip_follows_from_its_generator_alone() -> None:
    frames = noise(2, 3, 60, 80)
    pixels = PixelsConfig(augment_operations=4, erase=1)
    state = torch.get_rng_state()
    first, again, other = (train_pixels(frames, 32, pixels, Random(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(frames, noise(2, 3, 60, 80))


def erased_sides(frames: Tensor, erased: Tensor) -> tuple[int, int]:
    """Height and width of what differs, which is one full rectangle in every frame."""
    changed = (frames.numpy() != erased.numpy()).any((0, 1))
    height, width = int(changed.any(1).sum()), int(changed.any(0).sum())
    assert int(changed.sum()) == height * width
    return height, width


def test_an_erased_rectangle_has_an_area_and_aspect_of_its_range_anywhere_in_the_frame() -> None:
    frames = torch.zeros((1, 1, 200, 240), dtype=torch.uint8)
    pixels = PixelsConfig(erase=1, erase_fill="grey")
    rng = Random(0)
    areas, aspects = [], []
    touched = torch.zeros((200, 240), dtype=torch.bool)
    for _ in range(400):
        erased = erase(frames, pixels, rng)
        touched |= erased[0, 0] > 0
        height, width = erased_sides(frames, erased)
        areas.append(height * width / 48000)
        aspects.append(width / height)
        assert 0.019 < areas[-1] < 0.336
        assert 0.28 < aspects[-1] < 3.6
    assert all(edge.any() for edge in (touched[0], touched[-1], touched[:, 0], touched[:, -1]))
    assert math.isclose(
        sum(areas) / 400, (0.02 + 1 / 3) / 2, abs_tol=0.018
    )  # uniform: 4 standard errors
    assert min(areas) < 0.03
    assert max(areas) > 0.32
    logs = [math.log(aspect) for aspect in aspects]
    assert math.isclose(sum(logs) / 400, 0, abs_tol=0.14)
    assert math.isclose(
        sum(log * log for log in logs) / 400, math.log(10 / 3) ** 2 / 3, rel_tol=0.15
    )


def test_noise_is_uniform_and_new_in_each_frame_and_grey_is_constant() -> None:
    frames = noise(3, 3, 120, 120)
    wide = PixelsConfig(erase=1, erase_area=(0.5, 0.5), erase_aspect=(1, 1))
    found = erase(frames, wide, Random(0))
    assert erased_sides(frames, found) == (85, 85)
    inside = (found != frames).flatten(0, 1).any(0)
    pixels = found[..., inside]
    expected = pixels.numel() / 256
    chi_square = (
        (torch.bincount(pixels.flatten().int(), minlength=256) - expected) ** 2 / expected
    ).sum()
    assert 180 < chi_square < 330  # 255 degrees of freedom: 1 in 1000 is above
    assert not torch.equal(pixels[0], pixels[1])
    assert torch.equal(found[..., ~inside], frames[..., ~inside])
    grey = erase(frames, replace(wide, erase_fill="grey"), Random(0))
    assert (grey[..., inside] == 128).all()
    assert torch.equal(grey[..., ~inside], frames[..., ~inside])


@pytest.mark.parametrize("fill", ["noise", "grey"])
def test_the_smallest_rectangle_is_a_pixel_and_the_largest_the_frame(
    fill: Literal["noise", "grey"],
) -> None:
    frames = torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    pixels = PixelsConfig(erase=1, erase_fill=fill)
    assert erased_sides(
        frames, erase(frames, replace(pixels, erase_area=(1e-6, 1e-6)), Random(0))
    ) == (1, 1)
    whole = replace(pixels, erase_area=(1, 1), erase_aspect=(1, 1))
    assert erased_sides(frames, erase(frames, whole, Random(0))) == (16, 16)
    tall = replace(pixels, erase_area=(0.5, 0.5), erase_aspect=(0.1, 0.1))
    assert erased_sides(frames, erase(frames, tall, Random(0))) == (16, 4)  # of 35.8 by 3.6


def test_clips_are_erased_with_their_probability() -> None:
    frames, rng = noise(1, 3, 16, 16), Random(0)
    pixels = PixelsConfig(erase=0.25)
    share = sum(not torch.equal(erase(frames, pixels, rng), frames) for _ in range(1600)) / 1600
    assert math.isclose(share, 0.25, abs_tol=0.045)
    assert erase(frames, PixelsConfig(), rng) is frames


# Where crops of 48 pixels begin along the longer side, by the official CenterCrop and ThreeCrop. Of
# an odd rest, one pixel is left over.
@pytest.mark.parametrize(
    ("longer", "starts"),
    [(48, [0, 0, 0]), (49, [0, 0, 0]), (50, [0, 1, 2]), (85, [0, 18, 36]), (90, [0, 21, 42])],
)
@pytest.mark.parametrize("upright", [False, True])
def test_one_view_is_the_centre_and_three_lie_along_the_longer_side(
    longer: int, starts: list[int], upright: bool
) -> None:
    frames = noise(2, 3, longer, 48) if upright else noise(2, 3, 48, longer)
    expected = [frames.narrow(-2 if upright else -1, start, 48) for start in starts]
    assert torch.equal(view_pixels(frames, 48, 3), torch.stack(expected))
    assert torch.equal(view_pixels(frames, 48, 1), expected[1][None])


@pytest.mark.parametrize(
    ("height", "width", "scaled"), [(60, 100, [48, 80]), (100, 60, [80, 48]), (24, 30, [48, 60])]
)
def test_the_shorter_side_of_a_view_is_its_size(height: int, width: int, scaled: list[int]) -> None:
    frames = noise(2, 3, height, width)
    expected = F.center_crop(F.resize(frames, scaled, antialias=True), [48, 48])
    assert torch.equal(view_pixels(frames, 48, 1)[0], expected)


def test_normalising_is_the_formula() -> None:
    clip = noise(2, 4, 3, 8, 8)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    found = normalise(clip, mean, std)
    expected = (clip.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).double().view(3, 1, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(normalise(clip, mean, std, dtype), found.to(dtype))
