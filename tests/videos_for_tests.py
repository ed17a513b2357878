"""Videos whose frames tell their numbers, in any encoding, and a slow decoder to compare with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.stream import VideoStream
from torch import Tensor

from zeroi2v.data.datasets import Video, VideoDataset
from zeroi2v.data.encode import write_video

# The reason of a VideoError where FFmpeg finds no video in a file.
DAMAGED = "damaged, cut off, or not a video; get the file again"
GOP = {"g": "12", "bf": "2", "preset": "veryfast"}


def every(num_frames: int) -> range:
    return range(num_frames)


def only(*numbers: int) -> Callable[[int], Sequence[int]]:
    """The choice of the frames with these numbers."""
    return lambda _: numbers


def sequential(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a video from a plain decoding: one thread, from start to end."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                yield from stream.decode(packet)
            except av.FFmpegError:
                continue


def upright(frame: av.VideoFrame) -> Tensor:
    """The pixels (3, H, W) of a frame, turned as the container says."""
    return torch.from_numpy(
        np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).copy()
    ).permute(2, 0, 1)


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture (H, W, 3) that tells its number by a moving gradient and a growing bright bar."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack(
        [2 * x + 5 * number, 255 * y // height, np.full_like(x, 3 * number)], -1
    ).astype(np.uint8)
    pixels[: height // 8, : width * (number + 1) // 128] = 255
    return pixels


def blocks_dataset(folder: Path, *, train: int, val: int, frames: int) -> VideoDataset:
    """Videos of blocks of random colours, 64 by 48, of two classes in turn."""
    videos = []
    for number in range(train + val):
        blocks = (
            torch.rand(frames, 3, 6, 8, generator=torch.Generator().manual_seed(number))
            .mul(255)
            .to(torch.uint8)
        )
        write_video(
            folder / f"{number}.mp4", blocks.repeat_interleave(8, 2).repeat_interleave(8, 3), fps=8
        )
        videos.append(Video(folder / f"{number}.mp4", number % 2))
    return VideoDataset(
        folder, ("left", "right"), {"train": (*videos[:train],), "val": (*videos[train:],)}
    )


def add_video(
    container: OutputContainer,
    codec: str,
    *,
    size: tuple[int, int] = (96, 64),
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> VideoStream:
    """A new video stream of 30 frames per second."""
    stream = container.add_stream(codec, rate=30, options=options or {})
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = size
    stream.pix_fmt = pixels
    return stream


def encode(
    path: Path,
    codec: str,
    options: dict[str, str] | None = None,
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 64),
    pixels: str = "yuv420p",
    container_format: str | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
) -> Path:
    """A video of pictures 0, 1, ..; `prepare` may change the stream before the first frame."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = add_video(container, codec, size=size, pixels=pixels, options=options)
        stream.codec_context.thread_count = 1
        prepare(stream)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, *size))))
        container.mux(stream.encode(None))
    return path
