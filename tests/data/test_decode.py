"""Are the frames that are read the frames of a plain decoding, and is every broken file named?"""

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tests.videos_for_tests import DAMAGED, GOP, encode, every, only, picture, sequential, upright
from zeroi2v.data import timeline
from zeroi2v.data.decode import VideoInfo, read_clip, scan
from zeroi2v.data.encode import write_video
from zeroi2v.data.video_files import VideoPacket, decoded
from zeroi2v.errors import VideoError


def noting(
    given: list[int], choose: Callable[[int], Sequence[int]]
) -> Callable[[int], Sequence[int]]:
    """The choice `choose`, which also notes in `given` the number of frames that it is given."""

    def noted(num_frames: int) -> Sequence[int]:
        given.append(num_frames)
        return choose(num_frames)

    return noted


OPEN_GOP = {
    "preset": "veryfast",
    "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3",
}
HIDDEN = {
    "auto-alt-ref": "1",
    "lag-in-frames": "16",
    "arnr-maxframes": "5",
    "b": "200k",
    "cpu-used": "5",
}
KINDS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "gop.mp4": ("libx264", GOP, {}),
    "open_gop.mp4": ("libx264", OPEN_GOP, {}),
    "open_gop.mkv": ("libx264", OPEN_GOP, {}),
    "open_gop.ts": ("libx264", OPEN_GOP, {}),
    "intra_refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:keyint=20"}, {}),
    "fragments.mp4": ("libx264", GOP, {"container_format": "ismv"}),
    "hevc_open_gop.mp4": (
        "libx265",
        {"x265-params": "open-gop=1:keyint=12:min-keyint=12:log-level=none", "preset": "ultrafast"},
        {},
    ),
    "reordered_h264.avi": ("libx264", GOP, {}),
    "reordered_mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "program_stream.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "no_timestamps.h264": ("libx264", GOP, {"container_format": "h264"}),
    "hidden_vp8.webm": ("libvpx", HIDDEN, {}),
    "hidden_vp9.webm": ("libvpx-vp9", HIDDEN, {}),
    "intra_only.avi": ("mjpeg", {}, {"pixels": "yuvj420p"}),
    "odd_size_444.mp4": ("libx264", GOP, {"pixels": "yuv444p", "size": (97, 63)}),
    "alpha.mov": ("qtrle", {}, {"pixels": "argb"}),
    "ten_bits.mkv": ("ffv1", {}, {"pixels": "yuv420p10le"}),
    "palette.gif": ("gif", {}, {"pixels": "rgb8"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_of_a_plain_decoding(tmp_path: Path, name: str) -> None:
    codec, options, rest = KINDS[name]
    path = encode(tmp_path / name, codec, options, **rest)
    expected = torch.stack([upright(frame) for frame in sequential(path)])
    assert len(expected) == 60
    given: list[int] = []
    assert torch.equal(read_clip(path, every), expected)
    for number in range(60):
        assert torch.equal(read_clip(path, noting(given, only(number)))[0], expected[number]), (
            number
        )
    order = [59, 0, 31, 31, 12]
    assert torch.equal(read_clip(path, only(*order)), expected[order])
    assert {*given} == {60}


def frames_decoded(monkeypatch: pytest.MonkeyPatch, path: Path, order: Sequence[int]) -> int:
    """How many frames are decoded when a clip is read."""
    count = 0

    def counting(stream: VideoStream, packets: Iterable[VideoPacket]) -> Iterator[av.VideoFrame]:
        nonlocal count
        for frame in decoded(stream, packets):
            count += 1
            yield frame

    monkeypatch.setattr(timeline, "decoded", counting)
    read_clip(path, only(*order))
    return count


def test_a_frame_costs_no_more_than_its_group_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "gop.mp4", "libx264", GOP, frames=240)
    assert frames_decoded(monkeypatch, path, [239]) <= 12
    assert frames_decoded(monkeypatch, path, [5, 125, 130, 239]) <= 6 + 11 + 12


def test_frames_of_one_group_of_pictures_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "gop.mp4", "libx264", {"g": "120", "sc_threshold": "0"}, frames=60)
    assert frames_decoded(monkeypatch, path, [40, 7, 7, 50, 3]) <= 51


