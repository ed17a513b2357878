"""Which videos does a source hold, of which classes, in which splits?

A source is a folder per class, a manifest, or a published data set (formats/registry.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Literal

from zeroi2v.config import DataConfig
from zeroi2v.data.directions import BACKWARDS, Direction, labels_in_both_directions
from zeroi2v.data.formats.registry import read_source
from zeroi2v.data.formats.splits import SPLITS
from zeroi2v.data.listing_checks import (
    CheckedListing,
    check_listing,
    classes_without_training,
    without_classes,
)
from zeroi2v.data.spellings import canonical
from zeroi2v.errors import ConfigError, DatasetError, first_names, how_many, nearest, nearest_class


@dataclass(frozen=True)
class Video:
    """One video of a data set."""

    path: Path  # a file, a folder of images, or the `tar_address` of a file in a tar file
    label: int  # index into the data set's classes; the first index if there are several labels
    others: tuple[int, ...] = ()  # the further indices, rising
    # the direction in which clips are played; None: clips are played as they are, and not blurred
    direction: Direction | None = None

    @classmethod
    def of(cls, path: Path, labels: Iterable[int], *, direction: Direction | None = None) -> Video:
        """A video with these labels, at least one."""
        label, *others = sorted(labels)
        return cls(path, label, (*others,), direction)

    @property
    def labels(self) -> tuple[int, ...]:
        """Every label."""
        return (self.label, *self.others)


@dataclass(frozen=True)
class VideoDataset:
    """The videos of a source, by split."""

    source: Path
    classes: tuple[str, ...]
    # "train", "val", and "test" if the source has a test split beside its val split
    splits: Mapping[str, tuple[Video, ...]]
    held_out: bool = False  # "val" was taken out of "train": the source has no split to validate on
    ignored: tuple[Path, ...] = ()  # files and folders that are not used
    format: str = "folder"  # the row of FORMATS that read the source
    flip_pairs: tuple[tuple[str, str], ...] = ()  # classes that a left-right flip exchanges
    missing: tuple[Path, ...] = ()  # videos that were left out because they are not on disk
    left_out: tuple[Path, ...] = ()  # the videos of the classes that `data.leave_out` names
    repeated: tuple[str, ...] = ()  # a sentence for each label of a video that is listed twice
    validation: Literal["val", "test"] = "val"  # how the source calls the split "val"
    # the columns of a manifest beside path, label and split, by video: name of the column -> value
    columns: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # further warnings, a line each
    directions: bool = False  # whether every video is there twice, forwards and backwards

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of odd thing: how many there are, and the first three."""
        odd: tuple[tuple[str, str, str, Sequence[object]], ...] = (
            ("not used (no video of a class)", "file or folder", "files or folders", self.ignored),
            ("missing, left out", "video", "videos", self.missing),
            ("repeated, used once", "line", "lines", self.repeated),
        )
        counts = (
            f"{self.source}: {kind}: {how_many(len(things), noun, nouns)}: {first_names(things)}"
            for kind, noun, nouns, things in odd
            if things
        )
        return (*counts, *self.notes)

    @property
    def train(self) -> tuple[Video, ...]:
        """The videos to train on. DatasetError if there are none, or of one class only."""
        if len(self.classes) < 2:
            raise DatasetError(
                f"{self.source}: training needs at least 2 classes, found only "
                f"{self.classes[0]!r}; add videos of another class"
            )
        if not self.splits.get("train"):
            raise DatasetError(
                f"{self.source}: no videos to train on, only the splits {', '.join(self.splits)}; "
                "add a split train"
            )
        return self.splits["train"]

    @property
    def val(self) -> tuple[Video, ...]:
        """The videos to validate on while training, none of them in `train`; may be empty."""
        return self.splits["val"]

    @property
    def own_splits(self) -> dict[str, tuple[Video, ...]]:
        """The splits as the source has them; a source without splits has "train" only."""
        if self.held_out:
            return {"train": self.for_check}
        names = {"train": "train", "val": self.validation, "test": "test"}
        return {own: self.splits[name] for name, own in names.items() if name in self.splits}

    def for_evaluation(self, split: str | None = None) -> tuple[Video, ...]:
        """The videos to evaluate a finished model on.

        Without `split`, the source's validation split, or else its test split, or else all videos.
        DatasetError if the source does not have the split.
        """
        own = self.own_splits
        if split is None:
            return self.for_check if self.held_out else self.val
        name = SPLITS.get(split.lower(), split)
        if name not in own:
            raise DatasetError(
                f"{self.source}: no split {split!r}, only {', '.join(own)}{nearest(split, own)}"
            )
        return own[name]

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
    absent_classes: Literal["stop", "skip"] = "stop",
) -> VideoDataset:
    """Find the videos of a source. No video is decoded.

    `config` names the format, or the first format that recognises the source is taken. The videos
    to validate on are the split "val", or else the split "test". If the source has neither split,
    `val_share` of the videos of each class is held out of training: at least one video of every
    class that has two. The same `seed` holds out the same videos. With `config.directions` every
    video is there forwards and backwards, both in the same split. `missing`: a listed video that is
    not on disk is an error, is left out, or is kept as a video that cannot be read.
    `absent_classes`: a class of `config.leave_out` that the source lacks is an error, or is passed
    over. DatasetError says what is wrong with the source, with file and line.
    """
    config = config or DataConfig()
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share must be at least 0 and below 1, got {val_share}")
    name, listing = read_source(source, config)
    complete = check_listing(source, listing, multi_label=config.multi_label)
    checked = without_classes(
        source, complete, config.leave_out, may_be_absent=absent_classes == "skip"
    )
    kept = {entry.path for entry in checked.videos}
    left_out = {*map(canonical, config.leave_out)}
    absent = _absent(source, checked, may_be_absent=missing != "stop")
    splits = _videos_by_split(checked, keeps_missing=missing == "keep")
    only_test = "val" not in splits and "test" in splits
    if only_test:
        splits["val"] = splits.pop("test")
    held_out = "val" not in splits
    if held_out:
        splits["train"], splits["val"] = _hold_out(splits["train"], val_share, seed)
    dataset = VideoDataset(
        source,
        checked.classes,
        {split: (*videos,) for split, videos in splits.items()},
        held_out=held_out,
        ignored=(*listing.ignored,),
        format=name,
        flip_pairs=tuple(
            pair for pair in listing.flip_pairs if left_out.isdisjoint(map(canonical, pair))
        ),
        left_out=tuple(Path(entry.path) for entry in complete.videos if entry.path not in kept),
        missing=tuple(map(Path, absent)) if missing == "skip" else (),
        repeated=(*checked.repeated,),
        validation="test" if only_test else "val",
        columns={Path(path): columns for path, columns in listing.columns.items()},
    )
    notes = [*listing.notes, *checked.notes, *_classes_without_training(dataset)]
    dataset = replace(dataset, notes=(*notes,))
    return _in_both_directions(dataset) if config.directions else dataset


