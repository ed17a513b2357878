"""Sources of videos in miniature: empty files in the layouts that users and data sets have."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.errors import DatasetError

KINETICS_HEADER = "label,youtube_id,time_start,time_end,split"
KINETICS_TRAIN = ['"shining shoes",-abC_1,7,17,train', "abseiling,x2,123456,123466,train"]
KINETICS_VAL = ["abseiling,v1,0,10,val"]


def touch(folder: Path, *names: str) -> Path:
    """Make empty files with these names, and the folders they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    """Write a text file in UTF-8."""
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


def ignored(dataset: VideoDataset) -> set[str]:
    """The ignored files and folders, below the source."""
    return {os.path.relpath(path, dataset.source) for path in dataset.ignored}


def refusal(source: Path, config: DataConfig | None = None) -> str:
    """The message of the DatasetError for a source, with short paths."""
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, config)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{source}/", "").replace(str(source), "SOURCE")


def kinetics(folder: Path, *, lists: str = "annotations") -> Path:
    """The lists of Kinetics; as in the release, the list of the test split has no labels."""
    write(folder / lists / "train.csv", KINETICS_HEADER, *KINETICS_TRAIN)
    write(folder / lists / "val.csv", KINETICS_HEADER, *KINETICS_VAL)
    write(folder / lists / "test.csv", KINETICS_HEADER.removeprefix("label,"), "t1,5,15,test")
    return folder


def ssv2(folder: Path, prefix: str = "", *, answers: bool = True) -> list[str]:
    """The lists of Something-Something V2. Gives the 174 classes, in no alphabetical order."""
    names = [f"Doing number {(number * 71) % 174} with something" for number in range(174)]
    for number, verb in ((93, "Pushing"), (86, "Pulling")):
        names[number] = f"{verb} something from left to right"
        names[number + 1] = f"{verb} something from right to left"
    names[166] = "Turning the camera left while filming something"
    names[167] = "Turning the camera right while filming something"
    shuffled = sorted(range(174), key=lambda number: names[number])
    numbers = {names[number]: str(number) for number in shuffled}
    write(folder / f"{prefix}labels.json", json.dumps(numbers))
    item = {
        "id": "78687",
        "label": "pushing cup from left to right",
        "template": "Pushing [something] from left to right",
        "placeholders": ["cup"],
    }
    write(folder / f"{prefix}train.json", json.dumps([item]))
    other = {**item, "id": "3", "template": names[0]}
    write(folder / f"{prefix}validation.json", json.dumps([other]))
    write(folder / f"{prefix}test.json", json.dumps([{"id": "1420"}]))
    if answers:
        write(folder / f"{prefix}test-answers.csv", f"1420;{names[167]}")
    return names


def ucf101(folder: Path) -> Path:
    """The lists of UCF101, of two official splits."""
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 YoYo", "2 Archery", "3 HandstandPushups", end="\r\n")
    yoyo, archery = "YoYo/v_YoYo_g08_c01.avi", "Archery/v_Archery_g08_c01.avi"
    handstand = "HandstandPushups/v_HandStandPushups_g01_c01.avi"
    write(lists / "trainlist01.txt", f"{yoyo} 1", f"{archery} 2", end="\r\n")
    write(lists / "testlist01.txt", handstand, end="\r\n")
    write(lists / "trainlist02.txt", f"{handstand} 3", f"{yoyo} 1", end="\r\n")
    write(lists / "testlist02.txt", archery, end="\r\n")
    return folder


def hmdb51(folder: Path) -> Path:
    """The lists of HMDB51: how each official split uses two videos of two classes."""
    uses: dict[int, Sequence[Sequence[int]]] = {
        1: ((1, 2), (2, 0)),
        2: ((2, 1), (0, 1)),
        3: ((1, 1), (1, 1)),
    }
    lists = folder / "testTrainMulti_7030_splits"
    for split, (wave, hair) in uses.items():
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
