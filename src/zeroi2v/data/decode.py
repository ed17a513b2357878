"""How are the frames of a video decoded into pixels?

A video is a video file, a part of a tar file, or a folder of images.

Shapes: n frames asked for, H, W pixels as displayed (upright; pixels are taken as square). Pixels
are uint8.

The number of a frame is its position in presentation order among the frames that can be decoded.
Frames that cannot be decoded are passed over, as players do. A video is refused only if no frame
of it can be decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from zeroi2v.config import Decoder
from zeroi2v.data.display import Orientation, oriented, scaled_size
from zeroi2v.data.frame_folders import decode_image, image_files
from zeroi2v.data.pyav import av
from zeroi2v.data.timeline import Timeline, TimelineError, frames_by_seeking
from zeroi2v.data.torchcodec_frames import seeks_exactly, torchcodec_clip
from zeroi2v.data.video_files import (
    NO_FRAME,
    decoded,
    is_tar_address,
    open_video,
    packets_of,
    reason,
)
from zeroi2v.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# A function that gets the number of frames of a video and returns the numbers of the wanted frames.
Choose: TypeAlias = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds, found by decoding all of it."""

    frames: int
    seconds: float | None  # None if nothing tells how long the frames are shown
    width: int  # of the first frame, as displayed
    height: int
    undecodable: int = 0  # further frames, which the file announces but which cannot be decoded


def read_clip(
    path: Path,
    choose: Choose,
    *,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
) -> Tensor:
    """The frames of a video that `choose` picks: uint8 (n, 3, H, W), channels last in memory.

    `choose` is given the number of frames and returns the numbers of the wanted frames, in any
    order, repeats allowed. `choose` is called again if the number of frames proves wrong. Damage is
    noticed only in frames that have to be decoded. Frames whose shorter side is above `short_side`
    pixels are scaled down to it. A wanted frame of another size than the first wanted frame is
    scaled to the size of the first. PyAV decodes the videos that torchcodec cannot decode.
    VideoError if no frame can be decoded.
    """
    return _source(path).clip(choose, short_side, decoder)


def scan(path: Path) -> VideoInfo:
    """Decode a whole video and say what it holds. VideoError if no frame can be decoded."""
    count, width, height, earliest, latest, time_base = 0, 0, 0, math.inf, -math.inf, None
    source, failures = _source(path), list[av.FFmpegError]()
    frames = source.frames(failures) if isinstance(source, VideoFile) else source.frames()
    for count, (frame, orientation) in enumerate(frames, start=1):
        if count == 1:
            width, height = orientation.size(frame.width, frame.height)
            time_base = frame.time_base
        if frame.pts is not None:
            earliest, latest = min(earliest, frame.pts), max(latest, frame.pts)
    seconds = None
    if time_base and earliest < latest:  # the last frame is shown as long as the others on average
        seconds = (latest - earliest) * float(time_base) * count / (count - 1)
    undecodable = source.undecodable(count, failures) if isinstance(source, VideoFile) else 0
    return VideoInfo(count, seconds, width, height, undecodable)


def all_frames(path: Path) -> Iterator[tuple[av.VideoFrame, Orientation]]:
    """Every frame that can be decoded, in order, as stored, and how it is laid out for display.

    VideoError if there is none.
    """
    yield from _source(path).frames()


