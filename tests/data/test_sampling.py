"""Are the frame numbers those of the official samplers, and within the video?"""

import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest

from zeroi2v.config import ClipConfig
from zeroi2v.data.sampling import clip_indices, dense_indices, segment_indices


# Worked out by hand from the official formulas. Of (9, 16), every second segment starts on a half,
# which is rounded to an even number.
@pytest.mark.parametrize(
    ("num_frames", "frames", "clip", "clips", "expected"),
    [
        (100, 8, 0, 1, [6, 18, 31, 43, 56, 68, 80, 93]),  # segments of 12.375
        (100, 8, 0, 2, [4, 16, 29, 41, 54, 66, 78, 91]),
        (100, 8, 1, 2, [8, 20, 33, 45, 58, 70, 82, 95]),
        (9, 16, 0, 1, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8]),
        (1, 4, 0, 1, [0, 0, 0, 0]),
        (2, 1, 0, 1, [0]),
    ],
)
def test_a_segment_clip_follows_the_official_table(
    num_frames: int, frames: int, clip: int, clips: int, expected: list[int]
) -> None:
    assert segment_indices(num_frames, frames, clip=clip, clips=clips) == expected


@pytest.mark.parametrize(
    ("num_frames", "clip", "clips", "start"),
    [
        (300, 0, 1, 93),
        (300, 0, 3, 0),
        (300, 1, 3, 94),
        (300, 2, 3, 187),
        (302, 1, 3, 94),
        (113, 0, 1, 0),
        (114, 1, 2, 1),
    ],
)
def test_a_dense_clip_starts_where_the_official_code_starts_it(
    num_frames: int, clip: int, clips: int, start: int
) -> None:
    expected = [start + 16 * i for i in range(8)]
    assert dense_indices(num_frames, 8, 16, clip=clip, clips=clips) == expected


# The official formulas as exact fractions. Training draws a frame of each range; an evaluation has
# a list for each clip.


def exact_segments(num_frames: int, frames: int) -> list[range]:
    bounds = [round(Fraction(num_frames - 1, frames) * i) for i in range(frames + 1)]
    return [range(first, last + 1) for first, last in pairwise(bounds)]


def exact_segment_clip(num_frames: int, frames: int, clip: int, clips: int) -> list[int]:
    inner = math.floor(Fraction(num_frames - 1, frames) / (clips + 1) * (clip + 1))
    return [segment.start + inner for segment in exact_segments(num_frames, frames)]


