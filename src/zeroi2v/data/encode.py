"""How do pictures, or the frames of another video, become a video file? H.264 in MP4."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from torch import Tensor

from zeroi2v.data.decode import reason, scaled_size
from zeroi2v.errors import VideoError

_RATE = 30  # frames/s where nothing tells how long the frames are shown


def write_video(path: Path, frames: Tensor, *, fps: int, crf: int = 18) -> None:
    """Write uint8 (T, 3, H, W); the same frames give the same bytes. `crf`: 0 (lossless) to 51 (worst).

    ValueError if H or W is odd; VideoError if the file cannot be written. No file, or the whole file, is at `path` afterwards.
    """
    height, width = frames.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs an even width and height, got {width}x{height}")
    with _written(path) as container:
        # "superfast" does not look ahead; where x264 does, it reads memory that it never set and the bytes vary.
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "preset": "superfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_frames(
    path: Path, frames: Iterable[av.VideoFrame], *, short_side: int, keyframes: int, crf: int
) -> None:
    """Write decoded frames, all of them in their order, upright, with a key frame at least every `keyframes` frames.

    Their shorter side becomes `short_side` if it is longer, and both sides even; frames of another size than the first are scaled
    to it. Each is shown when it was shown before, and later than the one before it. VideoError as from `write_video`.
    """
    first = next(frames := iter(frames))
    width, height = first.width, first.height
    if short_side < min(width, height):
        width, height = scaled_size(width, height, short_side)
    width, height = max(width // 2, 1) * 2, max(height // 2, 1) * 2
    turns = round(first.rotation / 90) % 4
    time_base = first.time_base or Fraction(1, _RATE)
    step = max(round(1 / (_RATE * time_base)), 1)
    reformatter = VideoReformatter()
    with _written(path) as container:
        options = {"crf": str(crf), "preset": "veryfast", "g": str(keyframes)}
        stream = container.add_stream("libx264", rate=_RATE, options=options)
        stream.width, stream.height = (height, width) if turns % 2 else (width, height)
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count, codec.time_base = 1, time_base
        codec.color_range, codec.colorspace = first.color_range, first.colorspace
        start, time = first.pts or 0, -step
        for frame in chain([first], frames):
            picture = _turned(
                reformatter.reformat(frame, width, height, "yuv420p", threads=1), turns
            )
            time = time + step if frame.pts is None else max(frame.pts - start, time + 1)
            picture.pts, picture.time_base = time, time_base
            picture.pict_type = (
                PictureType.NONE
            )  # the encoder's choice, not that of the file that was read
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _turned(picture: av.VideoFrame, turns: int) -> av.VideoFrame:
    """A picture in yuv420p after that many quarter turns to the left, plane by plane: no value changes."""
    if not turns:
        return picture
    width, height = picture.width, picture.height
    luma, *chroma = np.split(
        picture.to_ndarray().reshape(-1), [width * height, width * height * 5 // 4]
    )
    planes = [
        luma.reshape(height, width),
        *(plane.reshape(height // 2, width // 2) for plane in chroma),
    ]
    upright = np.concatenate([np.rot90(plane, turns).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(
        upright.reshape(-1, height if turns % 2 else width), format="yuv420p"
    )


@contextmanager
def _written(path: Path) -> Iterator[OutputContainer]:
    """A container to write into, whose file gets its name when the block has ended well, and else is removed."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(
            f"file:{unfinished}", "w", format="mp4", container_options={"fflags": "+bitexact"}
        ) as container:
            yield container
        unfinished.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be written: {reason(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)
