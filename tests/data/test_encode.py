"""Does a copy of a video hold every frame, upright, in its order and at its time?"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from zeroi2v.data.decode import all_frames, read_clip, scan
from zeroi2v.data.encode import write_frames, write_video
from zeroi2v.errors import VideoError


def numbered(
    path: Path, times: list[int], *, size: tuple[int, int] = (96, 64), time_base: int = 1000
) -> Path:
    """A video whose frame i has the grey level 3 i and is shown at `times[i]` / `time_base` s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        stream.codec_context.time_base = Fraction(1, time_base)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 3 * number, np.uint8))
            frame.pts, frame.time_base = time, Fraction(1, time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def greys(path: Path) -> list[int]:
    clip = read_clip(path, range).float()
    return [round(value / 3) for value in clip.mean((1, 2, 3)).tolist()]


def test_frames_at_uneven_times_stay_in_order_and_keep_their_times(tmp_path: Path) -> None:
    times = [0, 20, 25, 400, 401, 402, 1000, 5000, 5001, 5100] + [
        6000 + 7 * i * i for i in range(60)
    ]
    source = numbered(tmp_path / "x.mkv", times)
    assert times_of(source) == pytest.approx(
        [time / 1000 for time in times]
    )  # or the test would prove nothing
    write_frames(tmp_path / "y.mp4", all_frames(source), short_side=256, keyframes=16, crf=10)
    assert greys(tmp_path / "y.mp4") == [*range(70)]
    assert times_of(tmp_path / "y.mp4") == pytest.approx([time / 1000 for time in times], abs=1e-4)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((97, 63), 256, (96, 62)),
        ((341, 256), 64, (84, 64)),
        ((64, 641), 32, (32, 320)),
        ((33, 500), 32, (32, 484)),
    ],
)
def test_sizes_become_even_and_small_videos_stay_small(
    tmp_path: Path, size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    source = numbered(tmp_path / "x.mkv", [0, 33, 67], size=size)
    write_frames(
        tmp_path / "y.mp4", all_frames(source), short_side=short_side, keyframes=16, crf=20
    )
    found = scan(tmp_path / "y.mp4")
    assert (found.width, found.height, found.frames) == (*expected, 3)


def test_key_frames_are_no_farther_apart_than_asked(tmp_path: Path) -> None:
    source = tmp_path / "x.mp4"
    write_video(source, torch.randint(256, (70, 3, 64, 64), dtype=torch.uint8), fps=30)
    write_frames(tmp_path / "y.mp4", all_frames(source), short_side=64, keyframes=16, crf=20)
    with av.open(str(tmp_path / "y.mp4")) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0
    assert max(b - a for a, b in zip(keys, [*keys[1:], 70], strict=True)) <= 16


@pytest.mark.parametrize(
    ("codec", "ending", "pixels"),
    [
        ("libx264rgb", "mkv", "bgr24"),
        ("ffv1", "mkv", "bgra"),
        ("png", "avi", "rgb24"),
        ("rawvideo", "avi", "bgr24"),
        ("libvpx-vp9", "webm", "gbrp"),
        ("ffv1", "mkv", "gray"),
        ("ffv1", "mkv", "yuv444p"),
        ("mjpeg", "avi", "yuvj420p"),
    ],
)
def test_a_copy_names_colours_that_yuv_can_have_and_shows_the_same(
    tmp_path: Path, codec: str, ending: str, pixels: str
) -> None:
    """Large areas of strong colours, whose edges H.264 at half the resolution keeps."""
    colours = np.array([[[200, 40, 30], [20, 180, 60]], [[90, 90, 220], [240, 230, 120]]], np.uint8)
    source = tmp_path / f"x.{ending}"
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(colours.repeat(32, 0).repeat(48, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_frames(tmp_path / "y.mp4", all_frames(source), short_side=256, keyframes=16, crf=4)
    with av.open(str(tmp_path / "y.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name.startswith("yuv")
    assert frame.colorspace != 0  # RGB, which players would believe
    shown, expected = (read_clip(path, range).float() for path in (tmp_path / "y.mp4", source))
    assert (shown - expected).abs()[..., 4:28, 4:44].mean() < 3
    assert (shown - expected).abs().mean() < 4


@pytest.mark.slow
def test_copies_of_real_videos_show_the_same(shared_data: Path, tmp_path: Path) -> None:
    copied = 0
    for source in sorted((shared_data / "varied_clips").glob("*/*")):
        try:
            frames = read_clip(source, range, short_side=128)
        except VideoError:
            continue
        write_frames(tmp_path / "y.mp4", all_frames(source), short_side=128, keyframes=16, crf=16)
        found = read_clip(tmp_path / "y.mp4", range)
        assert len(found) == len(frames), source
        assert max(abs(a - b) for a, b in zip(found.shape, frames.shape, strict=True)) <= 1, (
            source
        )  # an odd side
        same_size = F.resize(frames, found.shape[-2:], antialias=True)
        difference = (found.float() - same_size.float()).abs().mean((1, 2, 3))
        assert difference.mean() < 6, source
        if source.stem in (
            "video_90",
            "video_180",
            "video_270",
        ):  # the other way up it would be far off
            turned = (found.flip(-1, -2).float() - same_size.float()).abs().mean()
            assert difference.mean() < turned / 2, source
        copied += 1
    assert copied > 25


def test_a_copy_that_cannot_be_finished_has_no_name(tmp_path: Path) -> None:
    source = numbered(tmp_path / "x.mkv", [33 * number for number in range(20)])

    def breaking_off() -> object:
        for number, frame in enumerate(all_frames(source)):
            if number == 10:
                raise KeyboardInterrupt
            yield frame

    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "y.mp4", breaking_off(), short_side=64, keyframes=16, crf=20)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mkv"]
