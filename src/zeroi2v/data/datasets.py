"""Which files: which videos does a folder or manifest hold, of which classes, in which splits?

A dataset is a folder per class (DATA/class/video), the same below folders named by split (DATA/train/class/video), or a CSV
manifest with the columns path, label and perhaps split. A folder of images is one video.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from zeroi2v.data.decode import IMAGE_SUFFIXES
from zeroi2v.errors import ConfigError, DatasetError, nearest

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_DOCUMENTS = {
    ".csv",
    ".doc",
    ".docx",
    ".htm",
    ".html",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".pdf",
    ".rst",
    ".toml",
    ".tsv",
    ".txt",
}
_TABLES = {
    ".ass",
    ".h5",
    ".ini",
    ".mat",
    ".npy",
    ".npz",
    ".parquet",
    ".pkl",
    ".pt",
    ".pth",
    ".srt",
    ".vtt",
    ".xml",
    ".yaml",
    ".yml",
}
_ARCHIVES = {".7z", ".bz2", ".gz", ".part", ".rar", ".tar", ".tgz", ".tmp", ".xz", ".zip"}
_SOUNDS = {".aac", ".flac", ".m4a", ".mp3", ".ogg", ".wav"}
_NOT_VIDEOS = IMAGE_SUFFIXES | _DOCUMENTS | _TABLES | _ARCHIVES | _SOUNDS


@dataclass(frozen=True)
class Video:
    """One video of a dataset."""

    path: Path  # a file, or a folder of images
    label: int  # index into the dataset's classes


@dataclass(frozen=True)
class VideoDataset:
    """The videos of a folder or manifest, by split."""

    source: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Video, ...]]  # "train", "val", and "test" if the source has that beside "val"
    held_out: bool = False  # the source has no split to validate on: "val" was taken out of "train"
    ignored: tuple[Path, ...] = ()  # what lies among the videos and is none

    @property
    def train(self) -> tuple[Video, ...]:
        """The videos to train on. DatasetError if there are none, or of one class only."""
        if len(self.classes) < 2:
            raise DatasetError(f"{self.source}: training needs at least 2 classes, found only {self.classes[0]!r}")
        if not self.splits.get("train"):
            raise DatasetError(f"{self.source}: no videos to train on, only the splits {', '.join(self.splits)}")
        return self.splits["train"]

    @property
    def val(self) -> tuple[Video, ...]:
        """The videos to validate on while training, none of them in `train`; may be empty."""
        return self.splits["val"]

    @property
    def for_evaluation(self) -> tuple[Video, ...]:
        """The videos to evaluate a finished model on: the source's own validation split, or all videos if it has none."""
        return self.for_check if self.held_out else self.val

    @property
    def for_check(self) -> tuple[Video, ...]:
        """All videos, split by split."""
        return tuple(video for videos in self.splits.values() for video in videos)


def open_dataset(source: Path, *, val_share: float = 0.2, seed: int = 0) -> VideoDataset:
    """Find the videos of a folder or manifest. DatasetError says what is wrong with it; no video is opened.

    The split val (else valid or validation, else test) is what to validate on. Without any, `val_share` of each class is held out
    of training, the same for the same `seed`: at least one video of every class that has two.
    """
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share must be at least 0 and below 1, got {val_share}")
    if source.is_dir():
        entries, ignored = _read_folder(source)
    elif source.exists():
        entries, ignored = _read_manifest(source), []
    else:
        raise DatasetError(f"{source}: no such folder or manifest")
    classes = tuple(sorted({entry.label for entry in entries}))
    for name in classes:
        if not name.isprintable():
            raise DatasetError(f"{source}: the class name {name!r} has characters that are no text; rename it")
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[str, list[Video]] = {}
    for entry in entries:
        splits.setdefault(entry.split or "train", []).append(Video(entry.path, numbers[entry.label]))
    if "val" not in splits and "test" in splits:
        splits["val"] = splits.pop("test")
    held_out = "val" not in splits
    if held_out:
        splits["train"], splits["val"] = _hold_out(splits["train"], val_share, seed)
    return VideoDataset(source, classes, {name: (*videos,) for name, videos in splits.items()}, held_out, (*ignored,))


def relabel(dataset: VideoDataset, labels: Sequence[str]) -> VideoDataset:
    """The dataset with a model's classes in place of its own. DatasetError if the model does not know one of them."""
    for name in dataset.classes:
        if name not in labels:
            raise DatasetError(f"{dataset.source}: the model has no class {name!r}{nearest(name, labels)}")
    numbers = [labels.index(name) for name in dataset.classes]
    splits = {
        split: tuple(replace(video, label=numbers[video.label]) for video in videos)
        for split, videos in dataset.splits.items()
    }
    return replace(dataset, classes=tuple(labels), splits=splits)


