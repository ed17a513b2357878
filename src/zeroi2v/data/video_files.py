"""How is a video file opened, which of its streams is the video, and how are packets decoded?

The path of a video may be a `tar_address`, which stands for a part of a tar file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from zeroi2v.data.file_kinds import kind_by_name
from zeroi2v.data.pyav import av
from zeroi2v.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

VideoPacket: TypeAlias = "av.Packet[VideoStream]"

NO_FRAME: Final = "no frame can be decoded"
_IMAGE: Final = "an image, not a video; give a video file or a folder of images"
_IN_TAR: Final = re.compile(r"(.+?\.tar)@(\d+)\+(\d+)/", re.DOTALL | re.IGNORECASE)


def tar_address(archive: Path, name: str, start: int, size: int) -> Path:
    """The path that stands for the member `name` of a tar file: archive@start+size/name.

    The member has `size` bytes; the first of them is byte `start` of the tar file.
    """
    return Path(f"{archive}@{start}+{size}/{name}")


def is_tar_address(path: Path) -> bool:
    """Whether a path stands for a part of a tar file."""
    return _IN_TAR.match(str(path)) is not None


@contextmanager
def open_video(path: Path, *, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of a video file and its video stream.

    With more than one thread, good frames beside broken frames are lost. The caller then has to
    check which frames come. An error of FFmpeg inside the block becomes a VideoError.
    """
    if kind_by_name(path.name) == "image":  # FFmpeg would make a video of one frame
        raise VideoError(path, _IMAGE)
    try:
        with av.open(_url(path), metadata_errors="replace") as container:
            if container.format.name.endswith("_pipe") and _is_single_image(_url(path)):
                raise VideoError(path, _IMAGE)  # an image with the name of a video
            if container.format.name == "tty":  # FFmpeg would draw the letters of a text file
                raise VideoError(path, "a text file, not a video")
            stream = _video_stream(path, container)
            codec = stream.codec_context
            codec.thread_type = "FRAME"
            codec.thread_count = threads
            try:
                yield container, stream
            finally:
                # PyAV closes a decoder while it holds Python's lock. A thread of the decoder needs
                # the lock to log a message, so the threads have to finish before.
                codec.flush_buffers()
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, reason(error)) from error


def _is_single_image(url: str) -> bool:
    """Whether a file that FFmpeg takes for images, one after the other, holds only one image."""
    with av.open(url) as container:
        packets = (packet for packet in container.demux(video=0) if packet.size)
        return len(list(islice(packets, 2))) == 1


def _url(path: Path) -> str:
    """What FFmpeg opens. VideoError if there is no such file, or no such part of a tar file."""
    address = _IN_TAR.match(str(path))
    file = Path(address[1]) if address else path
    if not file.is_file():
        raise VideoError(path, "neither a file nor a folder" if file.exists() else "no such file")
    length = file.stat().st_size
    start, size = (int(address[2]), int(address[3])) if address else (0, length)
    if size == 0:
        raise VideoError(path, "the file is empty")
    if start + size > length:
        changed = f"{file.name} has only {length} bytes: it changed since it was listed"
        raise VideoError(path, changed)
    url = f"file:{file}"  # without "file:", FFmpeg takes a name like a:b for a protocol
    return f"subfile,,start,{start},end,{start + size},,:{url}" if address else url


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The stream that players show.

    Of the streams that can be decoded, that is the stream that FFmpeg ranks best, else the largest
    stream. A cover picture or a thumbnail is no video, nor is a single frame beside longer streams.
    VideoError if no stream is left.
    """
    dispositions = av.stream.Disposition
    no_video = dispositions.attached_pic | dispositions.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & no_video]
    if not streams:
        raise VideoError(path, "no video stream")
    # PyAV has no codec context where FFmpeg has no decoder; its annotations do not say so.
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(path, "no decoder for its video stream")
    videos = [stream for stream in decodable if stream.frames != 1] or decodable  # 0: unknown
    best = container.streams.best("video")  # may be a stream outside of `videos`
    largest = max(videos, key=lambda stream: stream.width * stream.height)
    return next((stream for stream in videos if stream is best), largest)


def reason(error: av.FFmpegError | OSError, *, kind: str = "a video") -> str:
    """What an error of FFmpeg or of the operating system says, as the clause of a sentence.

    `kind` says what the file should be: "a video" or "an image".
    """
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return f"damaged, cut off, or not {kind}; get the file again"
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The packets from the container's position to the first packet that cannot be read.

    Empty packets are left out: to the decoder, an empty packet is the end of the video.
    """
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError:
        return


def decoded(
    stream: VideoStream,
    packets: Iterable[VideoPacket],
    failures: list[av.FFmpegError] | None = None,
) -> Iterator[av.VideoFrame]:
    """The frames of the packets, in presentation order. Packets that cannot be decoded are skipped.

    The error of each skipped packet is added to `failures`. If no packet gives a frame, the first
    error is raised.
    """
    failures = [] if failures is None else failures
    has_frames = False
    for packet in chain(packets, [None]):  # None asks for the frames that wait in the decoder
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            failures.append(error)
            continue
        has_frames = has_frames or bool(frames)
        yield from frames
    if failures and not has_frames:
        raise failures[0]
