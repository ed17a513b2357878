"""Which files: which videos does a source hold, of which classes, in which splits?

A source is a folder per class, a manifest, or a published data set in one of the formats of formats.py. A folder of images is one
video, and so is a stretch of a tar file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Literal

from zeroi2v.config import DataConfig
from zeroi2v.data.folders import LABEL_SEPARATOR, Entry, Listing, first_names
from zeroi2v.data.formats import read_source
from zeroi2v.errors import ConfigError, DatasetError, nearest


@dataclass(frozen=True)
class Video:
    """One video of a dataset."""

    path: Path  # a file, a folder of images, or the `tar_address` of a file in a tar file
    label: int  # index into the dataset's classes; where a video may have several labels, the first of them
    others: tuple[int, ...] = ()  # the further ones, rising

    @classmethod
    def of(cls, path: Path, labels: Iterable[int]) -> Video:
        """A video with these labels, at least one."""
        label, *others = sorted(labels)
        return cls(path, label, (*others,))

    @property
    def labels(self) -> tuple[int, ...]:
        """Every label."""
        return (self.label, *self.others)


@dataclass(frozen=True)
class VideoDataset:
    """The videos of a source, by split."""

    source: Path
    classes: tuple[str, ...]
    splits: Mapping[
        str, tuple[Video, ...]
    ]  # "train", "val", and "test" if the source has that beside "val"
    held_out: bool = False  # the source has no split to validate on: "val" was taken out of "train"
    ignored: tuple[Path, ...] = ()  # what lies among the videos and is none
    format: str = "folder"  # the row of FORMATS that read it
    flip_pairs: tuple[
        tuple[str, str], ...
    ] = ()  # classes that a left-right flip exchanges, where the data set has such
    missing: tuple[Path, ...] = ()  # videos that were left out because they are not on disk
    repeated: tuple[
        str, ...
    ] = ()  # for each video that is listed twice alike: where; it is used once
    columns: Mapping[Path, Mapping[str, str]] = field(
        default_factory=dict
    )  # the further columns of each video's row in a manifest

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of thing that is not used: its number and the first three."""
        odd = {
            "files or folders are no videos of a class": self.ignored,
            "videos are missing and left out": self.missing,
            "lines repeat a video, which is used once": self.repeated,
        }
        return tuple(
            f"{self.source}: {len(odd[kind])} {kind}: {first_names(odd[kind])}"
            for kind in odd
            if odd[kind]
        )

    @property
    def train(self) -> tuple[Video, ...]:
        """The videos to train on. DatasetError if there are none, or of one class only."""
        if len(self.classes) < 2:
            raise DatasetError(
                f"{self.source}: training needs at least 2 classes, found only {self.classes[0]!r}"
            )
        if not self.splits.get("train"):
            raise DatasetError(
                f"{self.source}: no videos to train on, only the splits {', '.join(self.splits)}"
            )
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


def open_dataset(
    source: Path,
    config: DataConfig | None = None,
    *,
    val_share: float = 0.2,
    seed: int = 0,
    missing: Literal["stop", "skip", "keep"] = "stop",
) -> VideoDataset:
    """Find the videos of a source, in the format that `config` names, else the one recognised. No video is opened.

    The split val (else valid or validation, else test) is what to validate on. Without any, `val_share` of each class is held out
    of training, the same for the same `seed`: at least one video of every class that has two. `missing`: listed videos that are not on
    disk are an error, left out, or kept, as others that cannot be read are. DatasetError says what is wrong with the source, with
    file and line.
    """
    config = config or DataConfig()
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share must be at least 0 and below 1, got {val_share}")
    name, listing = read_source(source, config)
    classes = listing.classes or tuple(sorted({entry.label for entry in listing.entries}))
    entries, labels, repeated = _checked(source, listing, classes, config.multi_label)
    absent = [entry.path for entry in entries if not entry.found]
    if absent and (missing == "stop" or len(absent) == len(entries)):
        count = f"{len(absent)} of its {len(entries)} videos are missing"
        raise DatasetError(f"{source}: {count}: {first_names(absent)}")
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[str, list[Video]] = {}
    for entry in entries:
        videos = splits.setdefault(entry.split or "train", [])
        if entry.found or missing == "keep":
            videos.append(
                Video.of(Path(entry.path), (numbers[name] for name in labels[entry.path]))
            )
    if "val" not in splits and "test" in splits:
        splits["val"] = splits.pop("test")
    held_out = "val" not in splits
    if held_out:
        splits["train"], splits["val"] = _hold_out(splits["train"], val_share, seed)
    return VideoDataset(
        source,
        classes,
        {split: (*listed,) for split, listed in splits.items()},
        held_out,
        (*listing.ignored,),
        name,
        listing.flip_pairs,
        tuple(map(Path, absent)) if missing == "skip" else (),
        (*repeated,),
        {Path(path): columns for path, columns in listing.columns.items()},
    )


