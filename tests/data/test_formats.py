"""Is each published data set read as it is published: its classes in their order, its splits, its videos wherever they may lie?

Every test writes a miniature in the published layout, by hand, and knows what is in it.
"""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from zeroi2v.config import ClipConfig, DataConfig, PixelsConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.data.formats.registry import FORMATS
from zeroi2v.data.loader import train_loader
from zeroi2v.errors import ConfigError, DatasetError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def held(dataset: VideoDataset) -> dict[str, list[tuple[str, str]]]:
    """Split -> (path below the source's folder, class) of its videos."""
    root = dataset.source if dataset.source.is_dir() else dataset.source.parent
    return {
        split: [
            (os.path.relpath(video.path, root), dataset.classes[video.label]) for video in videos
        ]
        for split, videos in dataset.splits.items()
    }


def refusal(source: Path, **settings: object) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, DataConfig(**settings))  # type: ignore[arg-type]  # settings of several types
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{source}/", "").replace(str(source), "SOURCE")


# Kinetics

HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = ['"shining shoes",-abC_1,7,17,train', "abseiling,x2,123456,123466,train"]
VAL = ["abseiling,v1,0,10,val"]


def kinetics(folder: Path, *, lists: str = "annotations") -> Path:
    write(folder / lists / "train.csv", HEADER, *TRAIN)
    write(folder / lists / "val.csv", HEADER, *VAL)
    write(
        folder / lists / "test.csv", HEADER.removeprefix("label,"), "t1,5,15,test"
    )  # as released: without labels
    return folder


@pytest.mark.parametrize("lists", ["annotations", "."])
@pytest.mark.parametrize(
    "folders", [("", ""), ("shining_shoes/", "abseiling/"), ("shining shoes/", "abseiling/")]
)
def test_kinetics(tmp_path: Path, lists: str, folders: tuple[str, str]) -> None:
    shoes, rope = folders
    first, second = f"train/{shoes}-abC_1_000007_000017.mp4", f"train/{rope}x2_123456_123466.mkv"
    third = f"val/{rope}v1_000000_000010.mp4"
    touch(
        kinetics(tmp_path, lists=lists),
        first,
        second,
        third,
        "test/t1_000005_000015.mp4",
        "replacement/x2_123456_123466.mp4",
    )
    dataset = open_dataset(tmp_path)
    assert dataset.format == "kinetics"
    assert dataset.classes == ("abseiling", "shining shoes")
    assert held(dataset) == {
        "train": [(first, "shining shoes"), (second, "abseiling")],
        "val": [(third, "abseiling")],
    }
    assert [path.name for path in dataset.ignored] == ["test.csv"]


def test_one_list_of_kinetics_and_videos_elsewhere(tmp_path: Path) -> None:
    kinetics(tmp_path / "lists")
    touch(tmp_path / "disk", "v1_000000_000010.mp4")
    source = tmp_path / "lists" / "annotations" / "val.csv"
    dataset = open_dataset(source, DataConfig(videos=str(tmp_path / "disk")))
    assert [video.path for video in dataset.val] == [tmp_path / "disk/v1_000000_000010.mp4"]
    assert refusal(source, videos=str(tmp_path / "no")).endswith(
        "no: no such folder; data.videos names the folder of the videos"
    )


