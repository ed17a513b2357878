"""Does every format give a video the same labels, and are several an error without the setting?"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from tests.videos_for_tests import blocks_dataset
from zeroi2v.config import ClipConfig, DataConfig, PixelsConfig, Recipe, ReencodeConfig, TrainConfig
from zeroi2v.data.datasets import Video, VideoDataset, open_dataset, relabel
from zeroi2v.data.loader import train_loader
from zeroi2v.data.reencode import MANIFEST_FILE
from zeroi2v.data.reencode import reencode as copy_videos
from zeroi2v.engine.resume import data_key
from zeroi2v.errors import ConfigError, DatasetError

Writer: TypeAlias = Callable[[Path], Path]

SEVERAL = DataConfig(multi_label=True)
LABELS = {"a": [2, 0], "b": [1], "c": [0, 1, 2], "d": [2]}


def in_words(dataset: VideoDataset) -> dict[str, list[str]]:
    return {
        video.path.stem: [dataset.classes[label] for label in video.labels]
        for video in dataset.for_check
    }


def csv_manifest(folder: Path) -> Path:
    rows = [f"{name}.mp4,{'|'.join(map(str, labels))}" for name, labels in LABELS.items()]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "list.csv"


def csv_line_per_label(folder: Path) -> Path:
    rows = [f"{name}.mp4,{label}" for name, labels in LABELS.items() for label in labels]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "list.csv"


def mmaction_list(folder: Path) -> Path:
    lines = [f"{name}.mp4 {' '.join(map(str, labels))}" for name, labels in LABELS.items()]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder / "list.txt"


def tar_files(folder: Path, ending: str) -> Path:
    with tarfile.open(folder / "all.tar", "w") as tar:
        for name, labels in LABELS.items():
            text = json.dumps({"label": labels}) if ending == "json" else "|".join(map(str, labels))
            for file, content in {
                f"{name}.mp4": b"video",
                f"{name}.{ending}": text.encode(),
            }.items():
                header = tarfile.TarInfo(file)
                header.size = len(content)
                tar.addfile(header, BytesIO(content))
    return folder / "all.tar"


@pytest.mark.parametrize(
    "write",
    [
        csv_manifest,
        csv_line_per_label,
        mmaction_list,
        lambda folder: tar_files(folder, "json"),
        lambda folder: tar_files(folder, "cls"),
    ],
    ids=["bars", "a line each", "mmaction", "tar json", "tar cls"],
)
def test_every_format_gives_the_same_labels(write: Writer, tmp_path: Path) -> None:
    for name in LABELS:
        (tmp_path / f"{name}.mp4").touch()
    source = write(tmp_path)
    dataset = open_dataset(source, SEVERAL)
    assert in_words(dataset) == {
        name: [str(label) for label in sorted(labels)] for name, labels in LABELS.items()
    }
    assert {one.path for one in dataset.train}.isdisjoint(one.path for one in dataset.val)
    assert not dataset.repeated


def test_a_recogniser_of_one_label_takes_a_bar_for_a_part_of_the_name(tmp_path: Path) -> None:
    for name in LABELS:
        (tmp_path / f"{name}.mp4").touch()
    assert open_dataset(csv_manifest(tmp_path)).classes == ("0|1|2", "1", "2", "2|0")


@pytest.mark.parametrize(
    ("write", "setting", "message"),
    [
        (
            csv_line_per_label,
            DataConfig(),
            "list.csv, line 3: .*a.mp4 is also at .* line 2, with another label",
        ),
        (
            mmaction_list,
            DataConfig(),
            "line 1: labels 2, 0; if a video may have several labels, set data.multi_label",
        ),
        (
            lambda folder: tar_files(folder, "json"),
            DataConfig(),
            "several labels need data.multi_label",
        ),
    ],
)
def test_without_the_setting_several_labels_are_an_error(
    write: Writer, setting: DataConfig, message: str, tmp_path: Path
) -> None:
    for name in LABELS:
        (tmp_path / f"{name}.mp4").touch()
    with pytest.raises(DatasetError, match=message):
        open_dataset(write(tmp_path), setting)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.mp4,x|", "b.mp4,y"], "line 2: the label is empty"),
        (
            ["a.mp4,x|y,train", "a.mp4,z,val"],
            "line 3: .*a.mp4 is also at .*, line 2, with another split",
        ),
    ],
)
def test_odd_lines_are_named(rows: list[str], message: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    header = "path,label,split" if rows[0].count(",") == 2 else "path,label"
    (tmp_path / "list.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "list.csv", SEVERAL)


def test_a_label_said_twice_is_used_once_and_said(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x|y\na.mp4,y\nb.mp4,y")
    dataset = open_dataset(tmp_path / "list.csv", SEVERAL)
    assert in_words(dataset) == {"a": ["x", "y"], "b": ["y"]}
    assert len(dataset.repeated) == 1


def test_a_model_with_its_classes_in_another_order_keeps_the_names(tmp_path: Path) -> None:
    for name in LABELS:
        (tmp_path / f"{name}.mp4").touch()
    dataset = open_dataset(csv_manifest(tmp_path), SEVERAL)
    before = in_words(dataset)
    after = in_words(relabel(dataset, ("2", "9", "1", "0")))
    assert {name: sorted(labels) for name, labels in after.items()} == before


def test_a_flip_exchanges_every_label_of_a_pair(tmp_path: Path) -> None:
    """The classes are left, right and up, and every video is flipped.

    The labels left and up become right and up; left with right stays both.
    """
    videos = blocks_dataset(tmp_path, train=3, val=0, frames=4).splits["train"]
    given = [(0, 2), (0, 1), (1,)]
    several = [Video.of(video.path, labels) for video, labels in zip(videos, given, strict=True)]
    for flip, expected in ((1.0, [(1, 2), (0, 1), (0,)]), (0.0, given)):
        loader = train_loader(
            several,
            clip=ClipConfig(frames=2),
            pixels=PixelsConfig(flip=flip, flip_pairs=(("left", "right"),)),
            size=32,
            labels=("left", "right", "up"),
            batch_size=1,
            seed=0,
            workers=0,
            broken="stop",
            multi_label=True,
        )
        hot = torch.cat([labels for _, labels in loader.epoch(1)])
        rows = [[float(label in labels) for label in range(3)] for labels in expected]
        assert sorted(hot.tolist()) == sorted(rows)
        assert hot.dtype == torch.float32


def test_a_copy_of_the_data_set_has_the_same_labels(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    blocks_dataset(tmp_path / "videos", train=3, val=1, frames=4)
    (tmp_path / "videos/list.csv").write_text(
        "path,label\n0.mp4,b|a\n1.mp4,c\n2.mp4,a|c|b\n3.mp4,b\n"
    )
    dataset = open_dataset(tmp_path / "videos/list.csv", SEVERAL)
    for _ in copy_videos(dataset, tmp_path / "copy", ReencodeConfig(short_side=48), workers=1):
        pass
    assert in_words(open_dataset(tmp_path / "copy" / MANIFEST_FILE, SEVERAL)) == in_words(dataset)


def test_another_second_label_is_another_data_set() -> None:
    """So a run is not resumed on it."""
    dataset = VideoDataset(
        Path("x"), ("a", "b", "c"), {"train": (Video(Path("1.mp4"), 0, (1,)),), "val": ()}
    )
    other = dataclasses.replace(
        dataset, splits={"train": (Video(Path("1.mp4"), 0, (2,)),), "val": ()}
    )
    assert data_key(dataset.classes, dataset.train) != data_key(other.classes, other.train)


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing.*data\.multi_label"):
        Recipe(data=SEVERAL, train=TrainConfig(label_smoothing=0.1))
