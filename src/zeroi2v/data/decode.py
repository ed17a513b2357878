"""Which bytes: how do the frames of a video file, or of a folder of images, become pixels?

Shapes: n frames asked for, T frames, H, W pixels as displayed (turned upright; pixels are taken as square). Pixels are uint8.

The number of a frame is its place in presentation order among the frames that can be decoded. What cannot be decoded is passed
over, as players do; a file is refused only if nothing in it can be decoded. The path of a video may be a `tar_address`.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, dropwhile, pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import av
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor
from torch.utils.data import get_worker_info

from zeroi2v.config import Decoder
from zeroi2v.data.file_kinds import files_of
from zeroi2v.data.packets import is_disposable, is_hidden
from zeroi2v.data.torchcodec_frames import torchcodec_clip
from zeroi2v.errors import VideoError, first_names

_Packet: TypeAlias = "av.Packet[VideoStream]"
_IMAGE_CODECS: dict[
    bytes, Literal["mjpeg", "png", "webp", "bmp"]
] = {  # by an image file's first two bytes
    b"\xff\xd8": "mjpeg",
    b"\x89P": "png",
    b"RI": "webp",
    b"BM": "bmp",
}
_NOTHING = "no frame can be decoded"
_LAST_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_IN_TAR = re.compile(r"(.+?\.tar)@(\d+)\+(\d+)/", re.DOTALL | re.IGNORECASE)
_REACH = 8  # frames; a key frame that is no farther ahead is reached sooner by decoding on than by seeking


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds, found by decoding all of it."""

    frames: int
    seconds: float | None  # None if nothing tells how long the frames are shown
    width: int  # of the first frame, as displayed
    height: int


def read_clip(
    path: Path,
    choose: Callable[[int], Sequence[int]],
    *,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
) -> Tensor:
    """The frames that `choose` picks of a video file or folder of images: uint8 (n, 3, H, W), channels last in memory.

    `choose` is given the number of frames and returns the numbers of those wanted, in any order, repeats allowed. It is asked
    again if the number it was given proves wrong; damage is noticed only in what has to be decoded. Frames whose shorter side is
    above `short_side` pixels are scaled down to it; a frame of another size than the first is scaled to that of the first.
    What torchcodec cannot decode, PyAV does. VideoError if no frame can be decoded.
    """
    if _is_folder(path):
        files = _image_files(path)
        order = _chosen(choose, len(files))
        return _collect(
            order,
            ((number, _decode_image(files[number])) for number in sorted({*order})),
            short_side,
        )[0]
    with _open(path, threads=1 if get_worker_info() else min(4, os.cpu_count() or 1)) as (
        container,
        stream,
    ):
        timeline = _Timeline.of(container, stream)
        if timeline.times:
            order = _chosen(choose, timeline.frames)
            if decoder == "torchcodec":
                keys = {time for time, _ in timeline.keys}
                clip = torchcodec_clip(
                    path, order, stream, timeline.times, keys, short_side=short_side
                )
                if clip is not None:
                    return clip
            try:
                return _collect(
                    order, _by_seeking(container, stream, timeline, sorted({*order})), short_side
                )[0]
            except (_TimelineError, av.FFmpegError):
                pass  # the packets do not tell which frames there are
    return _by_counting(path, choose, timeline.frames, short_side)


def scan(path: Path) -> VideoInfo:
    """Decode a whole video, keep nothing, and say what it holds. VideoError if no frame can be decoded."""
    count, width, height, earliest, latest, time_base = 0, 0, 0, math.inf, -math.inf, None
    for count, frame in enumerate(all_frames(path), start=1):
        if count == 1:
            width, height, time_base = frame.width, frame.height, frame.time_base
            if round(frame.rotation / 90) % 2:
                width, height = height, width
        if frame.pts is not None:
            earliest, latest = min(earliest, frame.pts), max(latest, frame.pts)
    seconds = None
    if time_base and earliest < latest:  # the last frame is shown as long as the others on average
        seconds = (latest - earliest) * float(time_base) * count / (count - 1)
    return VideoInfo(count, seconds, width, height)