def _absent(source: Path, checked: CheckedListing, *, may_be_absent: bool) -> list[str]:
    """The videos that are not on disk.

    DatasetError if no video is on disk, or if one is not and none `may_be_absent`.
    """
    absent = [entry.path for entry in checked.videos if not entry.found]
    if absent and (not may_be_absent or len(absent) == len(checked.videos)):
        videos_listed = how_many(len(checked.videos), "video")
        raise DatasetError(
            f"{source}: {len(absent)} of its {videos_listed} "
            f"{'is' if len(absent) == 1 else 'are'} missing: {first_names(absent)}; "
            "put the missing videos there, or set data.videos to their folder"
        )
    return absent


def _videos_by_split(checked: CheckedListing, *, keeps_missing: bool) -> dict[str, list[Video]]:
    """The videos of each split of a listing; videos without a split are in "train"."""
    numbers = {label: number for number, label in enumerate(checked.classes)}
    splits: dict[str, list[Video]] = {}
    for entry in checked.videos:
        videos = splits.setdefault(entry.split or "train", [])
        if entry.found or keeps_missing:
            labels = checked.labels[entry.path]
            videos.append(Video.of(Path(entry.path), (numbers[label] for label in labels)))
    return splits


def _in_both_directions(dataset: VideoDataset) -> VideoDataset:
    """The data set with every video twice, forwards and backwards, in the same split.

    DatasetError if a class already has the name of another class played backwards.
    """
    classes = labels_in_both_directions(dataset.classes)
    taken = [name for name in dataset.classes if name + BACKWARDS in dataset.classes]
    if taken:
        raise DatasetError(
            f"{dataset.source}: data.directions adds a class {taken[0] + BACKWARDS!r}, "
            "and there is one of this name already; rename it"
        )
    directions: tuple[Direction, Direction] = ("forwards", "backwards")
    splits = {
        split: tuple(
            Video(video.path, 2 * video.label + number, direction=direction)
            for video in videos
            for number, direction in enumerate(directions)
        )
        for split, videos in dataset.splits.items()
    }
    return replace(dataset, classes=classes, splits=splits, directions=True)


def _classes_without_training(dataset: VideoDataset) -> list[str]:
    labels = {
        split: [{dataset.classes[label] for label in video.labels} for video in videos]
        for split, videos in dataset.splits.items()
    }
    return classes_without_training(dataset.source, dataset.classes, labels)


def relabel(dataset: VideoDataset, labels: Sequence[str]) -> VideoDataset:
    """The data set with a model's classes in place of its own. DatasetError for an unknown class.

    Names are the same if they are the same text, with composed or decomposed letters.
    """
    known = {canonical(name): number for number, name in enumerate(labels)}
    for name in dataset.classes:
        if canonical(name) not in known:
            raise DatasetError(
                f"{dataset.source}: the model has no class {name!r}{nearest_class(name, labels)} "
                "(data.leave_out leaves classes out)"
            )
    numbers = [known[canonical(name)] for name in dataset.classes]
    splits = {
        split: tuple(
            Video.of(
                video.path,
                (numbers[label] for label in video.labels),
                direction=video.direction,
            )
            for video in videos
        )
        for split, videos in dataset.splits.items()
    }
    return replace(dataset, classes=tuple(labels), splits=splits)


def _hold_out(videos: Sequence[Video], share: float, seed: int) -> tuple[list[Video], list[Video]]:
    """The videos that stay, and the videos held out: `share` of each class, at least one, not all.

    A video with several labels counts for its first label.
    """
    by_class: dict[int, list[Video]] = {}
    for video in sorted(videos, key=lambda video: video.path.parts):
        by_class.setdefault(video.label, []).append(video)
    held: set[Video] = set()
    for label, same_class in by_class.items():
        most = len(same_class) - 1
        count = min(max(round(len(same_class) * share), 1), most) if share else 0
        held.update(Random(f"{seed}/{label}").sample(same_class, count))
    stay = [video for video in videos if video not in held]
    return stay, [video for video in videos if video in held]
