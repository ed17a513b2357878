"""Are the pixels of a view those of the frames, cropped and scaled as torchvision does it, all frames of a clip alike?"""

import math
from random import Random

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from zeroi2v.config import PixelsConfig
from zeroi2v.data.transforms import normalise, random_crop, train_pixels, view_pixels


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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
    error = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()  # standard error of a difference of means
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
        F.resize(frame[:, top : top + height, left : left + width], [32, 32], antialias=True) for frame in frames
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
    share = sum(train_pixels(frames[:1], 8, PixelsConfig(flip=0.25), rng)[1] for _ in range(400)) / 400
    assert math.isclose(share, 0.25, abs_tol=0.09)


@pytest.mark.parametrize(("height", "width"), [(48, 90), (90, 48), (48, 48)])
def test_one_view_is_the_centre_and_three_lie_along_the_longer_side(height: int, width: int) -> None:
    frames = noise(2, 3, height, width)
    (centre,) = view_pixels(frames, 48, 1)
    assert torch.equal(centre, F.center_crop(frames, [48, 48]))
    start, middle, end = view_pixels(frames, 48, 3)
    assert torch.equal(start, frames[..., :48, :48])
    assert torch.equal(middle, centre)
    assert torch.equal(end, frames[..., -48:, -48:])


@pytest.mark.parametrize(("height", "width", "scaled"), [(60, 100, [48, 80]), (100, 60, [80, 48]), (24, 30, [48, 60])])
def test_the_shorter_side_of_a_view_is_its_size(height: int, width: int, scaled: list[int]) -> None:
    frames = noise(2, 3, height, width)
    expected = F.center_crop(F.resize(frames, scaled, antialias=True), [48, 48])
    assert torch.equal(view_pixels(frames, 48, 1)[0], expected)


def test_normalising_is_the_formula() -> None:
    clip = noise(2, 4, 3, 8, 8)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    found = normalise(clip, mean, std)
    expected = (clip.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