def test_missing_videos_are_counted_before_training_and_can_be_left_out(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/x2_123456_123466.mp4", "val/other.mp4")
    one, other = "train/-abC_1_000007_000017.mp4", "val/v1_000000_000010.mp4"
    assert refusal(tmp_path) == f"SOURCE: 2 of its 3 videos are missing: {one}, {other}"
    dataset = open_dataset(tmp_path, missing="skip")
    assert held(dataset) == {"train": [("train/x2_123456_123466.mp4", "abseiling")], "val": []}
    assert dataset.classes == (
        "abseiling",
        "shining shoes",
    )  # a class does not depend on what was downloaded
    assert not dataset.held_out
    assert dataset.missing == (tmp_path / one, tmp_path / other)
    assert any("2 videos are missing and left out" in text for text in dataset.warnings)
    kept = open_dataset(tmp_path, missing="keep")
    assert [video.path for video in kept.for_check] == [
        tmp_path / one,
        tmp_path / "train/x2_123456_123466.mp4",
        tmp_path / other,
    ]
    (tmp_path / "train/x2_123456_123466.mp4").unlink()
    with pytest.raises(DatasetError, match=r"3 of its 3 videos are missing"):
        open_dataset(tmp_path, missing="skip")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([",y,0,10,train"], "annotations/train.csv, line 2: the label is empty"),
        (["run,,0,10,train"], "annotations/train.csv, line 2: expected a youtube_id, and whole seconds as time_start and time_end"),
        (["run,y,zero,10,train"], "annotations/train.csv, line 2: expected a youtube_id, and whole seconds as time_start and time_end"),
        (
            ["run,y,0,10,train", "walk,y,0,10,train"],
            "annotations/train.csv, line 3: train/y_000000_000010.mp4 is also at annotations/train.csv, line 2, with another label",
        ),
        (
            ["run,y,0,10,train", *[f",y{number},0,10,train" for number in range(5)]],
            "annotations/train.csv, line 3: the label is empty; annotations/train.csv, line 4: the label is empty; "
            "annotations/train.csv, line 5: the label is empty; and 2 more",
        ),
    ],
)  # fmt: skip
def test_odd_lines_of_kinetics_are_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    touch(kinetics(tmp_path), "train/y_000000_000010.mp4", "val/v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", HEADER, *lines)
    assert refusal(tmp_path) == expected