def all_frames(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded, in order, not yet turned upright. VideoError if there is none."""
    if _is_folder(path):
        yield from map(_decode_image, _image_files(path))
        return
    with _open(path) as (container, stream):
        frames = _decoded(stream, _packets(container, stream))
        first = next(frames, None)
        if first is None:
            raise VideoError(path, _NOTHING)
        yield first
        yield from frames


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height with the aspect kept and the shorter one equal to `short_side`."""
    scale = short_side / min(width, height)
    return round(width * scale), round(height * scale)


def _chosen(choose: Callable[[int], Sequence[int]], frames: int) -> Sequence[int]:
    order = choose(frames)
    if not order or min(order) < 0 or max(order) >= frames:
        raise IndexError(f"a choice of frames {list(order)} of a video of {frames}")
    return order


def _collect(
    order: Sequence[int], frames: Iterable[tuple[int, av.VideoFrame]], short_side: int | None
) -> tuple[Tensor, int]:
    """The clip (n, 3, H, W) of the numbered frames in `order`, others ignored, and how many frames there were in all."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(order):
        places.setdefault(number, []).append(place)
    reformatter = VideoReformatter()  # one for all frames: it keeps its tables
    clip = torch.empty((0, 0, 0, 3), dtype=torch.uint8)  # (n, H, W, 3) from the first frame on
    width = height = turns = count = 0
    for number, frame in frames:
        count += 1
        if number not in places:
            continue
        if not width:
            width, height, turns = frame.width, frame.height, round(frame.rotation / 90)
            if short_side is not None and short_side < min(width, height):
                width, height = scaled_size(width, height, short_side)
        rgb = reformatter.reformat(frame, width, height, "rgb24", threads=1)
        picture = torch.from_numpy(rgb.to_ndarray()).rot90(turns)
        if not len(clip):
            clip = picture.new_empty((len(order), *picture.shape))
        for place in places[number]:
            clip[place] = picture
    return clip.movedim(-1, 1), count


# A video file: its packets, in decoding order, and their frames


@contextmanager
def _open(path: Path, *, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream. An error of FFmpeg inside the block becomes a VideoError.

    More than one thread loses good frames beside bad ones, so it is for what is checked afterwards.
    """
    try:
        file, start, size = _bytes_of(path)
        if not file.is_file():
            raise VideoError(
                path, "neither a file nor a folder" if file.exists() else "no such file"
            )
        length = file.stat().st_size
        if length == 0 or size == 0:
            raise VideoError(path, "the file is empty")
        url = f"file:{file}"  # without "file:", a name like a:b would be a protocol's
        if size is not None:
            if start + size > length:
                raise VideoError(
                    path, f"{file.name} has only {length} bytes: it changed since it was listed"
                )
            url = f"subfile,,start,{start},end,{start + size},,:{url}"
        with av.open(url, metadata_errors="replace") as container:
            if container.format.name == "tty":  # FFmpeg would draw the letters of a text file
                raise VideoError(path, "a text file, not a video")
            streams = [
                one
                for one in container.streams.video
                if not one.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise VideoError(path, "no video stream")
            codec = streams[0].codec_context
            if codec is None:
                raise VideoError(path, "no decoder for its video stream")
            codec.thread_type = "FRAME"
            codec.thread_count = threads
            yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, reason(error)) from error


def tar_address(archive: Path, name: str, start: int, size: int) -> Path:
    """The path that stands for `size` bytes of a tar file from byte `start` on, the member `name`: archive@start+size/name."""
    return Path(f"{archive}@{start}+{size}/{name}")


def _bytes_of(path: Path) -> tuple[Path, int, int | None]:
    """The file that a path stands for, and at which byte the video in it starts and how many it has (None: all of them)."""
    parts = _IN_TAR.match(str(path))
    return (Path(parts[1]), int(parts[2]), int(parts[3])) if parts else (path, 0, None)


def _is_folder(path: Path) -> bool:
    try:
        return not _IN_TAR.match(str(path)) and path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be searched
        raise VideoError(path, reason(error)) from error


def reason(error: av.FFmpegError | OSError) -> str:
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[_Packet]:
    """The packets from where the container stands up to the first that cannot be read; an empty one would end the decoder."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError:
        return


def _decoded(stream: VideoStream, packets: Iterable[_Packet]) -> Iterator[av.VideoFrame]:
    """The frames of the packets, in presentation order. FFmpegError, the first one, if errors are all that comes."""
    failure, came = None, False
    for packet in chain(packets, [None]):  # None: what waits in the decoder
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            failure = failure or error
            continue
        came = came or bool(frames)
        yield from frames
    if failure and not came:
        raise failure


class _TimelineError(Exception):
    """The frames that come are not those that the packets announced."""


@dataclass(frozen=True)
class _Timeline:
    """Which frames the packets announce, found without decoding any."""

    frames: int
    is_reordered: bool  # whether packets come in another order than their times
    times: list[
        int
    ]  # presentation time of each frame, increasing; empty if the packets cannot be relied on for that
    keys: list[
        tuple[int, int]
    ]  # presentation and decoding time of the packets that decoding can start from

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> _Timeline:
        """Read all packets of the stream."""
        codec = stream.codec_context.codec.canonical_name
        times: list[int] = []
        keys: list[tuple[int, int]] = []
        frames, whole = 0, True
        for packet in _packets(container, stream):
            whole = whole and not packet.is_corrupt and (bool(keys) or packet.is_keyframe)
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if packet.is_discard or is_hidden(codec, memoryview(packet)):
                continue
            frames += 1
            if packet.pts is not None:
                times.append(packet.pts)
        is_reordered = any(later < earlier for earlier, later in pairwise(times))
        times.sort()
        reliable = (
            whole
            and len({*times}) == frames > 0
            and times[0]
            >= keys[0][0]  # no frame refers to what came before the file's first packet
            and all(first[0] < second[0] for first, second in pairwise(keys))
        )
        return cls(frames, is_reordered, times if reliable else [], keys)


def _by_seeking(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, wanted: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames with these increasing numbers, decoded from the key frames before them, and those in between that they need."""
    needed = {timeline.times[number] for number in wanted}
    spared: set[int | None] = (
        set()
    )  # times of pictures that are neither wanted nor referred to by others
    key_times = [time for time, _ in timeline.keys]
    frames: Iterator[av.VideoFrame] = iter(())
    upcoming = -_REACH - 1  # number of the next frame; at first, out of reach of any
    for number in wanted:
        key = bisect_right(key_times, timeline.times[number]) - 1
        first = bisect_left(timeline.times, key_times[key])
        if first > upcoming + _REACH:
            packets = _from_key(container, stream, *timeline.keys[key])
            if timeline.is_reordered and stream.codec_context.codec.canonical_name == "h264":
                packets = _sparing(stream, packets, needed, spared)
            frames, upcoming = _shown_from(key_times[key], _decoded(stream, packets)), first
        for frame in frames:
            while timeline.times[upcoming] in spared:
                upcoming += 1
            if frame.pts != timeline.times[upcoming]:
                raise _TimelineError
            upcoming += 1
            if upcoming > number:
                yield number, frame
                break
        else:
            raise _TimelineError


def _from_key(
    container: InputContainer, stream: VideoStream, time: int, decoding_time: int
) -> Iterator[_Packet]:
    """The packets from a key frame on."""
    container.seek(decoding_time, stream=stream)
    return dropwhile(lambda packet: packet.pts != time, _packets(container, stream))


def _sparing(
    stream: VideoStream, packets: Iterable[_Packet], needed: set[int], spared: set[int | None]
) -> Iterator[_Packet]:
    """The packets without those that no frame at the times `needed` can refer to; their times go into `spared`."""
    extradata = stream.codec_context.extradata
    for packet in packets:
        if packet.pts not in needed and is_disposable(bytes(packet), extradata):
            spared.add(packet.pts)
        else:
            yield packet


def _shown_from(time: int, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames without those shown before a key frame, which refer to earlier packets."""
    return (frame for frame in frames if frame.pts is None or frame.pts >= time)


def _by_counting(
    path: Path, choose: Callable[[int], Sequence[int]], guess: int, short_side: int | None
) -> Tensor:
    """The clip from decoding the whole file, and once more if it holds another number of frames than guessed."""
    for _ in range(2):
        if not guess:
            raise VideoError(path, _NOTHING)
        order = _chosen(choose, guess)
        with _open(path) as (container, stream):
            clip, frames = _collect(
                order, enumerate(_decoded(stream, _packets(container, stream))), short_side
            )
        if frames == guess:
            return clip
        guess = frames
    raise VideoError(path, "each time it is decoded, it holds another number of frames")


# A folder of images


def _image_files(folder: Path) -> list[Path]:
    """The frames of a folder, by number. If names differ by more than that, those that start with img, image or frame."""
    groups: dict[str, list[tuple[int, Path]]] = {}
    try:
        names = files_of(folder)
    except OSError as error:
        raise VideoError(folder, reason(error)) from error
    if names.videos:
        videos = first_names([folder / name for name in names.videos])
        raise VideoError(folder, f"holds videos, so it is no folder of frames: give {videos}")
    for file in (folder / name for name in names.images):
        parts = _LAST_NUMBER.fullmatch(file.stem)
        group, number = (f"{parts[1]}#{parts[3]}", int(parts[2])) if parts else (file.stem, 0)
        groups.setdefault(group, []).append((number, file))
    if not groups:
        raise VideoError(folder, "a folder without images")
    named = [group for group in groups if group.lower().startswith(("img", "image", "frame"))]
    chosen = [*groups] if len(groups) == 1 else named
    if len(chosen) != 1:
        kinds = ", ".join(sorted(groups)[:5])
        raise VideoError(
            folder,
            f"images of {len(groups)} kinds ({kinds}), and not exactly one is named img, image or frame",
        )
    return [file for _, file in sorted(groups[chosen[0]])]


def _decode_image(file: Path) -> av.VideoFrame:
    try:
        data = file.read_bytes()
        name = _IMAGE_CODECS.get(data[:2])
        if name is None:
            raise VideoError(file.parent, f"{file.name}: not a JPEG, PNG, WebP or BMP image")
        codec = av.CodecContext.create(name, "r")
        codec.thread_count = 1
        frames = codec.decode(av.Packet(data)) + codec.decode(None)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(file.parent, f"{file.name}: {reason(error)}") from error
    if not frames:
        raise VideoError(file.parent, f"{file.name}: {_NOTHING}")
    return frames[0]
