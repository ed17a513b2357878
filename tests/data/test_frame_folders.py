"""Are the frames of a folder of images those that Pillow reads, in the order of their numbers?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.sources_for_tests import touch
from tests.videos_for_tests import DAMAGED
from zeroi2v.data.decode import read_clip, scan
from zeroi2v.errors import VideoError


def every(num_frames: int) -> range:
    return range(num_frames)


def slope(number: int) -> Image.Image:
    """A picture without symmetry: red grows to the right, green downwards, blue with the number."""
    y, x = np.mgrid[:40, :60]
    return Image.fromarray(
        np.stack([4 * x, 6 * y, np.full_like(x, 2 * number)], -1).astype(np.uint8)
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_the_pictures_that_pillow_reads(tmp_path: Path, kind: str, mode: str) -> None:
    for number in (3, 20, 100):
        slope(number).convert(mode).save(tmp_path / f"frame{number}.{kind.lower()}", kind)
    expected = [
        np.array(Image.open(tmp_path / f"frame{number}.{kind.lower()}").convert("RGB"))
        for number in (100, 3)
    ]
    found = read_clip(tmp_path, lambda num_frames: [num_frames - 1, 0])
    assert (
        found.permute(0, 2, 3, 1).float() - torch.tensor(np.stack(expected)).float()
    ).abs().mean() < 3


def grey(folder: Path, *names: str) -> Path:
    """Grey images, the n-th of brightness 10 n."""
    for number, name in enumerate(names):
        Image.new("L", (8, 8), 10 * number).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10.png", "9.png", "1.PNG"], [2, 1, 0]),
        (["a_10_1.png", "a_2_1.png"], None),
        (["v12_frame_2.png", "v12_frame_10.png", "v12_frame_1.png"], [2, 0, 1]),
        (["img_2.png", "img_1.png", "x_1.png", "y_1.png"], [1, 0]),
        (["Image02.png", "Image01.png", "poster.png"], [1, 0]),
        (["frame_2.png", "frame_1.png", ".frame_0.png"], [1, 0]),
        (["x_1.png", "y_1.png"], None),
        (["img_1.png", "frame_1.png"], None),
    ],
)
def test_the_images_of_a_folder_are_taken_by_number(
    tmp_path: Path, names: list[str], order: list[int] | None
) -> None:
    grey(tmp_path, *names)
    if order is None:
        with pytest.raises(VideoError, match="images of 2 kinds"):
            read_clip(tmp_path, every)
    else:
        assert read_clip(tmp_path, every)[:, 0, 0, 0].tolist() == [10 * number for number in order]
        assert scan(tmp_path).frames == len(order)


def test_real_folders_of_frames(shared_data: Path) -> None:
    folder = shared_data / "frame_folders" / "mmaction2_rawframes" / "imgs"
    clip = read_clip(folder, every)
    assert len(clip) == 10
    for number in (1, 10):
        expected = torch.from_numpy(np.array(Image.open(folder / f"img_{number:05d}.jpg"))).permute(
            2, 0, 1
        )
        assert (clip[number - 1].float() - expected.float()).abs().mean() < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_turned_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    image = slope(40)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "img_1.jpg", exif=exif, quality=95, subsampling=0)
    expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image))).permute(2, 0, 1)
    (found,) = read_clip(tmp_path, every)
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().mean() < 4


@pytest.mark.parametrize(
    ("videos", "folders"),
    [
        (("left/a.mp4", "right/b.mp4"), "left, right"),
        (("train/left/a.mp4", "val/left/b.mp4", "notes.csv"), "train, val"),
        (
            ("a/x/img_1.jpg", "b/x/img_1.jpg", "c/x/img_1.jpg", "d/x/img_1.jpg"),
            "a, b, c and 1 more",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_data_set_in_the_place_of_a_video_is_named(
    tmp_path: Path, videos: tuple[str, ...], folders: str
) -> None:
    touch(tmp_path, *videos)
    for use in (lambda: read_clip(tmp_path, every), lambda: scan(tmp_path)):
        with pytest.raises(VideoError) as caught:
            use()
        assert caught.value.reason == (
            f"a folder of folders ({folders}) without images; give a video file or the folder of "
            "the images of one clip; for a data set, run `zeroi2v eval`"
        )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "a folder without images"),
        (b"\xff\xd8 not a picture", f"img_1.jpg: {DAMAGED.replace('a video', 'an image')}"),
        (b"not a picture", "img_1.jpg: not a JPEG, PNG, WebP or BMP image"),
        (b"", "img_1.jpg: not a JPEG, PNG, WebP or BMP image"),
    ],
)
def test_a_broken_folder_is_named_with_one_reason(
    tmp_path: Path, data: bytes | None, reason: str
) -> None:
    if data is not None:
        (tmp_path / "img_1.jpg").write_bytes(data)
    for use in (lambda: read_clip(tmp_path, every), lambda: scan(tmp_path)):
        with pytest.raises(VideoError) as caught:
            use()
        assert (caught.value.path, caught.value.reason) == (str(tmp_path), reason)


def test_only_the_images_wanted_are_opened(tmp_path: Path) -> None:
    slope(0).save(tmp_path / "img_1.png")
    (tmp_path / "img_2.png").write_bytes(b"never looked at")
    assert len(read_clip(tmp_path, lambda _: [0, 0])) == 2


def test_images_are_scaled_as_videos_are(tmp_path: Path) -> None:
    slope(0).save(tmp_path / "img_1.png")
    slope(9).resize((33, 44)).save(tmp_path / "img_2.png")
    assert read_clip(tmp_path, every).shape == (2, 3, 40, 60)
    assert read_clip(tmp_path, every, short_side=20).shape == (2, 3, 20, 30)
