"""Which frame numbers make up a clip of a video? Index arithmetic only.

n frames in the video, T frames in the clip. Both samplers are the official implementation's,
rounding (half to even) included. A sampler that is given a generator `rng` draws a training clip;
without `rng` it gives clip `clip` of the `clips` clips of an evaluation.
"""

from __future__ import annotations

from itertools import chain, pairwise
from random import Random

from zeroi2v.config import ClipConfig


def clip_indices(
    num_frames: int, clip: ClipConfig, *, clips: int = 1, rng: Random | None = None
) -> list[list[int]]:
    """The frame numbers of `clips` clips of a video, T each. With `rng`, each clip is drawn."""
    if clip.sampling == "segment":
        return [
            segment_indices(num_frames, clip.frames, clip=k, clips=clips, rng=rng)
            for k in range(clips)
        ]
    return [
        dense_indices(num_frames, clip.frames, clip.stride, clip=k, clips=clips, rng=rng)
        for k in range(clips)
    ]


def frames_of_clips(num_frames: int, clip: ClipConfig, clips: int) -> list[int]:
    """The frame numbers of all clips of an evaluation, one clip after the other: clips * T."""
    return [*chain.from_iterable(clip_indices(num_frames, clip, clips=clips))]


def from_the_end(indices: list[int], num_frames: int) -> list[int]:
    """The same choice with frames counted from the end of the video, in rising order."""
    return [num_frames - 1 - index for index in reversed(indices)]


def segment_indices(
    num_frames: int, frames: int, *, clip: int = 0, clips: int = 1, rng: Random | None = None
) -> list[int]:
    """One frame of each of T equal segments ("UniformSample").

    A video with fewer than T frames repeats some of them. With s = (n - 1) / T, segment i
    is round(s i) .. round(s (i + 1)), both included. Training draws one frame of each segment;
    clip k of K takes round(s i) + floor(s (k + 1) / (K + 1)).
    """
    segment = (num_frames - 1) / frames
    starts = [round(segment * i) for i in range(frames + 1)]
    if rng is not None:
        return [rng.randint(start, end) for start, end in pairwise(starts)]
    return [start + int(segment / (clips + 1) * (clip + 1)) for start in starts[:-1]]


def dense_indices(
    num_frames: int,
    frames: int,
    stride: int,
    *,
    clip: int = 0,
    clips: int = 1,
    rng: Random | None = None,
) -> list[int]:
    """T frames `stride` apart, from a first frame on ("SampleFrames").

    Past its end the video starts over (modulo n). Training draws the first frame from
    0 .. n - T stride. An evaluation has m = n - ((T - 1) stride + 1) frames of room: the only clip
    starts at floor(m / 2), and clip k of K at round(k m / (K - 1)). Without room, a clip starts at
    frame 0.
    """
    if rng is not None:
        first = rng.randrange(max(num_frames - frames * stride + 1, 1))
    else:
        room = max(num_frames - ((frames - 1) * stride + 1), 0)
        first = room // 2 if clips == 1 else round(clip * (room / (clips - 1)))
    return [(first + i * stride) % num_frames for i in range(frames)]