def _hold_out(videos: Sequence[Video], share: float, seed: int) -> tuple[list[Video], list[Video]]:
    """The videos that stay, and those held out: `share` of each class, at least one and never all."""
    by_class: dict[int, list[Video]] = {}
    for video in sorted(videos, key=lambda video: video.path):
        by_class.setdefault(video.label, []).append(video)
    held: set[Video] = set()
    for label, own in by_class.items():
        count = min(max(round(len(own) * share), 1), len(own) - 1) if share else 0
        held.update(Random(f"{seed}/{label}").sample(own, count))
    return [video for video in videos if video not in held], [video for video in videos if video in held]


@dataclass(frozen=True)
class _Entry:
    path: Path
    label: str
    split: str  # a value of _SPLITS, or "" if the source has none


def _read_folder(source: Path) -> tuple[list[_Entry], list[Path]]:
    """The videos of a folder, and what is none."""
    folders, ignored = _list(source)
    split_folders = [folder for folder in folders if folder.name.lower() in _SPLITS and _holds_classes(folder)]
    class_folders = [("", folder) for folder in folders]
    if split_folders:
        ignored += [folder for folder in folders if folder not in split_folders]
        class_folders = []
        for split_folder in split_folders:
            folders, files = _list(split_folder)
            ignored += files
            class_folders += [(_SPLITS[split_folder.name.lower()], folder) for folder in folders]
    if not class_folders:
        raise DatasetError(f"{source}: no class folders in it; expected {source.name}/class/video, or a CSV manifest")
    entries: list[_Entry] = []
    for split, folder in class_folders:
        clips, files = _list(folder)
        videos = [clip for clip in clips if _holds_images(clip)]
        videos += [file for file in files if file.suffix.lower() not in _NOT_VIDEOS]
        ignored += sorted({*clips, *files}.difference(videos))
        entries += [_Entry(path, folder.name, split) for path in sorted(videos)]
    empty = sorted({folder.name for _, folder in class_folders}.difference(entry.label for entry in entries))
    if empty:
        raise DatasetError(f"{source}: no videos in the class folders {first_of(empty)}")
    return entries, ignored


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and files in a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as found:  # asks the disk once, not once a file
            kinds = {folder / one.name: one.is_dir() for one in found if not one.name.startswith(".")}
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error
    names = sorted(kinds)
    return [name for name in names if kinds[name]], [name for name in names if not kinds[name]]


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in _list(folder)[1])


def _holds_classes(folder: Path) -> bool:
    """Whether folders of videos are in it; a class called train holds videos itself."""
    return any(not _holds_images(inner) for inner in _list(folder)[0])


def _read_manifest(source: Path) -> list[_Entry]:
    """The rows of a CSV file; its paths are absolute or start at its folder."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for name in ("path", "label"):
                if name not in columns:
                    raise DatasetError(
                        f"{source}: no column {name!r} among {first_of(columns) or 'none'}{nearest(name, columns)}"
                    )
            entries = [_entry(source, reader.line_num, row) for row in reader]
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{source}: not a CSV manifest in UTF-8: {error}") from error
    if not entries:
        raise DatasetError(f"{source}: no videos in it, only a header")
    known: dict[Path, _Entry] = {}
    for entry in entries:
        if known.setdefault(entry.path, entry) != entry:
            raise DatasetError(f"{source}: {entry.path} is listed with two labels or in two splits")
    missing = [entry.path for entry in entries if not entry.path.exists()]
    if missing:
        raise DatasetError(f"{source}: {len(missing)} of its {len(entries)} videos are missing: {first_of(missing)}")
    return entries


def _entry(source: Path, line: int, row: Mapping[str | None, str | None]) -> _Entry:
    where = f"{source}, line {line}"
    if None in row:
        raise DatasetError(f"{where}: more values than columns; a value with a comma in it needs quotes")
    values = {name: (row[name] or "").strip() for name in ("path", "label", "split") if name in row}
    for name, value in values.items():
        if not value:
            raise DatasetError(f"{where}: the {name} is empty")
    split = values.get("split", "").lower()
    if split and split not in _SPLITS:
        raise DatasetError(f"{where}: split {split!r} is none of {', '.join(_SPLITS)}{nearest(split, _SPLITS)}")
    return _Entry(Path(os.path.normpath(source.parent / values["path"])), values["label"], _SPLITS.get(split, ""))


def first_of(names: Sequence[object]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
