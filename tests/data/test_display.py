"""Are frames shown as players show them: turned, mirrored, and each image of a folder by itself?"""

import gc
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tests.videos_for_tests import encode, every, only, picture, sequential
from zeroi2v.data.decode import all_frames, read_clip, scan
from zeroi2v.data.display import Orientation
from zeroi2v.data.encode import write_frames

Pixels: TypeAlias = NDArray[np.uint8]

# EXIF's orientations, from stored pixels (H, W, 3) to pixels on display, by the EXIF standard
EXIF: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
# The same orientations as a turn anticlockwise and a left-right or upside-down flip after the turn
TURNS = {
    1: (0, False, False),
    2: (0, True, False),
    3: (180, False, False),
    4: (0, False, True),
    5: (90, False, True),
    6: (270, False, False),
    7: (90, True, False),
    8: (90, False, False),
}


def stored(path: Path) -> list[Pixels]:
    """The pixels (H, W, 3) of each frame as stored."""
    return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in sequential(path)]


def shown(path: Path, orientation: int) -> Tensor:
    """The frames of a video on display: (n, 3, H, W)."""
    pixels = np.stack([EXIF[orientation](frame) for frame in stored(path)])
    return torch.from_numpy(pixels).movedim(-1, 1)


def with_orientation(path: Path, orientation: int) -> Path:
    """A video of 20 frames whose container has the display matrix of an orientation."""
    degrees, flips_x, flips_y = TURNS[orientation]
    return encode(
        path,
        "libx264",
        {"crf": "1"},
        frames=20,
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=flips_x, vflip=flips_y),
    )


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("orientation", EXIF)
def test_a_video_is_turned_and_mirrored_as_its_container_says(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    path = with_orientation(tmp_path / f"x.{ending}", orientation)
    expected = shown(path, orientation)
    assert torch.equal(read_clip(path, every), expected)
    assert torch.equal(read_clip(path, only(17)), expected[17:18])
    assert (scan(path).height, scan(path).width) == expected.shape[-2:]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("orientation", [2, 5, 7])
def test_a_copy_of_a_mirrored_video_shows_the_same(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    path = with_orientation(tmp_path / f"x.{ending}", orientation)
    write_frames(tmp_path / "copy.mp4", all_frames(path), short_side=256, keyframes=16, crf=1)
    copy, expected = read_clip(tmp_path / "copy.mp4", every), read_clip(path, every)
    assert copy.shape == expected.shape
    assert (copy.float() - expected.float()).abs().mean() < 2
    assert all(Orientation.of(frame) is None for frame in sequential(tmp_path / "copy.mp4"))


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((1, 0, 0, 1), 1),
        ((-1, 0, 0, 1), 2),
        ((0, 1, 1, 0), 5),
        ((0, -1, -1, 0), 7),
        ((2, 0, 0, 1), 1),  # a scale is no turn
        ((0.9, -0.4, 0.4, 0.9), 1),  # to the nearest quarter turn
        ((-0.9, -0.4, -0.4, 0.9), 2),
        ((0, 0, 0, 0), 1),  # no matrix of a picture
    ],
)
def test_any_matrix_is_read_to_the_nearest_quarter_turn(
    tmp_path: Path, matrix: tuple[float, ...], orientation: int
) -> None:
    """The matrix is written into the track's header, where cameras write theirs."""
    path = encode(tmp_path / "x.mp4", "libx264", frames=3)
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    data = path.read_bytes()
    place = data.index(plain, data.index(b"tkhd"))
    own = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + own + data[place + len(own) :])
    assert torch.equal(read_clip(path, every), shown(path, orientation))


@pytest.mark.parametrize("seen", [[0], [5], [11], [3, 9]])
def test_a_matrix_that_comes_with_the_key_frame_holds_for_the_frames_after_it(
    tmp_path: Path, seen: list[int]
) -> None:
    """H.264 has a display matrix of its own, which FFmpeg attaches to the first frame only."""
    options = {"g": "12", "bf": "0", "sc_threshold": "0"}
    source = encode(tmp_path / "source.mp4", "libx264", options, frames=12)
    path = tmp_path / "x.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        insert = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:flip=horizontal", stream, out
        )
        for packet in container.demux(stream):
            for changed in insert.filter(packet if packet.size else None):
                changed.stream = out
                copy.mux(changed)
    assert [Orientation.of(frame) is None for frame in sequential(path)] == [False] + [True] * 11
    assert torch.equal(read_clip(path, only(*seen)), shown(path, 2)[seen])


def slope(width: int, height: int) -> Image.Image:
    return Image.fromarray(picture(20, width, height))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", EXIF)
def test_an_image_is_turned_and_mirrored_as_pillow_does(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    image = slope(60, 40)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"img_1.{kind.lower()}"
    image.save(path, kind, exif=exif, quality=95, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    (frame,) = read_clip(tmp_path, every).movedim(1, -1).numpy()
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 3
    assert np.abs(frame.astype(int) - EXIF[orientation](np.array(image))).mean() < 4
    assert (scan(tmp_path).height, scan(tmp_path).width) == expected.shape[:2]


def test_each_image_of_a_folder_has_its_own_orientation(tmp_path: Path) -> None:
    """A camera that is turned between two pictures gives pictures that are alike on display."""
    upright = np.array(slope(60, 40))
    undo = {
        6: np.rot90(upright),
        1: upright,
        5: upright.transpose(1, 0, 2),
        2: np.fliplr(upright),
    }
    for number, (orientation, pixels) in enumerate(undo.items()):
        image = Image.fromarray(pixels.copy())
        exif = image.getexif()
        if orientation != 1:
            exif[0x0112] = orientation
        image.save(tmp_path / f"{number}.png", exif=exif)
    clip = read_clip(tmp_path, every)
    assert clip.shape == (4, 3, 40, 60)
    assert all(np.array_equal(frame, upright) for frame in clip.movedim(1, -1).numpy())
    write_frames(tmp_path / "x.mp4", all_frames(tmp_path), short_side=256, keyframes=16, crf=1)
    copy = read_clip(tmp_path / "x.mp4", every)
    assert (copy.float() - clip.float()).abs().mean((1, 2, 3)).max() < 6


def test_frames_leave_the_memory_without_the_garbage_collector(tmp_path: Path) -> None:
    def frames_in_memory() -> int:
        return sum(type(kept) is av.VideoFrame for kept in gc.get_objects())

    path = with_orientation(tmp_path / "a.mp4", 6)
    gc.collect()
    gc.disable()
    try:
        before = frames_in_memory()
        read_clip(path, every)
        assert frames_in_memory() == before
    finally:
        gc.enable()
