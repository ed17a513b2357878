"""Is a copied data set the same data set, and does a second run go on where the first stopped?"""

import csv
import os
from pathlib import Path

import pytest
import torch

from zeroi2v.config import ReencodeConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.data.decode import scan
from zeroi2v.data.encode import write_video
from zeroi2v.data.reencode import reencode
from zeroi2v.errors import ConfigError, DatasetError, VideoError

SMALL = ReencodeConfig(short_side=16)


def video(path: Path, frames: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.randint(256, (frames, 3, 24, 32), dtype=torch.uint8), fps=8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of five videos: one of them is broken, and one is in another container."""
    folder = tmp_path / "data"
    for number in range(5):
        video(folder / "a" / f"{number}.mp4", 5 + number)
        video(folder / "b b" / f"{number}.mp4", 5)
    (folder / "a" / "4.mp4").rename(folder / "a" / "4.x.mov")
    (folder / "b b" / "3.mp4").write_text("no video")
    return folder


def listed(dataset: VideoDataset, root: Path) -> dict[str, dict[str, str]]:
    """The name and class of each video, by split."""
    return {
        split: {
            str(video.path.relative_to(root).with_suffix("")): dataset.classes[video.label]
            for video in videos
        }
        for split, videos in dataset.splits.items()
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_the_copy_opens_as_the_same_data_set(source: Path, tmp_path: Path, workers: int) -> None:
    dataset = open_dataset(source)
    out = tmp_path / "copy"
    results = dict(reencode(dataset, out, SMALL, workers=workers))
    assert {*results} == {video.path for video in dataset.for_check}
    assert [path for path, error in results.items() if error] == [source / "b b" / "3.mp4"]
    expected = listed(dataset, source)
    for videos in expected.values():
        videos.pop("b b/3", None)
    assert listed(open_dataset(out / "manifest.csv"), out) == expected
    assert open_dataset(out).classes == dataset.classes
    for number in range(4):
        info = scan(out / "a" / f"{number}.mp4")
        assert (info.frames, info.height) == (5 + number, 16)
    assert scan(out / "a" / "4.x.mp4").frames == 9


def test_splits_and_labels_of_a_manifest_are_kept(source: Path, tmp_path: Path) -> None:
    rows = [
        "path,label,split",
        "a/0.mp4,x,train",
        "a/1.mp4,y,train",
        f"{source}/b b/0.mp4,x,val",
        "b b/1.mp4,y,test",
    ]
    (source / "list.csv").write_text("\n".join(rows))
    dataset = open_dataset(source / "list.csv")
    assert not [
        error for _, error in reencode(dataset, tmp_path / "copy", SMALL, workers=0) if error
    ]
    copied = open_dataset(tmp_path / "copy" / "manifest.csv")
    assert listed(copied, tmp_path / "copy") == listed(dataset, source)


def test_further_columns_of_a_manifest_are_kept(source: Path, tmp_path: Path) -> None:
    rows = [
        "subject,path,label,split,source",
        "7,a/0.mp4,x,train,the lab",
        "8,a/1.mp4,y,train,",
        "7,b b/3.mp4,y,train,broken",
        '9,b b/0.mp4,x,val,"a, b"',
    ]
    (source / "list.csv").write_text("\n".join(rows))
    dataset = open_dataset(source / "list.csv")
    for _ in reencode(dataset, tmp_path / "copy", SMALL, workers=0):
        pass
    with (tmp_path / "copy" / "manifest.csv").open(newline="") as file:
        copied = [*csv.DictReader(file)]
    assert [(row["path"], row["subject"], row["source"]) for row in copied] == [
        ("a/0.mp4", "7", "the lab"),
        ("a/1.mp4", "8", ""),
        ("b b/0.mp4", "9", "a, b"),
    ]
    again = tmp_path / "copy of a copy"
    for _ in reencode(open_dataset(tmp_path / "copy" / "manifest.csv"), again, SMALL, workers=0):
        pass
    assert (again / "manifest.csv").read_bytes() == (
        tmp_path / "copy" / "manifest.csv"
    ).read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        b"caf\xe9.mp4",
        b"\xff\xfe/\xe9\xe8.mp4",
        "naïve 視頻.mp4".encode(),
        b'a,b "c".mp4',
        b" spaces / x .mp4",
        b"lines\nand\rreturns.mp4",
        b"#hash;semi|bar.mp4",
    ],
)
def test_the_manifest_of_a_copy_can_be_read_whatever_the_names(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "data"
    for number, label in enumerate("ab"):
        try:
            video(folder / label / os.fsdecode(name))
        except OSError:
            pytest.skip("the file system does not have such names")
        video(folder / label / f"{number}.mp4")
    text = "path,label\n" + "".join(
        f'"{label}/{inner}",{label}\n'.replace('b "c"', 'b ""c""')
        for label in "ab"
        for inner in (os.fsdecode(name), f"{'ab'.index(label)}.mp4")
    )
    (folder / "list.csv").write_bytes(os.fsencode(text))
    dataset = open_dataset(folder / "list.csv", val_share=0)
    assert len(dataset.train) == 4
    results = dict(reencode(dataset, tmp_path / "copy", SMALL, workers=0))
    assert not any(results.values())
    copied = open_dataset(tmp_path / "copy" / "manifest.csv", val_share=0)
    assert listed(copied, tmp_path / "copy") == listed(dataset, folder)
    assert all(scan(one.path).frames == 5 for one in copied.train)


def test_a_second_run_does_only_what_is_missing(source: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(source), tmp_path / "copy"
    first = reencode(dataset, out, SMALL, workers=0)
    done = [next(first)[0] for _ in range(3)]
    first.close()
    assert not (out / "manifest.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert len(before) == len(done)
    (out / "a" / ".9.mp4.1.partial").touch()  # as a run that was killed leaves it
    list(reencode(dataset, out, SMALL, workers=0))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len([*out.rglob("*.mp4")]) == 9
    assert not [*out.rglob("*.partial")]
    with pytest.raises(DatasetError, match=r"holds copies made with .*'short_side': 16"):
        list(reencode(dataset, out, ReencodeConfig(short_side=18), workers=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_one_clear_error_and_leaves_no_half_video(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs a device that is always full")
    with_name = Path.with_name

    def onto_full(path: Path, name: str) -> Path:
        made = with_name(path, name)
        if name.startswith(".2.mp4"):
            made.symlink_to(full)
        return made

    monkeypatch.setattr(Path, "with_name", onto_full)
    with pytest.raises(
        VideoError,
        match=r"2\.mp4: cannot be written: no space left on device; what is finished stays",
    ) as caught:
        list(reencode(open_dataset(source), tmp_path / "copy", SMALL, workers=workers))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy" / "a" / "2.mp4").exists()
    assert not (tmp_path / "copy" / "manifest.csv").exists()


def test_two_videos_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    video(source / "a" / "9.mp4")
    (source / "a" / "9.mp4").rename(source / "a" / "0.avi")
    with pytest.raises(DatasetError, match=r"would both become .*0\.mp4; rename one"):
        list(reencode(open_dataset(source), tmp_path / "copy", SMALL, workers=0))


def test_a_folder_in_use_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    with pytest.raises(DatasetError, match="already there and not empty"):
        list(reencode(open_dataset(source), tmp_path / "used", SMALL, workers=0))
    with pytest.raises(DatasetError, match="lies in the data set"):
        list(reencode(open_dataset(source), source / "copy", SMALL, workers=0))


@pytest.mark.parametrize("wrong", [{"short_side": 255}, {"keyframes": 0}, {"crf": 52}])
def test_a_wrong_setting_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match=f"{next(iter(wrong))} must be .*, got {next(iter(wrong.values()))}"
    ):
        ReencodeConfig(**wrong)
