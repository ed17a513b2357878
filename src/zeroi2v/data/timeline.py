"""Which frames does a video file hold, and how is each frame decoded from the key frame before it?

Packets tell when their frames are shown, before anything is decoded. Where the packets cannot be
relied on, the timeline says so: frames have to be counted while the whole file is decoded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from typing import TYPE_CHECKING, Final

from zeroi2v.data.display import Orientation, oriented
from zeroi2v.data.packets import is_disposable, is_hidden, is_one_mpeg4_picture
from zeroi2v.data.video_files import VideoPacket, decoded, packets_of

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import PktSideDataT
    from av.video.stream import VideoStream

# In frames. A key frame that is at most so far ahead is reached sooner by decoding than by seeking.
_REACH: Final = 8

# Side data that a demuxer sends once, with the first packet, and a decoder keeps for later packets.
_SENT_ONCE: Final[tuple[PktSideDataT, ...]] = ("palette", "new_extradata", "param_change")

# Containers that store when each frame is shown. The others store the order of the packets, and
# FFmpeg guesses the times.
_STORES_TIMES: Final = frozenset(
    ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "mpegts", "mpeg", "mxf", "nut", "ivf")
)


class TimelineError(Exception):
    """The frames that come are not the frames that the packets announced."""


@dataclass(frozen=True)
class Timeline:
    """Which frames the packets of a stream announce, found without decoding a frame."""

    frames: int
    packets: int  # also of pictures that are never shown
    is_reordered: bool  # packets come in another order than their frames are shown
    times: list[int]  # when each frame is shown, rising; empty if the packets cannot be relied on
    keys: list[tuple[int, int]]  # presentation and decoding time of each key frame's packet

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> Timeline:
        """Read all packets of the stream."""
        codec = stream.codec_context.codec.canonical_name
        times: list[int] = []
        keys: list[tuple[int, int]] = []
        packets = frames = 0
        is_reliable = stream.codec_context.pix_fmt != "pal8"  # a palette may be sent once
        for packet in packets_of(container, stream):
            packets += 1
            is_reliable = (
                is_reliable and (bool(keys) or packet.is_keyframe) and _is_complete(packet, codec)
            )
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if packet.is_discard or is_hidden(codec, memoryview(packet)):
                continue
            frames += 1
            if packet.pts is not None:
                times.append(packet.pts)
        is_reordered = any(later < earlier for earlier, later in pairwise(times))
        times.sort()
        is_reliable = (
            is_reliable
            and _tells_times(container, stream, only_keys=len(keys) == packets)
            and len({*times}) == frames > 0
            and times[0] >= keys[0][0]  # no frame refers to a packet before the file's first
            and all(first[0] < second[0] for first, second in pairwise(keys))
        )
        return cls(frames, packets, is_reordered, times if is_reliable else [], keys)


def _is_complete(packet: VideoPacket, codec: str) -> bool:
    """Whether a packet is whole, holds one picture, and nothing that later packets need."""
    return (
        not packet.is_corrupt
        and not any(packet.has_sidedata(kind) for kind in _SENT_ONCE)
        and (codec != "mpeg4" or is_one_mpeg4_picture(bytes(packet)))
    )


def _tells_times(container: InputContainer, stream: VideoStream, *, only_keys: bool) -> bool:
    """Whether the times of the packets are the times at which their frames are shown.

    FFmpeg guesses the times that a container does not store. A guess may be wrong where a decoder
    holds frames back, for B frames; it is right for MPEG-4 with one picture in each packet, since
    such a packet tells the type of its picture.
    """
    codec = stream.codec_context
    name = container.format.name
    # In Matroska, a stream with the tag of an AVI file has an AVI file's times.
    has_avi_times = name == "matroska,webm" and bool(stream.codec_tag.strip("\0"))
    if name in _STORES_TIMES and not has_avi_times:
        return True
    if codec.codec.canonical_name == "mpeg4":
        return True
    # Where an AVI file has lost its index, FFmpeg takes every packet for a key frame.
    return not codec.has_b_frames and (codec.codec.intra_only or not only_keys)


def frames_by_seeking(
    container: InputContainer, stream: VideoStream, timeline: Timeline, wanted: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame, Orientation]]:
    """Number, frame and orientation of the frames with these rising numbers.

    A frame is decoded from the key frame before it. TimelineError if the frames that come are not
    the frames of the timeline.
    """
    needed = {timeline.times[number] for number in wanted}
    spared: set[int | None] = set()  # times of pictures neither wanted nor referred to by others
    key_times = [time for time, _ in timeline.keys]
    frames: Iterator[tuple[av.VideoFrame, Orientation]] = iter(())
    upcoming = -_REACH - 1  # number of the next frame; at first, every key frame is out of reach
    for number in wanted:
        key = bisect_right(key_times, timeline.times[number]) - 1
        first = bisect_left(timeline.times, key_times[key])
        if first > upcoming + _REACH:
            packets = _packets_from(container, stream, *timeline.keys[key])
            if timeline.is_reordered and stream.codec_context.codec.canonical_name == "h264":
                packets = _sparing(stream, packets, needed, spared)
            frames = oriented(_shown_from(key_times[key], decoded(stream, packets)))
            upcoming = first
        for frame, orientation in frames:
            while timeline.times[upcoming] in spared:
                upcoming += 1
            if frame.pts != timeline.times[upcoming]:
                raise TimelineError
            upcoming += 1
            if upcoming > number:
                yield number, frame, orientation
                break
        else:
            raise TimelineError


def _packets_from(
    container: InputContainer, stream: VideoStream, time: int, decoding_time: int
) -> Iterator[VideoPacket]:
    """The packets from a key frame on."""
    container.seek(decoding_time, stream=stream)
    return dropwhile(lambda packet: packet.pts != time, packets_of(container, stream))


def _sparing(
    stream: VideoStream, packets: Iterable[VideoPacket], needed: set[int], spared: set[int | None]
) -> Iterator[VideoPacket]:
    """The packets that a frame at one of the times `needed` may need.

    The times of the packets that are left out go into `spared`.
    """
    extradata = stream.codec_context.extradata
    for packet in packets:
        if packet.pts not in needed and is_disposable(bytes(packet), extradata):
            spared.add(packet.pts)
        else:
            yield packet


def _shown_from(time: int, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames that are shown from the `time` of a key frame on.

    A frame that is shown earlier refers to packets before the key frame.
    """
    return (frame for frame in frames if frame.pts is None or frame.pts >= time)
