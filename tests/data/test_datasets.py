"""Does a folder or manifest become the videos, classes and splits it describes, and is every defect named in one line?"""

import csv
import shutil
from pathlib import Path

import pytest

from zeroi2v.data.datasets import VideoDataset, open_dataset, relabel
from zeroi2v.errors import ConfigError, DatasetError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def listed(dataset: VideoDataset) -> dict[str, list[tuple[str, str]]]:
    """Split -> (path below the source, class) of its videos."""
    root = dataset.source if dataset.source.is_dir() else dataset.source.parent
    return {
        split: [
            (video.path.relative_to(root).as_posix(), dataset.classes[video.label])
            for video in videos
        ]
        for split, videos in dataset.splits.items()
    }


def manifest(folder: Path, text: str | bytes, *videos: str) -> Path:
    touch(folder, *videos)
    path = folder / "index.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(source: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        _ = open_dataset(source).train
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(source))
    return text.removeprefix(str(source))


def test_a_folder_per_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "walk/b.mp4",
        "walk/a.AVI",
        "run/c.webm",
        "run/clip/img_1.jpg",
        "run/clip/img_2.jpg",
        "run/d.unheard",
    )
    touch(
        tmp_path,
        "walk/.hidden.mp4",
        ".cache/x.mp4",
        "walk/notes.txt",
        "walk/Thumb.JPG",
        "walk/nested/e.mp4",
        "README.md",
    )
    dataset = open_dataset(tmp_path, val_share=0)
    assert dataset.classes == ("run", "walk")
    run = [("run/c.webm", "run"), ("run/clip", "run"), ("run/d.unheard", "run")]
    assert listed(dataset) == {
        "train": [*run, ("walk/a.AVI", "walk"), ("walk/b.mp4", "walk")],
        "val": [],
    }
    ignored = {path.relative_to(tmp_path).as_posix() for path in dataset.ignored}
    assert ignored == {"walk/notes.txt", "walk/Thumb.JPG", "walk/nested", "README.md"}


def test_a_folder_per_split_and_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/run/a.mp4",
        "train/walk/b.mp4",
        "Validation/run/c.mp4",
        "test/run/d.mp4",
        "extra/e.mp4",
        "train/x.txt",
    )
    dataset = open_dataset(tmp_path)
    assert {split: len(videos) for split, videos in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert listed(dataset)["val"] == [("Validation/run/c.mp4", "run")]
    assert dataset.for_evaluation() == dataset.val
    assert len(dataset.for_check) == 4
    assert {path.name for path in dataset.ignored} == {"extra", "x.txt"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "train/clip/1.jpg", "bus/b.mp4")
    assert open_dataset(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("splits", "chosen"), [(["train", "test"], "test"), (["train", "test", "valid"], "valid")]
)
def test_what_there_is_to_validate_on(tmp_path: Path, splits: list[str], chosen: str) -> None:
    for split in splits:
        touch(tmp_path, f"{split}/run/{split}.mp4", f"{split}/walk/{split}.mp4")
    dataset = open_dataset(tmp_path)
    assert (
        {video.path.stem for video in dataset.val}
        == {video.path.stem for video in dataset.for_evaluation()}
        == {chosen}
    )
    assert {video.path.stem for video in dataset.train} == {"train"}


def test_without_a_split_a_share_of_each_class_is_held_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"run/{i}.mp4" for i in range(10)), "walk/0.mp4", "walk/1.mp4", "jump/0.mp4")
    dataset = open_dataset(tmp_path, val_share=0.3)
    held = {
        label: [video.path.name for video in dataset.val if video.label == label]
        for label in range(3)
    }
    assert {label: len(names) for label, names in held.items()} == {
        0: 0,
        1: 3,
        2: 1,
    }  # jump, run, walk
    assert not {*dataset.train} & {*dataset.val}
    assert {*dataset.train} | {*dataset.val} == {*dataset.for_evaluation()}
    assert len(dataset.for_evaluation()) == 13
    assert dataset == open_dataset(tmp_path, val_share=0.3)
    others = [open_dataset(tmp_path, val_share=0.3, seed=seed).val for seed in range(1, 5)]
    assert any(other != dataset.val for other in others)


def test_a_hold_out_does_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    touch(tmp_path / "one", *(f"{label}/{i}.mp4" for label in ("run", "walk") for i in range(9)))
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    one, other = (listed(open_dataset(tmp_path / name)) for name in ("one", "other"))
    assert one == other


def test_only_a_train_split_is_split_for_training_and_whole_for_evaluation(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{label}/{i}.mp4" for label in ("run", "walk") for i in range(5)))
    dataset = open_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.for_evaluation())) == (8, 2, 10)