def _checked(
    source: Path, listing: Listing, classes: Sequence[str], multi_label: bool
) -> tuple[list[Entry], dict[str, set[str]], list[str]]:
    """The first entry of each video, the labels of each path, and what was said twice.

    DatasetError for lines that cannot be used, or contradict each other.
    """
    for name in classes:
        if multi_label and LABEL_SEPARATOR in name:
            raise DatasetError(
                f"{source}: the class name {name!r} holds a bar, which separates labels; rename it"
            )
        if not name.isprintable():
            raise DatasetError(
                f"{source}: the class name {name!r} has characters that are no text; rename it"
            )
    known = {*classes}
    wrong, repeated = [*listing.wrong], []
    first: dict[str, Entry] = {}
    labels: dict[str, set[str]] = {}
    for entry in listing.entries:
        earlier = first.setdefault(entry.path, entry)
        if not entry.label:
            wrong.append(f"{entry.where}: the label is empty")
        elif entry.label not in known:
            near = nearest(entry.label, classes) if len(wrong) < 3 else ""  # no more are shown
            wrong.append(f"{entry.where}: no class is called {entry.label!r}{near}")
        elif earlier is entry:
            labels[entry.path] = {entry.label}
        elif earlier.split != entry.split or (earlier.label != entry.label and not multi_label):
            what = "label" if earlier.label != entry.label and not multi_label else "split"
            wrong.append(
                f"{entry.where}: {entry.path} is also at {earlier.where}, with another {what}"
            )
        elif entry.label in labels.setdefault(entry.path, set()):
            repeated.append(f"{entry.where}: {entry.path} is also at {earlier.where}")
        else:
            labels[entry.path].add(entry.label)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DatasetError("; ".join(wrong[:3]) + more)
    return [*first.values()], labels, repeated


def relabel(dataset: VideoDataset, labels: Sequence[str]) -> VideoDataset:
    """The dataset with a model's classes in place of its own. DatasetError if the model does not know one of them."""
    for name in dataset.classes:
        if name not in labels:
            raise DatasetError(
                f"{dataset.source}: the model has no class {name!r}{nearest(name, labels)}"
            )
    numbers = [labels.index(name) for name in dataset.classes]
    splits = {
        split: tuple(
            Video.of(video.path, (numbers[label] for label in video.labels)) for video in videos
        )
        for split, videos in dataset.splits.items()
    }
    return replace(dataset, classes=tuple(labels), splits=splits)


def _hold_out(videos: Sequence[Video], share: float, seed: int) -> tuple[list[Video], list[Video]]:
    """The videos that stay, and those held out: `share` of each class, by first label, at least one and never all."""
    by_class: dict[int, list[Video]] = {}
    for video in sorted(videos, key=lambda video: video.path.parts):
        by_class.setdefault(video.label, []).append(video)
    held: set[Video] = set()
    for label, own in by_class.items():
        count = min(max(round(len(own) * share), 1), len(own) - 1) if share else 0
        held.update(Random(f"{seed}/{label}").sample(own, count))
    return [video for video in videos if video not in held], [
        video for video in videos if video in held
    ]