def test_what_no_wanted_frame_refers_to_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three frames are B frames that no other frame refers to.

    H.264 packets have two forms; there is a file of each.
    """
    options = {
        "g": "120",
        "x264-params": "scenecut=0:bframes=2:b-adapt=0:b-pyramid=none:keyint=120",
    }
    for name in ("lengths.mp4", "start_codes.ts"):
        path = encode(tmp_path / name, "libx264", options, frames=61)
        with av.open(str(path)) as container:
            kinds = [frame.pict_type for frame in container.decode(video=0)]
        plain = [number for number, kind in enumerate(kinds) if kind != 3]
        assert len(plain) < 25  # or the test would prove nothing
        order = [10, 50, 51]
        with monkeypatch.context() as patch:
            assert frames_decoded(patch, path, order) <= len({*plain, *order})
        assert torch.equal(read_clip(path, only(*order)), read_clip(path, every)[order])


def real_videos(shared_data: Path) -> list[tuple[Path, dict[str, str]]]:
    folder = shared_data / "varied_clips"
    with (folder / "index.csv").open() as file:
        return [(folder / row["path"], row) for row in csv.DictReader(file)]


def test_real_videos_hold_the_frames_that_the_index_says(shared_data: Path) -> None:
    wrong = {}
    for path, row in real_videos(shared_data):
        frames = int(row["frames_decoded"] or 0)
        given: list[int] = []
        try:
            clip = read_clip(path, noting(given, lambda n: [n - 1, 0, n // 3, n // 2, n // 3]))
        except VideoError as error:
            if frames or error.reason not in (
                "no video stream",
                DAMAGED,
            ):
                wrong[path.name] = str(error)
            continue
        order = [frames - 1, 0, frames // 3, frames // 2, frames // 3]
        expected = {
            number: upright(frame)
            for number, frame in enumerate(sequential(path))
            if number in order
        }
        if given[-1] != frames or not torch.equal(
            clip, torch.stack([expected[number] for number in order])
        ):
            wrong[path.name] = f"{given} of {frames}"
    assert wrong == {}


def test_a_scan_says_what_the_index_says(shared_data: Path) -> None:
    for path, row in real_videos(shared_data):
        if path.suffix == ".avi" or not int(row["frames_decoded"] or 0):
            continue
        info = scan(path)
        size = [int(row["width"]), int(row["height"])]
        assert info.frames == int(row["frames_decoded"] or 0), path.name
        assert [info.width, info.height] == (size[::-1] if int(row["rotation"]) % 180 else size), (
            path.name
        )
        assert read_clip(path, only(0)).shape == (1, 3, info.height, info.width), path.name


def test_a_scan_measures_seconds_and_the_size_on_display(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "x.mp4", "libx264", GOP, prepare=lambda stream: stream.set_display_rotation(90)
    )
    info = scan(path)
    assert (info.frames, info.width, info.height) == (60, 64, 96)
    assert info.seconds == pytest.approx(60 / 30)
    assert scan(encode(tmp_path / "one.mp4", "libx264", frames=1)).seconds is None


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_is_turned_as_its_container_says(tmp_path: Path, degrees: int) -> None:
    """Pixels that are stored turned come back upright.

    The display matrix turns anticlockwise, as `set_display_rotation` does.
    """
    plain = encode(tmp_path / "plain.mp4", "libx264", {"crf": "1"}, pixels="yuv444p", frames=2)
    turned = tmp_path / "turned.mp4"
    with av.open(str(turned), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        width, height = (64, 96) if degrees % 180 else (96, 64)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.set_display_rotation(degrees)
        for number in range(2):
            pixels = np.rot90(picture(number, 96, 64), -degrees // 90).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    one, other = read_clip(plain, every), read_clip(turned, every)
    assert one.shape == other.shape
    assert (one.float() - other.float()).abs().mean() < 3


@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)]
)
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_matrix_and_the_range(
    tmp_path: Path, matrix: int, red: float, blue: float, full: bool
) -> None:
    wanted = np.array([200, 60, 30])
    r, g, b = wanted / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)]
    planes = [255 * luma, 255 * chroma[0] + 128, 255 * chroma[1] + 128]
    if not full:
        planes = [16 + 219 * luma, 128 + 224 * chroma[0], 128 + 224 * chroma[1]]
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 2 if full else 1, matrix
        frame = av.VideoFrame(64, 64, "yuv444p")
        for plane, value in zip(frame.planes, planes, strict=True):
            plane.update(np.full(plane.buffer_size, round(value), np.uint8).tobytes())
        frame.color_range, frame.colorspace = 2 if full else 1, matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_clip(path, every)[0].float().mean((1, 2)).numpy()
    assert np.abs(found - wanted).max() <= 2


def test_scaling_down_keeps_the_aspect_and_is_near_torchvisions(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp4", "libx264", {"crf": "10"}, size=(320, 180), frames=3)
    full, small = read_clip(path, every), read_clip(path, every, short_side=45)
    assert small.shape == (3, 3, 45, 80)
    assert (small.float() - F.resize(full, [45, 80], antialias=True).float()).abs().mean() < 3
    assert torch.equal(read_clip(path, every, short_side=180), full)
    assert torch.equal(read_clip(path, every, short_side=500), full)
    turned = encode(
        tmp_path / "y.mp4",
        "libx264",
        size=(320, 180),
        frames=3,
        prepare=lambda stream: stream.set_display_rotation(90),
    )
    assert read_clip(turned, every, short_side=45).shape == (3, 3, 80, 45)


def test_a_change_of_size_within_a_video_is_scaled_to_the_first_frame(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{w}.h264", "libx264", size=(w, h), container_format="h264")
        for w, h in ((96, 64), (160, 90))
    ]
    both = tmp_path / "both.h264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read_clip(both, every)
    assert clip.shape == (120, 3, 64, 96)
    assert torch.equal(clip[:60], read_clip(parts[0], every))
    expected = F.resize(read_clip(parts[1], every), [64, 96], antialias=True)
    assert (clip[60:].float() - expected.float()).abs().mean() < 3


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(picture(0, 32, 32)).save(jpeg, "JPEG")
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        container.mux(packet)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # or the test would prove nothing
    with pytest.raises(VideoError, match="no video stream"):
        read_clip(path, every)


@pytest.mark.parametrize("name", ["a:b.mp4", "%03d.mp4", "naïve 視頻.mp4", "-i.mp4"])
def test_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path(name), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), fps=8)
    assert len(read_clip(Path(name), every)) == 2


def test_metadata_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "x.avi", "mpeg4", prepare=lambda stream: stream.metadata.update(title="TITLE")
    )
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"caf\xe9\xff"))
    assert b"caf\xe9\xff" in path.read_bytes()
    assert len(read_clip(path, every)) == 60


def test_of_a_truncated_file_what_is_there_is_read(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mkv", "libx264", GOP)
    whole = read_clip(path, every)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    part = read_clip(path, every)
    assert 20 < len(part) < 50
    assert torch.equal(
        part[:-3], whole[: len(part) - 3]
    )  # the last ones may lack what they refer to
    assert scan(path).frames == len(part)


def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.avi", "mjpeg", pixels="yuvj420p")
    whole = read_clip(path, every)
    data = path.read_bytes()
    start = data.index(b"\xff\xd8", len(data) // 2)
    path.write_bytes(data[:start] + bytes(200) + data[start + 200 :])
    part = read_clip(path, every)
    assert scan(path).frames == len(part) == 59
    kept = [any(torch.equal(frame, other) for other in part) for frame in whole]
    assert kept.count(False) == 1
    assert torch.equal(part, whole[torch.tensor(kept)])


@pytest.mark.parametrize(
    ("codec", "damaged"), [("libx264", 12), ("libx264", 13), ("mpeg2video", 12)]
)
def test_after_a_lost_part_of_a_broadcast_every_frame_is_still_that_of_a_plain_decoding(
    tmp_path: Path, codec: str, damaged: int
) -> None:
    """No key frame is then a frame to start from.

    What the decoder puts in the place of the lost part depends on the frames before it.
    """
    path = encode(tmp_path / "x.ts", codec, {"g": "12", "bf": "2"}, size=(160, 128))
    whole = read_clip(path, every)
    data = path.read_bytes()
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    begins = [  # of each frame: the first packet of a payload of the video's, programme 256
        place for place, packet in enumerate(packets) if packet[1] & 0x5F == 0x41 and packet[2] == 0
    ]
    assert begins[damaged + 1] - begins[damaged] >= 2
    del packets[begins[damaged] + 1 : begins[damaged + 1]]
    path.write_bytes(b"".join(packets))
    expected = torch.stack([upright(frame) for frame in sequential(path)])
    assert not torch.equal(expected[: len(whole)], whole[: len(expected)])
    for number in range(0, len(expected), 4):
        assert torch.equal(read_clip(path, only(number))[0], expected[number]), number


def broken(folder: Path, name: str) -> Path:
    """A file that is no video, in the way that its name tells."""
    path = folder / name
    if name.startswith("notes"):
        path.write_text("Nothing to see here.\n" * 50)
    elif name.startswith("photograph"):
        kind = name.removeprefix("photograph_").removesuffix(".mp4")
        Image.fromarray(picture(0, 96, 64)).save(path, format=kind)
    elif name == "zeros.mkv":
        path.write_bytes(bytes(3000))
    elif name != "missing.mp4":
        data = encode(folder / "x.mp4", "libx264").read_bytes()
        half = data[:2000]  # the table of contents, at the end, is lost
        unknown = data.replace(b"avc1", b"zzzz")
        path.write_bytes(
            {"junk.mp4": data[::-1], "empty.mp4": b"", "codec.mp4": unknown, "half.mp4": half}[name]
        )
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.mp4", "no such file"),
        ("notes.txt", "a text file, not a video"),
        ("notes.mp4", DAMAGED),
        ("junk.mp4", DAMAGED),
        ("zeros.mkv", DAMAGED),
        ("empty.mp4", "the file is empty"),
        ("codec.mp4", "no decoder for its video stream"),
        ("half.mp4", DAMAGED),
        *(
            (
                f"photograph_{kind}.mp4",
                "an image, not a video; give a video file or a folder of images",
            )
            for kind in ("png", "jpeg", "webp", "bmp", "tiff")
        ),
    ],
)
def test_a_broken_video_is_named_and_ffmpeg_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    path = broken(tmp_path, name)
    capfd.readouterr()
    for use in (lambda: read_clip(path, every), lambda: scan(path)):
        with pytest.raises(VideoError) as caught:
            use()
        assert (caught.value.path, caught.value.reason) == (str(path), reason)
    assert capfd.readouterr() == ("", "")


def test_a_choice_beyond_the_video_is_a_defect_of_the_caller(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp4", "libx264", frames=4)
    for order in ([4], [-1], []):
        with pytest.raises(IndexError):
            read_clip(path, only(*order))


def test_a_written_video_is_read_back(tmp_path: Path) -> None:
    frames = torch.from_numpy(
        np.stack([picture(4 * number, 96, 64) for number in range(20)])
    ).permute(0, 3, 1, 2)
    path = tmp_path / "x.mp4"
    write_video(path, frames, fps=8)
    found = read_clip(path, every)
    assert found.shape == frames.shape
    errors = (found.float() - frames.float()).abs().mean((1, 2, 3))
    assert errors.max() < 12  # colours at half resolution
    assert scan(path) == VideoInfo(frames=20, seconds=2.5, width=96, height=64)
    again = tmp_path / "y.mp4"
    rng = np.random.default_rng(0)
    for _ in range(10):
        sizes = rng.integers(1_000, 300_000, 200)
        leftover = [
            rng.bytes(int(size)) for size in sizes
        ]  # for an encoder that reads memory it never set
        del leftover
        write_video(again, frames, fps=8)
        assert again.read_bytes() == path.read_bytes()
    write_video(again, frames, fps=8, crf=40)
    assert again.stat().st_size < path.stat().st_size
    assert {file.name for file in tmp_path.iterdir()} == {"x.mp4", "y.mp4"}


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match=r"x\.mp4: cannot be written: file exists"):
        write_video(tmp_path / "file" / "x.mp4", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), fps=8)
    with pytest.raises(ValueError, match="even width and height, got 7x8"):
        write_video(tmp_path / "x.mp4", torch.zeros(2, 3, 8, 7, dtype=torch.uint8), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LOGGED = """
import logging, sys
import av.logging
from pathlib import Path
from zeroi2v.data.video_files import open_video

logging.getLogger("libav").addHandler(logging.NullHandler())
av.logging.set_level(av.logging.DEBUG)
for _ in range(50):
    with open_video(Path(sys.argv[1]), threads=2) as (container, stream):
        next(container.decode(stream))
"""


def test_a_video_is_closed_while_its_threads_log_messages(motion_videos: Path) -> None:
    """Libraries, torchvision for one, turn on FFmpeg's messages. A process that hangs is killed."""
    video = next(motion_videos.rglob("*.mp4"))
    subprocess.run([sys.executable, "-c", LOGGED, str(video)], check=True, timeout=60)