def test_a_video_in_two_splits_and_two_lists_of_one_split(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", HEADER, "abseiling,v1,0,10,train")
    there = "v1_000000_000010.mp4 is also at annotations/train.csv, line 2, with another split"
    assert refusal(tmp_path) == f"annotations/val.csv, line 2: {there}"
    write(tmp_path / "validate.csv", HEADER, "abseiling,v1,0,10,val")
    assert refusal(tmp_path) == "validate.csv: val.csv lists the split val too; keep one of them"


def test_a_line_that_is_there_twice_counts_once_and_is_reported(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/x2_123456_123466.mp4", "val/v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", HEADER, TRAIN[1], TRAIN[1])
    dataset = open_dataset(tmp_path)
    assert len(dataset.splits["train"]) == 1
    lists = tmp_path / "annotations/train.csv"
    assert dataset.repeated == (
        f"{lists}, line 3: {tmp_path}/train/x2_123456_123466.mp4 is also at {lists}, line 2",
    )


def test_two_files_for_one_video_are_refused(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/a/x2_123456_123466.mp4", "train/b/x2_123456_123466.mp4")
    files = "SOURCE/train/a/x2_123456_123466.mp4 and SOURCE/train/b/x2_123456_123466.mp4".replace(
        "SOURCE/", ""
    )
    assert (
        refusal(tmp_path)
        == f"train: {files} are one video to the list; name the folder to use by data.videos"
    )


def test_videos_are_found_three_folders_deep_and_no_deeper(tmp_path: Path) -> None:
    touch(
        kinetics(tmp_path),
        "train/a/b/c/x2_123456_123466.mp4",
        "train/a/b/c/d/-abC_1_000007_000017.mp4",
    )
    (tmp_path / "train" / "a" / "round").symlink_to(tmp_path)
    assert refusal(tmp_path).startswith(
        "SOURCE: 2 of its 3 videos are missing: train/-abC_1_000007_000017.mp4, "
    )


# Something-Something V2


def ssv2(folder: Path, prefix: str = "", *, answers: bool = True) -> list[str]:
    """Write a miniature whose 174 classes are in no alphabetical order, and give them."""
    names = [f"Doing number {(number * 71) % 174} with something" for number in range(174)]
    names[93], names[94] = (
        "Pushing something from left to right",
        "Pushing something from right to left",
    )
    names[86], names[87] = (
        "Pulling something from left to right",
        "Pulling something from right to left",
    )
    names[166] = "Turning the camera left while filming something"
    names[167] = "Turning the camera right while filming something"
    shuffled = sorted(range(174), key=lambda number: names[number])
    write(
        folder / f"{prefix}labels.json",
        json.dumps({names[number]: str(number) for number in shuffled}),
    )
    template = "Pushing [something] from left to right"
    item = {
        "id": "78687",
        "label": "pushing cup from left to right",
        "template": template,
        "placeholders": ["cup"],
    }
    write(folder / f"{prefix}train.json", json.dumps([item]))
    write(
        folder / f"{prefix}validation.json", json.dumps([{**item, "id": "3", "template": names[0]}])
    )
    write(folder / f"{prefix}test.json", json.dumps([{"id": "1420"}]))
    if answers:
        write(folder / f"{prefix}test-answers.csv", f"1420;{names[167]}")
    return names


@pytest.mark.parametrize(("place", "prefix"), [("labels", ""), (".", "something-something-v2-")])
def test_something_something(tmp_path: Path, place: str, prefix: str) -> None:
    names = ssv2(tmp_path / place, prefix)
    videos = touch(
        tmp_path, "20bn-something-something-v2/78687.webm", "videos/3.mp4", "videos/1420.webm"
    )
    dataset = open_dataset(videos)
    assert dataset.format == "ssv2"
    assert dataset.classes == tuple(names)
    assert held(dataset) == {
        "train": [("20bn-something-something-v2/78687.webm", names[93])],
        "val": [("videos/3.mp4", names[0])],
        "test": [("videos/1420.webm", names[167])],
    }


def test_a_flip_of_something_something_exchanges_left_and_right(tmp_path: Path) -> None:
    ssv2(tmp_path)
    touch(tmp_path, "78687.webm", "3.webm", "1420.webm")
    pairs = open_dataset(tmp_path).flip_pairs
    assert len(pairs) == 3
    for one, other in pairs:
        assert "left" in one
        assert other == one.replace("left", "@").replace("right", "left").replace("@", "right")


def test_odd_entries_of_something_something(tmp_path: Path) -> None:
    ssv2(tmp_path, answers=False)
    touch(tmp_path, "78687.webm", "3.webm")
    assert [path.name for path in open_dataset(tmp_path).ignored] == ["test.json"]
    write(
        tmp_path / "train.json",
        json.dumps([{"id": "78687", "template": "Pushing [something] from lef to right"}]),
    )
    near = "no class is called 'Pushing something from lef to right', did you mean 'Pushing something from left to right'?"
    assert refusal(tmp_path) == f"train.json, entry 1: {near}"
    write(tmp_path / "train.json", json.dumps([{"id": "78687"}]))
    assert refusal(tmp_path) == "train.json, entry 1: expected an object with id and template"
    write(tmp_path / "train.json", "[")
    assert refusal(tmp_path).startswith("train.json: not JSON: ")
    write(tmp_path / "labels.json", json.dumps({"a": "0", "b": "2"}))
    assert refusal(tmp_path) == "labels.json: its numbers must be 0 to 1, each once"


# UCF101 and HMDB51


def ucf101(folder: Path) -> Path:
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 YoYo", "2 Archery", "3 HandstandPushups", end="\r\n")
    write(
        lists / "trainlist01.txt",
        "YoYo/v_YoYo_g08_c01.avi 1",
        "Archery/v_Archery_g08_c01.avi 2",
        end="\r\n",
    )
    write(lists / "testlist01.txt", "HandstandPushups/v_HandStandPushups_g01_c01.avi", end="\r\n")
    write(
        lists / "trainlist02.txt",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi 3",
        "YoYo/v_YoYo_g08_c01.avi 1",
        end="\r\n",
    )
    write(lists / "testlist02.txt", "Archery/v_Archery_g08_c01.avi", end="\r\n")
    return folder


@pytest.mark.parametrize("place", ["UCF-101/", "", "videos/"])
@pytest.mark.parametrize("ending", [".avi", ".mp4", "/img_00001.jpg"])
def test_ucf101(tmp_path: Path, place: str, ending: str) -> None:
    names = [
        "YoYo/v_YoYo_g08_c01",
        "Archery/v_Archery_g08_c01",
        "HandstandPushups/v_HandStandPushups_g01_c01",
    ]
    touch(ucf101(tmp_path), *(f"{place}{name}{ending}" for name in names))
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == ("ucf101", ("YoYo", "Archery", "HandstandPushups"))
    yoyo, archery, handstand = (
        (f"{place}{name}{ending.partition('/')[0]}", name.partition("/")[0]) for name in names
    )
    assert held(dataset) == {"train": [yoyo, archery], "val": [handstand]}
    assert held(open_dataset(tmp_path, DataConfig(split=2))) == {
        "train": [handstand, yoyo],
        "val": [archery],
    }
    assert (
        refusal(tmp_path, split=3)
        == "SOURCE: no trainlist03.txt in it, did you mean 'trainlist02.txt'?"
    )


def test_odd_lines_of_ucf101(tmp_path: Path) -> None:
    touch(
        ucf101(tmp_path),
        "YoYo/v_YoYo_g08_c01.avi",
        "Archery/v_Archery_g08_c01.avi",
        "YoYo/v_YoYo_g09_c01.avi",
    )
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2")
    write(lists / "testlist01.txt", "Arcery/v_YoYo_g08_c01.avi")
    assert refusal(tmp_path) == (
        "ucfTrainTestlist/trainlist01.txt, line 1: 2 is not the number of the class 'YoYo'; "
        "ucfTrainTestlist/testlist01.txt, line 1: no class is called 'Arcery', did you mean 'Archery'?"
    )


def hmdb51(folder: Path) -> Path:
    lists = folder / "testTrainMulti_7030_splits"
    for split, (wave, hair) in {
        1: ((1, 2), (2, 0)),
        2: ((2, 1), (0, 1)),
        3: ((1, 1), (1, 1)),
    }.items():
        write(
            lists / f"wave_test_split{split}.txt",
            f"a_wave_0.avi {wave[0]} ",
            f"a clip #2_wave.avi {wave[1]} ",
        )
        write(
            lists / f"brush_hair_test_split{split}.txt",
            f"a_wave_0.avi {hair[0]} ",
            f"b.avi {hair[1]} ",
        )
    return folder


@pytest.mark.parametrize("ending", [".avi", "/frame1.png"])
def test_hmdb51(tmp_path: Path, ending: str) -> None:
    videos = [
        f"hmdb51_org/{name}{ending}"
        for name in ("wave/a_wave_0", "wave/a clip #2_wave", "brush_hair/a_wave_0", "brush_hair/b")
    ]
    touch(hmdb51(tmp_path), *videos)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == ("hmdb51", ("brush_hair", "wave"))
    wave0, wave1, hair0, hair1 = (
        (name.removesuffix("/frame1.png"), name.split("/")[1]) for name in videos
    )
    assert held(dataset) == {"train": [wave0], "val": [hair0, wave1]}
    assert held(open_dataset(tmp_path, DataConfig(split=2))) == {
        "train": [hair1, wave1],
        "val": [wave0],
    }
    write(tmp_path / "testTrainMulti_7030_splits/wave_test_split1.txt", "a_wave_0.avi 3 ")
    assert refusal(tmp_path).endswith(
        "wave_test_split1.txt, line 1: '3' is none of 0 (unused), 1 (train) and 2 (test)"
    )


# Diving48


def test_diving48(tmp_path: Path) -> None:
    write(
        tmp_path / "Diving48_vocab.json",
        json.dumps([["Reverse", "Dive", "NoTwis", "PIKE"], ["Back", "15som", "05Twis", "FREE"]]),
    )
    item = {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}
    write(tmp_path / "Diving48_V2_train.json", json.dumps([item]))
    write(tmp_path / "Diving48_V2_test.json", json.dumps([{**item, "vid_name": "b_1", "label": 1}]))
    touch(tmp_path, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/b_1.mp4")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == (
        "diving48",
        ("Reverse Dive NoTwis PIKE", "Back 15som 05Twis FREE"),
    )
    assert held(dataset) == {
        "train": [("rgb/-mmq0PT-u8k_00155.mp4", "Reverse Dive NoTwis PIKE")],
        "val": [("rgb/b_1.mp4", "Back 15som 05Twis FREE")],
    }
    write(
        tmp_path / "Diving48_V2_test.json",
        json.dumps([{"vid_name": "b_1", "label": 2}, {"vid_name": "b_1", "label": -1}]),
    )
    assert refusal(tmp_path) == (
        "Diving48_V2_test.json, entry 1: class 2 of only 2, counted from 0; "
        "Diving48_V2_test.json, entry 2: no class is called '-1'"
    )


# MMAction's text lists


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
    names = "ucf101_train_split_1_rawframes.txt, ucf101_train_split_1_videos.txt, ucf101_val_split_1_rawframes.txt"
    assert refusal(tmp_path) == f"SOURCE: several for one split: {names}; name the one to use"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a.mp4 0 2"], "line 1: labels 0, 2; if a video may have several labels, set data.multi_label"),
        (["clip 40 0 2"], "line 1: labels 0, 2; if a video may have several labels, set data.multi_label"),
        (["a.mp4 0", "b.mp4"], "line 2: expected a path and the number of its class, got 'b.mp4'"),
        (["a.mp4 0", "b.mp4 run"], "line 2: expected a path and the number of its class, got 'b.mp4 run'"),
        (["clip 0 3"], "line 1: the number of frames must be at least 1"),
        (["a.mp4 0", "b.mp4 -1"], "line 2: no class is called '-1'"),
        (["a.mp4 0", "b.mp4 1", "a.mp4 1"], "line 3: SOURCE/a.mp4 is also at SOURCE/list.txt, line 1, with another label"),
        (["a.mp4 0", "b.mp4 99999999"], "line 2: class 99999999 is no likely number; if it is right, name the classes by data.classes"),
    ],
)  # fmt: skip
def test_odd_lines_of_mmaction_are_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    source = write(touch(tmp_path, "a.mp4", "b.mp4", "clip/img_1.jpg") / "list.txt", *lines)
    assert refusal(source) == f"SOURCE, {expected.replace('SOURCE', str(tmp_path))}".replace(
        f"{source}", "SOURCE"
    )


def test_a_number_beyond_the_named_classes(tmp_path: Path) -> None:
    write(touch(tmp_path, "a.mp4") / "train.txt", "a.mp4 2")
    write(tmp_path / "classes.txt", "run", "walk")
    assert "train.txt, line 1: class 2 of only 2, counted from 0" in refusal(tmp_path)
    write(tmp_path / "classes.txt", "run", "run")
    assert refusal(tmp_path) == "classes.txt: names run twice"


# All of them


def test_a_wrong_name_gives_the_nearest_and_a_right_one_is_obeyed(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/run/x2_123456_123466.mp4", "train/walk/b.mp4", "val/run/v.mp4")
    with pytest.raises(
        ConfigError,
        match=r"format 'kinetic' is none of auto, kinetics, .*, did you mean 'kinetics'\?",
    ):
        open_dataset(tmp_path, DataConfig(format="kinetic"))
    assert open_dataset(tmp_path, DataConfig(format="folder")).classes == ("run", "walk")
    for name in FORMATS.keys() - {"kinetics", "folder", "manifest", "webdataset"}:
        assert refusal(tmp_path, format=name).startswith("SOURCE: no ")
    assert (
        refusal(tmp_path, format="webdataset")
        == "SOURCE: no videos in it that can be read as webdataset"
    )
    assert (
        refusal(tmp_path, format="manifest")
        == "SOURCE: a folder, not a manifest; name the CSV file"
    )


def test_what_only_resembles_a_list_does_not_hide_a_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "old.tar")
    write(tmp_path / "train_notes.txt", "recorded in 2024")
    write(tmp_path / "notes.csv", "name,size", "a,3")
    assert open_dataset(tmp_path).format == "folder"


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
        dataset.train, clip=ClipConfig(frames=4), pixels=PixelsConfig(), size=16, labels=dataset.classes, batch_size=2,
        seed=0, workers=0, broken="stop",
    )  # fmt: skip
    ((clips, labels),) = loader.epoch(0)
    assert clips.shape == (2, 4, 3, 16, 16)
    for clip, label in zip(clips, labels, strict=True):
        assert (clip.float() - (40, 200)[int(label)]).abs().max() < 4


