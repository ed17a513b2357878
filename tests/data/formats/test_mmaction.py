"""Are MMAction's text lists read, of videos and of folders of frames, and odd lines named?"""

from pathlib import Path

import pytest
from PIL import Image

from tests.sources_for_tests import held, refusal, touch, write
from zeroi2v.config import ClipConfig, DataConfig, PixelsConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.loader import train_loader


def test_mmaction_video_lists(tmp_path: Path) -> None:
    write(
        tmp_path / "kinetics400_train_list_videos.txt",
        "some folder/x 1.mp4 11",
        "some folder/y.mp4 2",
    )
    write(tmp_path / "kinetics400_val_list_videos.txt", "z.mp4 0")
    touch(
        tmp_path,
        "videos_train/some folder/x 1.mp4",
        "videos_train/some folder/y.mp4",
        "videos_val/z.mp4",
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == (
        "mmaction",
        tuple(str(number) for number in range(12)),
    )
    assert held(dataset) == {
        "train": [
            ("videos_train/some folder/x 1.mp4", "11"),
            ("videos_train/some folder/y.mp4", "2"),
        ],
        "val": [("videos_val/z.mp4", "0")],
    }
    names = [f"class {number}" for number in range(12)][::-1]
    write(tmp_path / "annotations/label_map_k400.txt", *names)
    assert open_dataset(tmp_path).classes == tuple(names)
    alone = open_dataset(
        tmp_path / "kinetics400_val_list_videos.txt",
        DataConfig(classes=str(tmp_path / "annotations/label_map_k400.txt")),
    )
    assert held(alone) == {"val": [("videos_val/z.mp4", "class 11")]}


LISTS_OF_SPLIT_1 = ("train_split_1_rawframes", "train_split_1_videos", "val_split_1_rawframes")
SEVERAL = "if a video may have several labels, set data.multi_label"
ALSO = (
    "SOURCE/a.mp4 is also at SOURCE/list.txt, line 1, with another label "
    "(keep one of the lines, or set data.multi_label)"
)
TOO_LARGE = "is improbably large; if the number is right, name the classes by data.classes"


def test_mmaction_frame_lists_of_one_official_split(tmp_path: Path) -> None:
    write(tmp_path / "ucf101_train_split_1_rawframes.txt", "YoYo/v_1 160 0")
    write(tmp_path / "ucf101_val_split_1_rawframes.txt", "YoYo/v_2 90 1")
    write(tmp_path / "ucf101_train_split_2_rawframes.txt", "YoYo/v_2 90 1")
    touch(tmp_path, "rawframes/YoYo/v_1/img_00001.jpg", "rawframes/YoYo/v_2/img_00001.jpg")
    assert held(open_dataset(tmp_path)) == {
        "train": [("rawframes/YoYo/v_1", "0")],
        "val": [("rawframes/YoYo/v_2", "1")],
    }
    assert held(open_dataset(tmp_path, DataConfig(split=2), val_share=0))["train"] == [
        ("rawframes/YoYo/v_2", "1")
    ]
    write(tmp_path / "ucf101_train_split_1_videos.txt", "YoYo/v_1.avi 0")
    names = [f"ucf101_{name}.txt" for name in LISTS_OF_SPLIT_1]
    assert refusal(tmp_path) == (
        f"SOURCE: several lists of one split: {', '.join(names)}; give the list to use as DATA"
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a.mp4 0 2"], f"line 1: labels 0, 2; {SEVERAL}"),
        (["clip 40 0 2"], f"line 1: labels 0, 2; {SEVERAL}"),
        (["a.mp4 0", "b.mp4"], "line 2: expected a path and the number of its class, got 'b.mp4'"),
        (
            ["a.mp4 0", "b.mp4 run"],
            "line 2: expected a path and the number of its class, got 'b.mp4 run'",
        ),
        (["clip 0 3"], "line 1: the number of frames must be at least 1"),
        (["a.mp4 0", "b.mp4 -1"], "line 2: no class is called '-1'"),
        (["a.mp4 0", "b.mp4 1", "a.mp4 1"], f"line 3: {ALSO}"),
        (["a.mp4 0", "b.mp4 99999999"], f"line 2: class number 99999999 {TOO_LARGE}"),
    ],
)
def test_odd_lines_of_mmaction_are_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    source = write(touch(tmp_path, "a.mp4", "b.mp4", "clip/img_1.jpg") / "list.txt", *lines)
    assert refusal(source) == f"SOURCE, {expected.replace('SOURCE', str(tmp_path))}".replace(
        f"{source}", "SOURCE"
    )


def test_a_number_beyond_the_named_classes(tmp_path: Path) -> None:
    write(touch(tmp_path, "a.mp4") / "train.txt", "a.mp4 2")
    write(tmp_path / "classes.txt", "run", "walk")
    assert (
        "train.txt, line 1: class number 2, but only 2 classes are there, numbered from 0"
        in refusal(tmp_path)
    )
    write(tmp_path / "classes.txt", "run", "run")
    assert refusal(tmp_path) == "classes.txt: names run twice"


def test_a_batch_is_decoded_from_listed_frame_folders(tmp_path: Path) -> None:
    for number, grey in enumerate((40, 200)):
        for frame in range(1, 6):
            (tmp_path / f"v{number}").mkdir(exist_ok=True)
            Image.new("RGB", (32, 24), (grey,) * 3).save(
                tmp_path / f"v{number}" / f"img_{frame:05d}.jpg"
            )
    source = write(tmp_path / "train.txt", "v0 5 0", "v1 5 1")
    dataset = open_dataset(source, val_share=0)
    loader = train_loader(
        dataset.train,
        clip=ClipConfig(frames=4),
        pixels=PixelsConfig(),
        size=16,
        labels=dataset.classes,
        batch_size=2,
        seed=0,
        workers=0,
        broken="stop",
    )
    ((clips, labels),) = loader.epoch(0)
    assert clips.shape == (2, 4, 3, 16, 16)
    for clip, label in zip(clips, labels, strict=True):
        assert (clip.float() - (40, 200)[int(label)]).abs().max() < 4
