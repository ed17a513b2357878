"""Are Kinetics' lists read as published, with videos wherever they lie, and odd lines named?"""

from pathlib import Path

import pytest

from tests.sources_for_tests import (
    KINETICS_HEADER,
    KINETICS_TRAIN,
    held,
    kinetics,
    refusal,
    touch,
    write,
)
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.errors import DatasetError


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
    assert refusal(source, DataConfig(videos=str(tmp_path / "no"))).endswith(
        "no: no such folder; data.videos names the folder of the videos"
    )


def test_missing_videos_are_counted_before_training_and_can_be_left_out(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/x2_123456_123466.mp4", "val/other.mp4")
    one, other = "train/-abC_1_000007_000017.mp4", "val/v1_000000_000010.mp4"
    assert refusal(tmp_path) == (
        f"SOURCE: 2 of its 3 videos are missing: {one}, {other}; "
        "put the missing videos there, or set data.videos to their folder"
    )
    dataset = open_dataset(tmp_path, missing="skip")
    assert held(dataset) == {"train": [("train/x2_123456_123466.mp4", "abseiling")], "val": []}
    assert dataset.classes == (
        "abseiling",
        "shining shoes",
    )  # a class does not depend on what was downloaded
    assert not dataset.held_out
    assert dataset.missing == (tmp_path / one, tmp_path / other)
    assert any("missing, left out: 2 videos" in text for text in dataset.warnings)
    kept = open_dataset(tmp_path, missing="keep")
    assert [video.path for video in kept.for_check] == [
        tmp_path / one,
        tmp_path / "train/x2_123456_123466.mp4",
        tmp_path / other,
    ]
    (tmp_path / "train/x2_123456_123466.mp4").unlink()
    with pytest.raises(DatasetError, match=r"3 of its 3 videos are missing"):
        open_dataset(tmp_path, missing="skip")


EMPTY = "the label is empty"
TIMES = "expected a youtube_id, and whole seconds as time_start and time_end"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([",y,0,10,train"], "annotations/train.csv, line 2: the label is empty"),
        (["run,,0,10,train"], f"annotations/train.csv, line 2: {TIMES}"),
        (["run,y,zero,10,train"], f"annotations/train.csv, line 2: {TIMES}"),
        (
            ["run,y,0,10,train", "walk,y,0,10,train"],
            "annotations/train.csv, line 3: train/y_000000_000010.mp4 is also at "
            "annotations/train.csv, line 2, with another label "
            "(keep one of the lines, or set data.multi_label)",
        ),
        (
            ["run,y,0,10,train", *[f",y{number},0,10,train" for number in range(5)]],
            "; ".join(
                f"annotations/train.csv, line {line}: the label is empty" for line in (3, 4, 5)
            )
            + "; and 2 more",
        ),
    ],
)
def test_odd_lines_of_kinetics_are_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    touch(kinetics(tmp_path), "train/y_000000_000010.mp4", "val/v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", KINETICS_HEADER, *lines)
    assert refusal(tmp_path) == expected


def test_a_video_in_two_splits_and_two_lists_of_one_split(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", KINETICS_HEADER, "abseiling,v1,0,10,train")
    there = (
        "v1_000000_000010.mp4 is also at annotations/train.csv, line 2, with another split "
        "(keep one of the lines)"
    )
    assert refusal(tmp_path) == f"annotations/val.csv, line 2: {there}"
    write(tmp_path / "validate.csv", KINETICS_HEADER, "abseiling,v1,0,10,val")
    assert refusal(tmp_path) == "validate.csv: val.csv lists the split val too; keep one of them"


def test_a_line_that_is_there_twice_counts_once_and_is_reported(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/x2_123456_123466.mp4", "val/v1_000000_000010.mp4")
    write(tmp_path / "annotations/train.csv", KINETICS_HEADER, KINETICS_TRAIN[1], KINETICS_TRAIN[1])
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
    assert refusal(tmp_path) == (
        f"train: the list names one video x2_123456_123466, but both {files} have this name; "
        "set data.videos to the folder to use"
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
