"""How do pictures, or the frames of another video, become a video file? H.264 in MP4.

Shapes: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from zeroi2v.data.display import Orientation, scaled_size
from zeroi2v.data.pyav import av
from zeroi2v.data.video_files import reason
from zeroi2v.errors import FileError, VideoError
from zeroi2v.files import write_files

if TYPE_CHECKING:
    from av.container import OutputContainer

_RATE: Final = 30  # frames per second where nothing tells how long the frames are shown
_BT601: Final = 5  # the number of this matrix in ITU-T H.273, and in FFmpeg's scaler


def write_video(path: Path, frames: Tensor, *, fps: int, crf: int = 18) -> None:
    """Write uint8 (T, 3, H, W); the same frames give the same bytes. `crf`: 0 (lossless) to 51.

    ValueError if H or W is odd. VideoError if the file cannot be written; an earlier file at `path`
    then stays.
    """
    _write_whole(path, lambda partial: encode_video(partial, frames, fps=fps, crf=crf))


def encode_video(path: Path, frames: Tensor, *, fps: int, crf: int = 18) -> None:
    """Write as `write_video` does, but into `path` itself, where an error leaves half a file.

    OSError if the file cannot be written.
    """
    height, width = frames.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs an even width and height, got {width}x{height}")

    def encode(container: OutputContainer) -> None:
        # "superfast" does not look ahead. Where x264 looks ahead, it reads memory that it never
        # set, and the bytes vary.
        options = {"crf": str(crf), "preset": "superfast"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))

    _encode_into(path, encode)


def write_frames(
    path: Path,
    frames: Iterable[tuple[av.VideoFrame, Orientation]],
    *,
    short_side: int,
    keyframes: int,
    crf: int,
) -> None:
    """Write decoded frames: all of them, in order, upright, in the colours in which they are shown.

    The shorter side becomes `short_side` if it is longer, and both sides become even. A frame of
    another size than the first is scaled to the size of the first. A frame keeps its time. A frame
    whose time is not later than the previous frame's is shown right after the previous frame. At
    least every `keyframes` frames there is a key frame. VideoError as from `write_video`.
    """
    first = next(frames := iter(frames))
    width, height = _even_size(*first, short_side)
    matrix, colour_range = _colours(first[0])
    time_base = first[0].time_base or Fraction(1, _RATE)
    step = max(round(1 / (_RATE * time_base)), 1)

    def encode(container: OutputContainer) -> None:
        options = {"crf": str(crf), "preset": "veryfast", "g": str(keyframes)}
        stream = container.add_stream("libx264", rate=_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count, codec.time_base = 1, time_base
        codec.colorspace, codec.color_range = matrix, colour_range
        # One reformatter for all frames: a reformatter keeps its tables.
        reformatter = av.video.reformatter.VideoReformatter()
        start, time = first[0].pts or 0, -step
        for frame, orientation in chain([first], frames):
            picture = reformatter.reformat(
                frame,
                *orientation.size(width, height),
                "yuv420p",
                dst_colorspace=matrix,
                dst_color_range=colour_range,
                threads=1,
            )
            picture = _upright(picture, orientation)
            time = time + step if frame.pts is None else max(frame.pts - start, time + 1)
            picture.pts, picture.time_base = time, time_base
            # The encoder chooses the type of the picture, not the source.
            picture.pict_type = av.video.frame.PictureType.NONE
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))

    _write_whole(path, lambda partial: _encode_into(partial, encode))


def _even_size(first: av.VideoFrame, orientation: Orientation, short_side: int) -> tuple[int, int]:
    """Width and height of the copy of a video whose first frame is `first`."""
    width, height = orientation.size(first.width, first.height)
    if short_side < min(width, height):
        width, height = scaled_size(width, height, short_side)
    return max(width // 2, 1) * 2, max(height // 2, 1) * 2


def _colours(first: av.VideoFrame) -> tuple[int, int]:
    """Matrix and range of the copy's YUV values: the source's where its frames are YUV."""
    components = first.format.components
    if len(components) < 3 or not components[0].is_luma:
        # The source is grey or RGB, or has a palette.
        return _BT601, av.video.reformatter.ColorRange.MPEG
    return first.colorspace or _BT601, first.color_range


def _upright(picture: av.VideoFrame, orientation: Orientation) -> av.VideoFrame:
    """A picture in yuv420p as it is shown, made plane by plane: no value changes."""
    if orientation == Orientation():
        return picture
    width, height = picture.width, picture.height
    values, size = picture.to_ndarray().reshape(-1), width * height
    luma = values[:size].reshape(height, width)
    chroma = values[size:].reshape(2, height // 2, width // 2)
    planes = [orientation.upright(plane).reshape(-1) for plane in (luma, *chroma)]
    rows = np.concatenate(planes).reshape(-1, orientation.size(width, height)[0])
    return av.VideoFrame.from_ndarray(rows, format="yuv420p")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path that becomes `path`. VideoError if that fails."""
    try:
        write_files({path: write})
    except FileError as error:
        cause = error.__cause__
        why = reason(cause) if isinstance(cause, OSError) else str(cause)
        raise VideoError(path, f"cannot be written: {why}") from error


def _encode_into(path: Path, encode: Callable[[OutputContainer], None]) -> None:
    """Open a file, let `encode` fill its container, and close it. OSError if that fails."""
    try:
        with av.open(
            f"file:{path}", "w", format="mp4", container_options={"fflags": "+bitexact"}
        ) as container:
            encode(container)
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error
