"""Is a video in a tar file read where it lies, by any process, and is an odd tar file named?"""

import io
import multiprocessing
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest
import torch

from zeroi2v.config import ClipConfig, DataConfig, PixelsConfig
from zeroi2v.data.datasets import Video, open_dataset
from zeroi2v.data.decode import VideoInfo, read_clip, scan
from zeroi2v.data.encode import write_video
from zeroi2v.data.loader import TrainLoader, train_loader
from zeroi2v.errors import DatasetError, VideoError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six video files of 12 frames; the n-th has the grey level 30 n + 3 t in frame t."""
    folder = tmp_path_factory.mktemp("plain")
    for number in range(6):
        grey = (
            (30 * number + 3 * torch.arange(12))
            .to(torch.uint8)
            .view(12, 1, 1, 1)
            .expand(12, 3, 32, 48)
        )
        write_video(folder / f"{number}.mp4", grey, fps=8)
    return sorted(folder.iterdir())


def pack(
    archive: Path, members: Mapping[str, bytes | Path], *, form: int = tarfile.DEFAULT_FORMAT
) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w", format=form) as tar:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return archive


@pytest.fixture
def shards(plain: list[Path], tmp_path: Path) -> Path:
    """Two tar files for training and one for validation, with the classes 0, 1 and 2 as numbers."""
    for shard in range(2):
        members: dict[str, bytes | Path] = {}
        for number in (2 * shard, 2 * shard + 1):
            members |= {
                f"{number:06d}.mp4": plain[number],
                f"{number:06d}.cls": f"{number % 3}\n".encode(),
            }
        pack(tmp_path / "shards" / f"train-{shard:06d}.tar", members)
    last: dict[str, bytes | Path] = {
        "./a/4.json": b'{"label": 2, "fps": 8}',
        "./a/4.mp4": plain[4],
        "./a/5.txt": b"1",
        "./a/5.mp4": plain[5],
        "5.md": b"?",
    }
    pack(tmp_path / "shards" / "val-000000.tar", last)
    return tmp_path / "shards"


def frames(path: Path) -> torch.Tensor:
    return read_clip(path, lambda count: [count - 1, 0, 5])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_video_in_a_tar_file_has_the_frames_of_the_file(
    plain: list[Path], tmp_path: Path, form: int
) -> None:
    name = "x/" * 30 + "clip, 1: é.mp4" if form == tarfile.USTAR_FORMAT else "x" * 150 + "é.mp4"
    archive = pack(
        tmp_path / "odd, name:1.tar",
        {"first.cls": b"3", name: plain[2], name[:-3] + "cls": b"0", "z.mp4": plain[0]},
        form=form,
    )
    with pytest.raises(
        DatasetError, match=r"z: no label beside the video; expected z\.cls, \.txt or \.json$"
    ):
        open_dataset(archive)
    archive = pack(archive, {name: plain[2], name[:-3] + "cls": b"0"}, form=form)
    (video,) = open_dataset(archive).for_check
    assert video.path.name == Path(name).name
    assert torch.equal(frames(video.path), frames(plain[2]))
    assert scan(video.path) == scan(plain[2]) == VideoInfo(12, 1.5, 48, 32)


def test_splits_and_classes_of_shards(shards: Path, plain: list[Path]) -> None:
    dataset = open_dataset(shards)
    assert (dataset.format, dataset.classes) == ("webdataset", ("0", "1", "2"))
    assert [(video.path.name, video.label) for video in dataset.train] == [
        ("000000.mp4", 0),
        ("000001.mp4", 1),
        ("000002.mp4", 2),
        ("000003.mp4", 0),
    ]
    assert [(video.path.name, video.label) for video in dataset.val] == [("4.mp4", 2), ("5.mp4", 1)]
    for video, file in zip(dataset.for_check, plain, strict=True):
        assert torch.equal(frames(video.path), frames(file))
    (shards / "classes.txt").write_text("zebra\nyak\nape\n")
    assert open_dataset(shards).classes == ("zebra", "yak", "ape")
    other = shards.parent / "labels"
    other.write_text("zebra\nyak\n")
    with pytest.raises(
        DatasetError, match=r"train-000001\.tar, 000002\.cls: class number 2, but only 2 classes"
    ):
        open_dataset(shards, DataConfig(classes=str(other)))


def test_shards_in_folders_named_by_split_with_names_as_labels(
    plain: list[Path], tmp_path: Path
) -> None:
    pack(
        tmp_path / "train" / "0.tar",
        {"a.mp4": plain[0], "a.txt": b"walk", "b.avi.mp4": plain[1], "b.txt": "é\n".encode()},
    )
    pack(tmp_path / "validation" / "0.tar", {"a.mp4": plain[2], "a.json": b'"walk"'})
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("walk", "é")
    assert {
        split: [video.label for video in videos] for split, videos in dataset.splits.items()
    } == {
        "train": [0, 1],
        "val": [0],
    }


def training(videos: tuple[Video, ...], workers: int) -> TrainLoader:
    return train_loader(
        videos,
        clip=ClipConfig(frames=4),
        pixels=PixelsConfig(),
        size=16,
        labels=("0", "1", "2"),
        batch_size=3,
        seed=7,
        workers=workers,
        broken="stop",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_shards_are_those_of_the_files(
    shards: Path, plain: list[Path], workers: int
) -> None:
    from_tar = open_dataset(shards).train
    from_files = tuple(
        Video(file, video.label) for file, video in zip(plain[:4], from_tar, strict=True)
    )
    for epoch in (0, 1):
        found, expected = (
            [*training(from_tar, workers).epoch(epoch)],
            [*training(from_files, 0).epoch(epoch)],
        )
        assert len(found) == len(expected) == 2
        for (clips, labels), (other_clips, other_labels) in zip(found, expected, strict=True):
            assert torch.equal(clips, other_clips)
            assert torch.equal(labels, other_labels)


def test_the_index_survives_a_fresh_process(shards: Path, plain: list[Path]) -> None:
    dataset = pickle.loads(pickle.dumps(open_dataset(shards)))
    assert dataset == open_dataset(shards)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(scan, [video.path for video in dataset.val]) == [
            scan(plain[4]),
            scan(plain[5]),
        ]


def test_nothing_is_written_and_no_video_is_read_to_open_shards(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(shards.parent.rglob("*"))
    read = []
    extract = tarfile.TarFile.extractfile

    def noted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
        read.append(member.name)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", noted)
    open_dataset(shards)
    assert sorted(read) == [
        "./a/4.json",
        "./a/5.txt",
        *(f"{number:06d}.cls" for number in range(4)),
    ]
    assert sorted(shards.parent.rglob("*")) == before


def spoilt(shards: Path, change: Callable[[bytes], bytes]) -> str:
    archive = shards / "train-000000.tar"
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(DatasetError) as caught:
        open_dataset(shards)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(archive))


def test_a_damaged_tar_file_is_refused(shards: Path) -> None:
    whole = (shards / "train-000000.tar").read_bytes()
    second = whole.index(b"000000.cls")
    assert (
        spoilt(shards, lambda _: whole[: second - 1000])
        == ": not a plain tar file, or damaged: unexpected end of data"
    )
    assert (
        spoilt(shards, lambda _: whole[:second] + b"?" * 512 + whole[second + 512 :])
        == f": damaged at byte {second}; write it again"
    )
    assert spoilt(shards, lambda _: b"").startswith(": not a plain tar file, or damaged")
    assert spoilt(shards, lambda _: b"\x1f\x8b" + whole).startswith(
        ": not a plain tar file, or damaged"
    )


def test_a_tar_file_that_changed_since_it_was_listed_is_reported(shards: Path) -> None:
    video = open_dataset(shards).train[0]
    archive = shards / "train-000000.tar"
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(
        VideoError, match=r"train-000000\.tar has only 1000 bytes: it changed since it was listed"
    ):
        frames(video.path)
    archive.unlink()
    with pytest.raises(VideoError, match="no such file"):
        frames(video.path)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            {"b.json": b'{"caption": "x"}'},
            "b.json: no text or whole number under the key label or class or cls",
        ),
        (
            {"b.json": b'{"label": true}'},
            "b.json: no text or whole number under the key label or class or cls",
        ),
        ({"b.json": b"{"}, "b.json: not JSON in UTF-8: "),
        ({"b.cls": b"\xff"}, "b.cls: not text in UTF-8: "),
        ({"b.cls": b" \n"}, "b.cls: the label is empty"),
        ({"b.cls": b"-1"}, "b.cls: no class is called '-1'"),
        ({"b.cls": b"1" * ((1 << 20) + 1)}, "b.cls: 1048577 bytes are too many for a label"),
        ({"b.cls": b"1", "b.webm": b"x"}, "b.webm: another video has the same key b"),
        ({"b.cls": b"1", "c.cls": b"1"}, "1 of its 3 videos is missing: "),
    ],
)
def test_odd_members_are_named(
    plain: list[Path], tmp_path: Path, members: dict[str, bytes], expected: str
) -> None:
    archive = pack(
        tmp_path / "x.tar", {"a.mp4": plain[0], "a.cls": b"0", "b.mp4": plain[1], **members}
    )
    with pytest.raises(DatasetError) as caught:
        open_dataset(archive)
    assert expected in str(caught.value)
    assert str(archive) in str(caught.value)


def test_equal_labels_say_the_same_number(plain: list[Path], tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "x.tar", {"a.mp4": plain[0], "a.cls": b"007", "b.mp4": plain[1], "b.cls": b"7"}
    )
    assert [video.label for video in open_dataset(archive, val_share=0).train] == [7, 7]