def exact_dense_clip(num_frames: int, frames: int, stride: int, clip: int, clips: int) -> list[int]:
    last_start = max(num_frames - (frames - 1) * stride - 1, 0)
    start = (
        math.floor(Fraction(last_start, 2))
        if clips == 1
        else round(Fraction(last_start, clips - 1) * clip)
    )
    looped = [*range(num_frames)] * (1 + (start + frames * stride) // num_frames)
    return looped[start::stride][:frames]


class Extreme(Random):
    """Draws the lowest or the highest number there is."""

    highest = False

    def randint(self, a: int, b: int) -> int:
        return b if self.highest else a

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        first, beyond = (0, start) if stop is None else (start, stop)
        return range(first, beyond, step)[-1 if self.highest else 0]


@pytest.mark.parametrize("frames", [8, 16, 32])
@pytest.mark.parametrize("clips", [1, 2, 3])
def test_every_segment_clip_of_every_length_is_the_official_one(frames: int, clips: int) -> None:
    clip = ClipConfig(frames=frames)
    for num_frames in range(1, 401):
        expected = [exact_segment_clip(num_frames, frames, k, clips) for k in range(clips)]
        assert clip_indices(num_frames, clip, clips=clips) == expected


@pytest.mark.parametrize(("frames", "stride"), [(8, 16), (16, 8), (32, 4)])
@pytest.mark.parametrize("clips", [1, 2, 3])
def test_every_dense_clip_of_every_length_is_the_official_one(
    frames: int, stride: int, clips: int
) -> None:
    clip = ClipConfig(frames=frames, sampling="dense", stride=stride)
    for num_frames in range(1, 401):
        expected = [exact_dense_clip(num_frames, frames, stride, k, clips) for k in range(clips)]
        assert clip_indices(num_frames, clip, clips=clips) == expected


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_a_training_draw_of_every_length_has_the_official_bounds(frames: int) -> None:
    stride = 128 // frames
    dense, segment = (
        ClipConfig(frames=frames, sampling="dense", stride=stride),
        ClipConfig(frames=frames),
    )
    lowest, highest = Extreme(), Extreme()
    highest.highest = True
    for num_frames in range(1, 401):
        ranges = exact_segments(num_frames, frames)
        assert clip_indices(num_frames, segment, rng=lowest) == [[values[0] for values in ranges]]
        assert clip_indices(num_frames, segment, rng=highest) == [[values[-1] for values in ranges]]
        last_start = max(num_frames - 128, 0)
        for start, rng in ((0, lowest), (last_start, highest)):
            looped = [*range(num_frames)] * (1 + (start + 128) // num_frames)
            assert clip_indices(num_frames, dense, rng=rng) == [looped[start::stride][:frames]]


# 300 frames are ten seconds of Kinetics. At the paper's three lengths a clip spans 128 frames, or
# nearly.
@pytest.mark.parametrize(
    ("frames", "stride", "starts", "span"),
    [(8, 16, [0, 94, 187], 112), (16, 8, [0, 90, 179], 120), (32, 4, [0, 88, 175], 124)],
)
def test_the_three_clips_of_kinetics(
    frames: int, stride: int, starts: list[int], span: int
) -> None:
    clip = ClipConfig(frames=frames, sampling="dense", stride=stride)
    found = clip_indices(300, clip, clips=3)
    assert [indices[0] for indices in found] == starts
    assert [indices[-1] for indices in found] == [start + span for start in starts]


def test_a_short_video_starts_over() -> None:
    assert dense_indices(50, 8, 16) == [0, 16, 32, 48, 14, 30, 46, 12]
    assert (
        dense_indices(50, 8, 16, clip=2, clips=3)
        == dense_indices(50, 8, 16, rng=Random(0))
        == dense_indices(50, 8, 16)
    )


def test_a_training_draw_covers_its_segment_and_no_more() -> None:
    seen: list[set[int]] = [set() for _ in range(4)]
    rng = Random(0)
    for _ in range(500):
        for values, index in zip(seen, segment_indices(23, 4, rng=rng), strict=True):
            values.add(index)
    assert seen == [
        {*range(7)},
        {*range(6, 12)},
        {*range(11, 17)},
        {*range(16, 23)},
    ]  # bounds 0, 5.5, 11, 16.5, 22


def test_a_training_draw_covers_every_offset_of_a_dense_clip() -> None:
    rng = Random(0)
    draws = [dense_indices(40, 4, 8, rng=rng) for _ in range(300)]
    assert {draw[0] for draw in draws} == {*range(40 - 4 * 8 + 1)}
    assert all(draw == [draw[0] + 8 * i for i in range(4)] for draw in draws)


@pytest.mark.parametrize("sampling", ["segment", "dense"])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 113, 1000])
@pytest.mark.parametrize("rng", [None, Random(0)])
def test_every_number_is_a_frame_of_the_video(
    sampling: str, num_frames: int, rng: Random | None
) -> None:
    clip = ClipConfig(frames=8, sampling="dense" if sampling == "dense" else "segment", stride=16)
    found = clip_indices(num_frames, clip, clips=3, rng=rng)
    assert [len(indices) for indices in found] == [8, 8, 8]
    assert all(0 <= index < num_frames for indices in found for index in indices)


def test_the_clips_of_an_evaluation_are_the_samplers_clips() -> None:
    segment, dense = ClipConfig(frames=4), ClipConfig(frames=4, sampling="dense", stride=3)
    assert clip_indices(50, segment, clips=2) == [
        segment_indices(50, 4, clip=k, clips=2) for k in range(2)
    ]
    assert clip_indices(50, dense, clips=2) == [
        dense_indices(50, 4, 3, clip=k, clips=2) for k in range(2)
    ]
    assert clip_indices(50, segment, rng=Random(5)) == [segment_indices(50, 4, rng=Random(5))]


def test_the_index_arithmetic_needs_the_standard_library_only() -> None:
    heavy = "{'torch', 'torchvision', 'av', 'numpy'} & {*sys.modules}"
    program = f"import sys, zeroi2v.data.sampling; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
