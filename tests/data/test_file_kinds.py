"""Are videos told from other files, by their names and by their first bytes?"""

import os
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.videos_for_tests import encode
from zeroi2v.data.decode import read_clip, scan
from zeroi2v.data.file_kinds import files_of, kind_by_name
from zeroi2v.errors import VideoError


def every(num_frames: int) -> range:
    return range(num_frames)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("flv", "flv1"),
        ("asf", "mpeg4"),
        ("mpegts", "libx264"),
        ("mpeg", "mpeg1video"),
        ("mpeg1video", "mpeg1video"),
        ("h264", "libx264"),
        ("ogg", "libtheora"),
        ("ivf", "libvpx"),
        ("yuv4mpegpipe", "rawvideo"),
        ("nut", "mpeg4"),
        ("mxf", "mpeg2video"),
    ],
)
@pytest.mark.parametrize("name", ["clip", "clip.unheard", "clip.0001"])
def test_a_video_with_an_unknown_ending_is_told_by_its_first_bytes(
    tmp_path: Path, container: str, codec: str, name: str
) -> None:
    if container not in av.formats_available or codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {container} with {codec}")
    encode(tmp_path / name, codec, frames=30, container_format=container)
    assert files_of(tmp_path).videos == [name]
    assert scan(tmp_path / name).frames >= 1


CONTENTS = {
    "text": b"The free software that wrote this file is not wide.\n" * 9,
    "text in another encoding": "Größe der Bögen".encode("latin-1"),
    "UTF-16": "notes".encode("utf-16"),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
    "ZIP": b"PK\x03\x04\x14\0\0\0",
    "SQLite": b"SQLite format 3\0\x10\0",
    "shortcut": b"L\0\0\0\x01\x14\x02\0\0\0",
    "icon": b"\0\0\x01\0\x01\0  \0\0",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    "random": bytes(range(7, 256)),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["file", "file.unheard", "Icon\r"])
def test_other_files_with_an_unknown_ending_are_no_videos(
    tmp_path: Path, content: str, name: str
) -> None:
    (tmp_path / name).write_bytes(CONTENTS[content])
    assert files_of(tmp_path).others == [name]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_an_image_with_an_unknown_ending_is_no_video(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image", kind)
    assert files_of(tmp_path).others == ["image"]


def test_an_animated_gif_is_an_image_that_is_not_read(tmp_path: Path) -> None:
    pictures = [Image.new("P", (8, 8), number) for number in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    assert files_of(tmp_path).others == ["a.gif"]


def test_what_cannot_be_opened_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.mp4")  # which a test that opens it would wait for
    files = files_of(tmp_path)
    assert files.videos == ["gone", "pipe.mp4"]  # both are reported when their turn comes
    assert files.others == ["gone.txt", "pipe"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.MP4", "video"),
        ("a.b.mkv", "video"),
        ("a.mp4 ", "video"),
        ("a.360", None),
        ("v_1.5", None),
        ("a", None),
        ("a.JPG", "image"),
        ("a.LRV", "copy"),
        ("a.Thm", "other"),
        ("a.mp4~", "other"),
    ],
)
def test_the_ending_tells_the_kind(name: str, kind: str | None) -> None:
    assert kind_by_name(name) == kind


@pytest.mark.parametrize("use", ["read", "scan"])
@pytest.mark.parametrize("names", [["a.mp4"], ["b.MOV", "a.mp4", "c.avi", "d.mkv"]])
@pytest.mark.parametrize("image", ["cover.jpg", "frame_1.png", None])
def test_a_folder_with_a_video_is_refused_where_a_video_is_wanted(
    tmp_path: Path, names: list[str], image: str | None, use: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    if image:
        Image.new("L", (8, 8)).save(tmp_path / image)
    with pytest.raises(VideoError) as caught:
        _ = read_clip(tmp_path, every) if use == "read" else scan(tmp_path)
    first = ", ".join(str(tmp_path / name) for name in sorted(names)[:3])
    more = " and 1 more" if len(names) > 3 else ""
    assert caught.value.reason == f"holds videos, so it is no folder of frames: give {first}{more}"


def test_side_files_do_not_spoil_a_folder_of_frames(tmp_path: Path) -> None:
    for name in ("Thumbs.db", "README", "times", ".DS_Store", "flow.flo", "a.LRV", "Icon\r"):
        (tmp_path / name).write_bytes(b"0 1 2")
    for number in range(3):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / f"{number}.png")
    assert read_clip(tmp_path, every)[:, 0, 0, 0].tolist() == [0, 10, 20]