def test_a_long_list_asks_the_disk_once_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number % 3}/{number}.mp4" for number in range(600)]
    touch(tmp_path, *names)
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label"), *((name, name[:2]) for name in names)])
    write(tmp_path / "all.csv", table.getvalue())
    asked = {"stat": 0, "listdir": 0}
    for name in asked:
        plain = getattr(os, name)

        def counted(
            *arguments: object, plain: object = plain, name: str = name, **options: object
        ) -> object:
            asked[name] += 1
            return plain(*arguments, **options)  # type: ignore[operator]  # a function of the module

        monkeypatch.setattr(os, name, counted)
    assert len(open_dataset(tmp_path / "all.csv").for_check) == 600
    assert asked["listdir"] == 3
    assert asked["stat"] < 10


def test_frames_are_not_listed_to_find_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(
        ucf101(tmp_path),
        *(
            f"rawframes/{name}/img_00001.jpg"
            for name in ("YoYo/v_YoYo_g08_c01", "Archery/v_Archery_g08_c01")
        ),
    )
    touch(tmp_path, "rawframes/HandstandPushups/v_HandStandPushups_g01_c01/img_00001.jpg")
    listed = []
    plain = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda folder: (listed.append(os.path.basename(folder)), plain(folder))[1]
    )
    open_dataset(tmp_path)
    assert not [name for name in listed if name.startswith("v_")]
