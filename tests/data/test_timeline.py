"""Is a frame the frame of a plain decoding where the packets of its file mislead?"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from tests.videos_for_tests import GOP, encode, every, picture, sequential, upright
from zeroi2v.data.decode import all_frames, read_clip, scan
from zeroi2v.data.encode import write_frames
from zeroi2v.data.video_files import VideoPacket

EMPTY_PICTURE = b"\0\0\1\xb6\x51\x00\x1f"  # of MPEG-4: it is not coded


def expect_plain_decoding(path: Path) -> None:
    """Each frame alone, a choice of frames and all frames are those of a plain decoding."""
    expected = torch.stack([upright(frame) for frame in sequential(path)])
    for number in range(len(expected)):
        frame = read_clip(path, lambda count, number=number: [min(number, count - 1)])[0]
        assert torch.equal(frame, expected[number]), number
    order = [len(expected) - 1, 0, len(expected) // 2]
    assert torch.equal(read_clip(path, lambda _: order), expected[order])
    assert torch.equal(read_clip(path, every), expected)
    assert scan(path).frames == len(expected)


# What is sent once, with the first packet


def colour_tables(count: int) -> list[np.ndarray]:
    """Palettes of 256 opaque colours: (256, 4) ARGB."""
    random = np.random.default_rng(0)
    tables = random.integers(0, 256, (count, 256, 4), dtype=np.uint8)
    tables[..., 0] = 255
    return [*tables]


def with_palette(path: Path, codec: str, table: np.ndarray) -> list[np.ndarray]:
    """A video of 30 pictures with a palette; gives their pixels (H, W, 3)."""
    pictures = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for number in range(30):
            y, x = np.mgrid[:48, :64]
            indices = ((x + y + 5 * number) // 2 % 256).astype(np.uint8)
            pictures.append(table[indices][..., 1:])
            frame = av.VideoFrame.from_ndarray((indices, table), format="pal8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return pictures


@pytest.mark.parametrize(
    "name", ["rawvideo.avi", "rawvideo.mov", "rawvideo.nut", "msrle.avi", "smc.mov", "png.avi"]
)
def test_every_frame_of_a_video_with_a_palette_has_its_colours(tmp_path: Path, name: str) -> None:
    """Two videos that differ in nothing but the palette are two videos."""
    for number, table in enumerate(colour_tables(2)):
        path = tmp_path / f"{number}_{name}"
        expected = with_palette(path, name.partition(".")[0], table)
        clip = read_clip(path, every).movedim(1, -1).numpy()
        assert np.array_equal(clip, np.stack(expected))
        for seen in (29, 13, 0):
            (frame,) = read_clip(path, lambda _, seen=seen: [seen]).movedim(1, -1).numpy()
            assert np.array_equal(frame, expected[seen])
        write_frames(tmp_path / "copy.mp4", all_frames(path), short_side=48, keyframes=16, crf=1)
        copy = read_clip(tmp_path / "copy.mp4", every).movedim(1, -1).numpy()
        assert abs(copy.mean((1, 2)) - clip.mean((1, 2))).max() < 8, "but for clipped colours"


# Times that FFmpeg guesses


def pictures_in(packet: bytes) -> str:
    """The types of the pictures in an MPEG-4 packet, for instance "PB"."""
    return "".join("IPBS"[part[0] >> 6] for part in packet.split(b"\0\0\1\xb6")[1:])


def packed(folder: Path, b_frames: int, marker: bytes, ending: str) -> Path:
    """A packed bitstream: a B picture lies in the packet of the picture that is shown after it.

    An empty picture takes the place of a B picture in the order of the packets.
    """
    options = {"g": "12", "bf": str(b_frames)}
    source = encode(folder / "source.avi", "mpeg4", options, frames=30)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    first, rest = packets[0].split(b"\0\0\1\xb6", 1)
    packets[0] = first + marker + b"\0\0\1\xb6" + rest
    chunks: list[bytes] = []
    for packet in packets:
        if pictures_in(packet) == "B" and pictures_in(chunks[-1]) in ("I", "P"):
            chunks[-1] += packet
        else:
            if chunks and pictures_in(chunks[-1])[-1:] == "B" and pictures_in(packet) != "B":
                chunks.append(EMPTY_PICTURE)
            chunks.append(packet)
    path = folder / f"packed.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = number
            packet.is_keyframe = pictures_in(chunk).startswith("I")
            container.mux(packet)
    assert any(len(pictures_in(chunk)) == 2 for chunk in chunks)
    return path


@pytest.mark.parametrize("ending", ["avi", "mkv", "mp4"])
@pytest.mark.parametrize("b_frames", [1, 2])
@pytest.mark.parametrize("marker", [b"\0\0\1\xb2DivX503b1393p", b""])
def test_frames_of_a_packed_bitstream_are_not_the_next_ones(
    tmp_path: Path, ending: str, b_frames: int, marker: bytes
) -> None:
    expect_plain_decoding(packed(tmp_path, b_frames, marker, ending))


def copied(source: Path, path: Path, change: Callable[[VideoPacket], VideoPacket]) -> Path:
    """A file with the packets of another video, each changed."""
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                changed = change(packet)
                changed.stream = out
                copy.mux(changed)
    return path


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_pictures_without_content_are_no_frames(tmp_path: Path, ending: str) -> None:
    """Some encoders of MPEG-4 write one where a frame repeats the frame before it."""
    source = encode(tmp_path / "source.avi", "mpeg4", {"g": "12"}, frames=30)

    def empty(packet: VideoPacket) -> VideoPacket:
        if packet.pts is None or packet.pts % 7 != 3:
            return packet
        changed = av.Packet(EMPTY_PICTURE)
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.is_keyframe = False
        return changed

    path = copied(source, tmp_path / f"x.{ending}", empty)
    assert len([*sequential(path)]) < 30
    expect_plain_decoding(path)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "flv"])
def test_times_in_the_order_of_the_packets_are_not_believed(tmp_path: Path, ending: str) -> None:
    """As from an encoder that does not know of its own B frames."""
    source = encode(tmp_path / "source.mp4", "libx264", GOP, frames=30)

    def forget(packet: VideoPacket) -> VideoPacket:
        packet.pts = packet.dts
        return packet

    expect_plain_decoding(copied(source, tmp_path / f"x.{ending}", forget))


@pytest.mark.parametrize("codec", ["msmpeg4", "flv", "wmv2", "mpeg4", "libx264", "mjpeg"])
def test_an_avi_file_without_its_index_has_the_same_frames(tmp_path: Path, codec: str) -> None:
    """A recording that broke off has none; FFmpeg then takes any packet for a key frame."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / "x.avi", codec, {"g": "12"}, frames=30, pixels=pixels)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])
    assert len([*sequential(path)]) == 30
    expect_plain_decoding(path)