def _source(path: Path) -> ImageFolder | VideoFile:
    """The source of the frames of a video: a folder of images, or a video file."""
    try:
        is_folder = not is_tar_address(path) and path.is_dir()
    except OSError as error:  # the name is too long, or a folder above it may not be searched
        raise VideoError(path, reason(error)) from error
    if is_folder:
        return ImageFolder(path)
    return VideoFile(path)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, which are the frames of a video."""

    path: Path

    def frames(self) -> Iterator[tuple[av.VideoFrame, Orientation]]:
        """Every frame, in order, as stored, and how the frame is laid out for display."""
        yield from oriented(map(decode_image, image_files(self.path)))

    def clip(self, choose: Choose, short_side: int | None, decoder: Decoder) -> Tensor:
        """As `read_clip`. Images are decoded by PyAV, whatever the `decoder` of video files."""
        files = image_files(self.path)
        order = _chosen(choose, len(files))
        numbers = sorted({*order})
        images = oriented(decode_image(files[number]) for number in numbers)
        numbered = ((number, *image) for number, image in zip(numbers, images, strict=True))
        return _collect(order, numbered, short_side)[0]


@dataclass(frozen=True)
class VideoFile:
    """A video file, or a part of a tar file that holds a video file."""

    path: Path

    def frames(
        self, failures: list[av.FFmpegError] | None = None
    ) -> Iterator[tuple[av.VideoFrame, Orientation]]:
        """Every frame that can be decoded, in order, as stored, and its layout for display.

        The errors of the packets that cannot be decoded are added to `failures`.
        """
        with open_video(self.path) as (container, stream):
            frames = oriented(decoded(stream, packets_of(container, stream), failures))
            first = next(frames, None)
            if first is None:
                raise VideoError(self.path, NO_FRAME)
            yield first
            yield from frames

    def undecodable(self, count: int, failures: Sequence[av.FFmpegError]) -> int:
        """The number of frames that the file announces, less the `count` frames that were decoded.

        0 without damage: two packets of an interlaced video may make one frame.
        """
        with open_video(self.path) as (container, stream):
            indexed = sum(entry.size > 0 for entry in stream.index_entries)
            timeline = Timeline.of(container, stream)
        # packets that the index names and the file, cut off, lacks
        lost = max(indexed - timeline.packets, 0)
        return max(timeline.frames + lost - count, 0) if failures or lost else 0

    def clip(self, choose: Choose, short_side: int | None, decoder: Decoder) -> Tensor:
        """As `read_clip`. Seeks if the packets tell which frames there are.

        Otherwise the whole file is decoded.
        """
        threads = 1 if get_worker_info() else min(4, os.cpu_count() or 1)
        with open_video(self.path, threads=threads) as (container, stream):
            timeline = Timeline.of(container, stream)
            if timeline.times:
                order = _chosen(choose, timeline.frames)
                try:
                    if decoder == "torchcodec":
                        clip = self._by_torchcodec(container, stream, timeline, order, short_side)
                        if clip is not None:
                            return clip
                    frames = frames_by_seeking(container, stream, timeline, sorted({*order}))
                    return _collect(order, frames, short_side)[0]
                except (TimelineError, av.FFmpegError):
                    pass  # the packets do not tell which frames there are
        return self._by_counting(choose, timeline.frames, short_side)

    def _by_torchcodec(
        self,
        container: InputContainer,
        stream: VideoStream,
        timeline: Timeline,
        order: Sequence[int],
        short_side: int | None,
    ) -> Tensor | None:
        """The clip as torchcodec decodes it; None if PyAV has to decode it.

        torchcodec applies the rotation that a container asks for, but no mirroring.
        """
        if not seeks_exactly(container):
            return None
        _, _, orientation = next(frames_by_seeking(container, stream, timeline, [0]))
        if orientation.is_mirrored:
            return None
        key_times = {time for time, _ in timeline.keys}
        return torchcodec_clip(
            self.path, order, stream, timeline.times, key_times, short_side=short_side
        )

    def _by_counting(self, choose: Choose, guess: int, short_side: int | None) -> Tensor:
        """The clip, for which the whole file is decoded.

        If the number of frames is not `guess`, the file is decoded a second time.
        """
        for _ in range(2):
            if not guess:
                raise VideoError(self.path, NO_FRAME)
            order = _chosen(choose, guess)
            with open_video(self.path) as (container, stream):
                frames = oriented(decoded(stream, packets_of(container, stream)))
                numbered = ((number, *frame) for number, frame in enumerate(frames))
                clip, count = _collect(order, numbered, short_side)
            if count == guess:
                return clip
            guess = count
        raise VideoError(self.path, "each decoding gives another number of frames")


def _chosen(choose: Choose, frames: int) -> Sequence[int]:
    """The numbers that `choose` picks. IndexError if the video has no frame of such a number."""
    order = choose(frames)
    if not order or min(order) < 0 or max(order) >= frames:
        raise IndexError(f"a choice of frames {list(order)} of a video of {frames}")
    return order


def _collect(
    order: Sequence[int],
    frames: Iterable[tuple[int, av.VideoFrame, Orientation]],
    short_side: int | None,
) -> tuple[Tensor, int]:
    """The clip (n, 3, H, W) of the frames whose numbers are in `order`, and how many frames came.

    Frames whose number is not in `order` are only counted.
    """
    positions: dict[int, list[int]] = {}
    for position, number in enumerate(order):
        positions.setdefault(number, []).append(position)
    # One reformatter for all frames: a reformatter keeps its tables.
    reformatter = av.video.reformatter.VideoReformatter()
    clip = np.empty((0, 0, 0, 3), dtype=np.uint8)  # (n, H, W, 3) from the first wanted frame on
    width = height = count = 0
    for number, frame, orientation in frames:
        count += 1
        if number not in positions:
            continue
        if not len(clip):
            width, height = orientation.size(frame.width, frame.height)
            if short_side is not None and short_side < min(width, height):
                width, height = scaled_size(width, height, short_side)
            clip = np.empty((len(order), height, width, 3), dtype=np.uint8)
        stored_size = orientation.size(width, height)
        rgb = reformatter.reformat(frame, *stored_size, "rgb24", threads=1)
        clip[positions[number]] = orientation.upright(rgb.to_ndarray())
    return torch.from_numpy(clip).movedim(-1, 1), count