def test_a_manifest(tmp_path: Path) -> None:
    rows = [
        "label, path ,other,split",
        "",
        '"run, fast","a, b.mp4",1,Train',
        " walk , clip ,2,val",
        f"walk,{tmp_path}/c.mp4,,train",
        "",
    ]
    text = "\ufeff" + "\r\n".join(rows)
    source = manifest(tmp_path / "sub", text, "a, b.mp4", "clip/1.png", "../c.mp4")
    dataset = open_dataset(source)
    assert dataset.classes == ("run, fast", "walk")
    assert [(video.path, video.label) for video in dataset.train] == [
        (tmp_path / "sub/a, b.mp4", 0),
        (tmp_path / "c.mp4", 1),
    ]
    assert [(video.path, video.label) for video in dataset.val] == [(tmp_path / "sub/clip", 1)]


def test_the_real_manifest_and_the_real_folder_agree(shared_data: Path) -> None:
    folder, table = (
        open_dataset(shared_data / "surveillance_fights" / name) for name in ("", "index.csv")
    )
    assert folder.classes == table.classes == ("fight", "noFight")
    for split, count in (("train", 60), ("val", 30)):
        assert len(table.splits[split]) == count
        assert {*folder.splits[split]} == {*table.splits[split]}
    with (shared_data / "surveillance_fights" / "index.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [video.path.name for video in table.for_evaluation()] == [
        Path(row["path"]).name for row in rows if row["split"] == "val"
    ]


NEAREST = ", did you mean 'train'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": no column 'path' among none"),
        ("paths,label\na.mp4,run\n", ": no column 'path' among paths, label, did you mean 'paths'?"),
        ("path,class\na.mp4,run\n", ": no column 'label' among path, class"),
        ("path,label\n", ": no videos in it, only a header"),
        ("path,label\na.mp4,run\nb.mp4,\n", ", line 3: the label is empty"),
        ("path,label\na.mp4\n", ", line 2: the label is empty"),
        ("path,label\n,run\n", ", line 2: the path is empty"),
        ("path,label\na,b.mp4,run\n", ", line 2: more values than columns; a value with a comma in it needs quotes"),
        ("path,label,split\na.mp4,run,trian\n", ", line 2: split 'trian' is none of train, val, valid, validation, test" + NEAREST),
        ("path,label\na.mp4,run\n./a.mp4,walk\n", ", line 3: {0}/a.mp4 is also at {0}/index.csv, line 2, with another label"),
        ("path,label,split\na.mp4,run,train\na.mp4,run,val\n", ", line 3: {0}/a.mp4 is also at {0}/index.csv, line 2, with another split"),
        ("path,label\na.mp4,run\nx1,a\nx2,a\nx3,a\nx4,b\n", ": 4 of its 5 videos are missing: {0}/x1, {0}/x2, {0}/x3 and 1 more"),
        ("path,label\na.mp4,run\nb.mp4,run\n", ": training needs at least 2 classes, found only 'run'"),
        ("path,label,split\na.mp4,run,val\nb.mp4,walk,test\n", ": no videos to train on, only the splits val, test"),
    ],
)  # fmt: skip
def test_a_defect_of_a_manifest_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert message(manifest(tmp_path, text, "a.mp4", "b.mp4")) == expected.format(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\ncaf\xe9.mp4,run\n",
        b'path,label\n"a.mp4,run\nb.mp4,walk\n',
        b"\x00\x00\x00\x18ftypmp42\xff",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    assert message(manifest(tmp_path, text, "a.mp4", "b.mp4")).startswith(
        ": not a CSV manifest in UTF-8: "
    )


def test_a_defect_of_a_folder_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere") == ": no such folder or manifest"
    assert (
        message(touch(tmp_path / "flat", "a.mp4"))
        == ": no class folders in it; expected flat/class/video, or a CSV manifest"
    )
    assert (
        message(touch(tmp_path / "empty", "run/a.mp4", "walk/a.txt"))
        == ": no videos in the class folders walk"
    )
    assert (
        message(touch(tmp_path / "one", "run/a.mp4"))
        == ": training needs at least 2 classes, found only 'run'"
    )


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_is_checked(tmp_path: Path, share: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"val_share must be at least 0 and below 1, got {share}"
    ):
        open_dataset(touch(tmp_path, "run/a.mp4"), val_share=share)


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    dataset = open_dataset(touch(tmp_path, "run/a.mp4", "walk/b.mp4"))
    found = relabel(dataset, ("walk", "jump", "run"))
    assert found.classes == ("walk", "jump", "run")
    assert {video.path.name: video.label for video in found.for_evaluation()} == {
        "a.mp4": 2,
        "b.mp4": 0,
    }
    with pytest.raises(
        DatasetError, match=r"the model has no class 'walk', did you mean 'walking'\?$"
    ):
        relabel(dataset, ("walking", "run"))