# Files with several video streams


def with_streams(path: Path, sizes: list[tuple[int, int, int]], dispositions: list[int]) -> Path:
    """A file with a video stream for each (width, height, frames)."""
    with av.open(str(path), "w") as container:
        streams = []
        for (width, height, _), disposition in zip(sizes, dispositions, strict=True):
            stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
            stream.disposition = Disposition(disposition)
            streams.append(stream)
        for (width, height, frames), stream in zip(sizes, streams, strict=True):
            for number in range(frames):
                pixels = picture(number, width, height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode(None))
    return path


PREVIEW, VIDEO = (32, 16, 1), (96, 64, 20)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "mov", "ts", "avi"])
@pytest.mark.parametrize(
    ("sizes", "defaults"),
    [
        ([PREVIEW, VIDEO], [True, True]),
        ([PREVIEW, VIDEO], [False, True]),
        ([VIDEO, PREVIEW], [True, False]),
        ([(32, 16, 20), VIDEO, (160, 90, 1)], [False, True, False]),
    ],
)
def test_of_several_streams_the_video_is_read(
    tmp_path: Path, ending: str, sizes: list[tuple[int, int, int]], defaults: list[bool]
) -> None:
    if len(sizes) == 3 and ending in ("ts", "avi"):
        pytest.skip("the container does not tell which stream is the default")
    default = int(Disposition.default)
    path = with_streams(tmp_path / f"x.{ending}", sizes, [default * flag for flag in defaults])
    clip = read_clip(path, every)
    assert clip.shape == (20, 3, 64, 96)
    expected = torch.from_numpy(np.stack([picture(number, 96, 64) for number in range(20)]))
    assert (clip.movedim(1, -1).float() - expected.float()).abs().mean() < 3
    assert (scan(path).frames, scan(path).width) == (20, 96)


@pytest.mark.parametrize("ending", ["mp4", "mov", "avi"])
def test_a_single_frame_that_players_would_show_is_not_the_video(
    tmp_path: Path, ending: str
) -> None:
    default = int(Disposition.default)
    path = with_streams(tmp_path / f"x.{ending}", [PREVIEW, VIDEO], [default, 0])
    assert (scan(path).frames, scan(path).width) == (20, 96)
    alone = with_streams(tmp_path / f"y.{ending}", [PREVIEW], [default])
    assert (scan(alone).frames, scan(alone).width) == (1, 32)
