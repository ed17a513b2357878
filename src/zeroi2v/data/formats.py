"""Which formats of data sets are there, how is each recognised, and how are its lists read?

A format is a row of FORMATS: a function that recognises a source and one that reads it. Lists are read as they are published;
docs/data.md shows the layout of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from zeroi2v.config import DataConfig
from zeroi2v.data.folders import (
    SPLITS,
    Entry,
    FileNames,
    Listing,
    first_line,
    first_names,
    labels_in,
    list_folder,
    name_numbers,
    place,
    read_class_folders,
    read_class_names,
    read_json,
    read_lines,
    read_rows,
    read_shards,
    require_text,
    split_in,
    tar_files,
)
from zeroi2v.errors import ConfigError, DatasetError, nearest

_LIST_FOLDERS: Final = {
    "annotation",
    "annotations",
    "labels",
    "lists",
    "splits",
    "testtrainmulti_7030_splits",  # HMDB51's
    "ucftraintestlist",  # UCF101's
}
_CLASS_FILES: Final = re.compile(r"label_map.*\.txt|classes\.txt|classind\.txt", re.IGNORECASE)
_HMDB_LIST: Final = re.compile(r"(.+)_test_split([123])\.txt")
_SSV2_PREFIXES: Final = ("", "something-something-v2-")
_SSV2_FLIPS: Final = (
    (86, 87),
    (93, 94),
    (166, 167),
)  # numbers of the classes that a left-right flip exchanges
_SSV2_CLASSES: Final = 174
_MMACTION_LINE: Final = re.compile(r"(\S.*?)((?:\s+-?\d+)+)\s*")
_KINETICS_COLUMNS: Final = ("youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Source:
    """What a format is asked to recognise, or to read."""

    path: Path  # as the user named it
    config: DataConfig
    lists: Mapping[
        str, Path
    ]  # by name: the CSV, JSON and text files in it, or in a folder of lists inside it

    @classmethod
    def of(cls, path: Path, config: DataConfig) -> Source:
        """Look for lists. DatasetError if there is nothing at the path."""
        if not path.exists():
            raise DatasetError(f"{path}: no such folder or manifest")
        if path.is_file():
            return cls(path, config, {path.name: path})
        folders, files = list_folder(path)
        for folder in folders:
            if folder.name.lower() in _LIST_FOLDERS:
                files += list_folder(folder)[1]
        kept = [file for file in files if file.suffix.lower() in (".csv", ".json", ".txt")]
        return cls(path, config, {file.name: file for file in reversed(kept)})

    @property
    def videos(self) -> Path:
        """The folder of the videos."""
        if self.config.videos is not None:
            folder = Path(self.config.videos)
            if not folder.is_dir():
                raise DatasetError(
                    f"{folder}: no such folder; data.videos names the folder of the videos"
                )
            return folder
        folder = self.path if self.path.is_dir() else self.path.parent
        is_inside = self.path.is_file() and folder.name.lower() in _LIST_FOLDERS
        return folder.parent if is_inside else folder

    def classes(self) -> tuple[str, ...] | None:
        """The names in the file of class names, if there is one: label_map*.txt, classes.txt, or what data.classes names."""
        file = None if self.config.classes is None else Path(self.config.classes)
        if file is None:
            file = next(
                (self.lists[name] for name in sorted(self.lists) if _CLASS_FILES.fullmatch(name)),
                None,
            )
        return None if file is None else read_class_names(file)

    def need(self, *names: str) -> Path:
        """The list of one of these names. DatasetError if there is none."""
        for name in names:
            if name in self.lists:
                return self.lists[name]
        raise DatasetError(
            f"{self.path}: no {' or '.join(names)} in it{nearest(names[0], self.lists)}"
        )


class Format(NamedTuple):
    """One way to store a data set."""

    recognises: Callable[[Source], bool]
    read: Callable[[Source], Listing]


def read_source(path: Path, config: DataConfig) -> tuple[str, Listing]:
    """The name of a source's format and what it lists. The first row of FORMATS that recognises it reads it, unless one is named."""
    if config.format != "auto" and config.format not in FORMATS:
        known = ["auto", *FORMATS]
        raise ConfigError(
            f"format {config.format!r} is none of {', '.join(known)}{nearest(config.format, known)}"
        )
    source = Source.of(path, config)
    name = config.format
    if name == "auto":
        name = next(name for name, format in FORMATS.items() if format.recognises(source))
    listing = FORMATS[name].read(source)
    if not (listing.entries or listing.wrong):
        only = ", only a header" if name == "manifest" else f" that can be read as {name}"
        raise DatasetError(f"{path}: no videos in it{only}")
    return name, listing


# Kinetics-400, 600 and 700


def _kinetics_lists(source: Source) -> list[Path]:
    lists = [file for name, file in sorted(source.lists.items()) if name.lower().endswith(".csv")]
    return [
        file for file in lists if all(column in first_line(file) for column in _KINETICS_COLUMNS)
    ]


def _kinetics(source: Source) -> Listing:
    """label,youtube_id,time_start,time_end,split; a list without labels, as of some test splits, is left out."""
    whole = Listing([])
    files = _kinetics_lists(source)
    if not files:
        raise DatasetError(
            f"{source.path}: no CSV file with the columns {', '.join(_KINETICS_COLUMNS)}"
        )
    splits = [split_in(file.stem) for file in files]
    for number, split in enumerate(splits):
        if split in splits[:number]:
            first = files[splits.index(split)]
            raise DatasetError(
                f"{files[number]}: {first.name} lists the split {split or 'train'} too; keep one of them"
            )
    by_length = sorted(list_folder(source.videos)[0], key=lambda folder: -len(folder.name))
    folders = {split_in(folder.name): folder for folder in by_length}  # train rather than train_256
    for file, split_of_file in zip(files, splits, strict=True):
        rows = read_rows(file)
        if "label" not in next(rows)[1]:
            whole.ignored.append(file)
            continue
        by_split: dict[str, list[Entry]] = {}
        for line, row in rows:
            where = f"{file}, line {line}"
            split = split_in(row.get("split") or "") or split_of_file
            label, name, start, end = (
                (row[column] or "").strip() for column in ("label", *_KINETICS_COLUMNS)
            )
            if not (name and start.isdecimal() and end.isdecimal()):
                whole.wrong.append(
                    f"{where}: expected a youtube_id, and whole seconds as time_start and time_end"
                )
                continue
            path = f"{name}_{int(start):06d}_{int(end):06d}"
            by_split.setdefault(split, []).append(Entry(path, label, split, where))
        for split, entries in by_split.items():
            folder = folders.get(split, source.videos) if split else source.videos
            whole.entries += place(Listing(entries), folder, ending=".mp4").entries
    return whole


# Something-Something V2


def _ssv2(source: Source) -> Listing:
    """labels.json numbers the classes; a list has the template of each id, and test-answers.csv lines of id;label."""
    labels = source.need(*(f"{prefix}labels.json" for prefix in _SSV2_PREFIXES))
    numbers = read_json(labels, dict)
    order = sorted(
        numbers, key=lambda name: int(numbers[name]) if str(numbers[name]).isdecimal() else -1
    )
    if [str(numbers[name]) for name in order] != [str(number) for number in range(len(order))]:
        raise DatasetError(f"{labels}: its numbers must be 0 to {len(order) - 1}, each once")
    pairs = (
        [(order[one], order[other]) for one, other in _SSV2_FLIPS]
        if len(order) == _SSV2_CLASSES
        else []
    )
    listing = Listing([], tuple(order), tuple(pairs))
    for split in ("train", "validation"):
        file = source.need(*(f"{prefix}{split}.json" for prefix in _SSV2_PREFIXES))
        for number, item in enumerate(read_json(file, list), start=1):
            where = f"{file}, entry {number}"
            if (
                not isinstance(item, dict)
                or "id" not in item
                or not isinstance(item.get("template"), str)
            ):
                listing.wrong.append(f"{where}: expected an object with id and template")
                continue
            label = item["template"].replace("[", "").replace("]", "")
            listing.entries.append(Entry(str(item["id"]), label, SPLITS[split], where))
    answers = [name for name in source.lists if name.endswith("test-answers.csv")]
    for where, line in read_lines(source.lists[answers[0]]) if answers else ():
        name, _, label = line.partition(";")
        listing.entries.append(Entry(name, label.strip(), "test", where))
    if not answers:
        listing.ignored += [
            file for name, file in source.lists.items() if name.endswith("test.json")
        ]
    return place(listing, source.videos, ending=".webm")


# UCF101 and HMDB51: three official splits


def _ucf101(source: Source) -> Listing:
    """classInd.txt orders the classes; trainlist0N.txt has lines of class/video.avi number, testlist0N.txt of class/video.avi."""
    listing = Listing([], read_class_names(source.need("classInd.txt")))
    numbers = {name: str(number) for number, name in enumerate(listing.classes or (), start=1)}
    for split in ("train", "test"):
        for where, line in read_lines(source.need(f"{split}list0{source.config.split}.txt")):
            name, _, number = line.partition(" ")
            label, _, video = name.rpartition("/")
            if number.strip() not in ("", numbers.get(label)):
                listing.wrong.append(
                    f"{where}: {number.strip()} is not the number of the class {label!r}"
                )
            else:
                listing.entries.append(
                    Entry(f"{label}/{os.path.splitext(video)[0]}", label, split, where)
                )
    return place(listing, source.videos, with_class=True, ending=".avi")


def _hmdb51(source: Source) -> Listing:
    """CLASS_test_splitN.txt has lines of video.avi and 1 for training, 2 for testing, 0 for neither."""
    listing = Listing([])
    lists = {name: match for name in sorted(source.lists) if (match := _HMDB_LIST.fullmatch(name))}
    chosen = [
        (match[1], source.lists[name])
        for name, match in lists.items()
        if int(match[2]) == source.config.split
    ]
    if not chosen:
        raise DatasetError(f"{source.path}: no CLASS_test_split{source.config.split}.txt in it")
    for label, file in chosen:
        for where, line in read_lines(file):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2"):
                listing.wrong.append(
                    f"{where}: {use!r} is none of 0 (unused), 1 (train) and 2 (test)"
                )
            elif use != "0":
                path = f"{label}/{os.path.splitext(name.strip())[0]}"
                listing.entries.append(Entry(path, label, "train" if use == "1" else "test", where))
    listing.classes = tuple(label for label, _ in chosen)
    return place(listing, source.videos, with_class=True, ending=".avi")


# Diving48


def _diving48(source: Source) -> Listing:
    """The vocabulary lists the four parts of each class; a list has the vid_name and label, a number, of each video."""
    vocabulary = source.need("Diving48_vocab.json")
    classes = tuple(" ".join(map(str, parts)) for parts in read_json(vocabulary, list))
    listing = Listing([], classes)
    for split in ("train", "test"):
        file = source.need(f"Diving48_V2_{split}.json")
        for number, item in enumerate(read_json(file, list), start=1):
            where = f"{file}, entry {number}"
            if not isinstance(item, dict) or "vid_name" not in item or "label" not in item:
                listing.wrong.append(f"{where}: expected an object with vid_name and label")
            else:
                listing.entries.append(
                    Entry(str(item["vid_name"]), str(item["label"]), split, where)
                )
    return place(name_numbers(listing), source.videos, ending=".mp4")


# Text lists of MMAction


def _mmaction_lists(source: Source) -> list[tuple[str, Path]]:
    """Split and path of the text lists, those of another official split left out."""
    found = []
    for name, file in sorted(source.lists.items()):
        split, numbered = split_in(file.stem), re.search(r"split_?(\d)", file.stem)
        is_other = numbered is not None and int(numbered[1]) != source.config.split
        if (
            not name.endswith(".txt")
            or _CLASS_FILES.fullmatch(name)
            or not _MMACTION_LINE.fullmatch(first_line(file))
        ):
            continue
        if source.path.is_file() or (split and not is_other):
            found.append((split, file))
    return found


def _is_mmaction(source: Source) -> bool:
    """Whether there are such lists and, beside them, a video of the first hundred that they name."""
    lists = _mmaction_lists(source)
    return bool(lists) and (
        source.path.is_file() or _mmaction_folder(source, *lists[0], FileNames()) is not None
    )


def _mmaction_folder(source: Source, split: str, file: Path, names: FileNames) -> Path | None:
    """The folder that a list's paths start from."""
    first = [
        match[1] for _, line in read_lines(file)[:100] if (match := _MMACTION_LINE.fullmatch(line))
    ]
    inner = ("", "videos", f"videos_{split}", "rawframes", f"rawframes_{split}", split)
    folders = [source.videos] if source.config.videos else [source.videos / name for name in inner]
    return next(
        (one for one in folders if any(names.has(os.path.join(one, name)) for name in first)), None
    )


def _mmaction(source: Source) -> Listing:
    """Lines of path and label, or of folder, number of frames and label. DatasetError if a line has several labels unasked."""
    listing, names = Listing([], source.classes()), FileNames()
    lists = _mmaction_lists(source)
    splits = [split for split, _ in lists]
    if not lists or len(splits) > len({*splits}):
        several = f"several for one split: {first_names([file.name for _, file in lists])}; name the one to use"
        raise DatasetError(
            f"{source.path}: {several if lists else 'no text list of path and label for a split in it'}"
        )
    for split, file in lists:
        folder = str(_mmaction_folder(source, split, file, names) or source.videos)
        for where, line in read_lines(file):
            match = _MMACTION_LINE.fullmatch(line)
            if match is None:
                listing.wrong.append(
                    f"{where}: expected a path and the number of its class, got {line!r}"
                )
                continue
            name, numbers = match[1], match[2].split()
            has_ending = os.path.splitext(name)[1].strip(".0123456789")
            if len(numbers) > 1 and not has_ending and int(numbers.pop(0)) < 1:
                listing.wrong.append(f"{where}: the number of frames must be at least 1")
            if len(numbers) > 1 and not source.config.multi_label:
                raise DatasetError(
                    f"{where}: labels {', '.join(numbers)}; if a video may have several labels, set data.multi_label"
                )
            path = os.path.normpath(os.path.join(folder, name))
            listing.entries += [
                Entry(path, number, split, where, names.has(path)) for number in numbers
            ]
    return name_numbers(listing)


# CSV manifest, tar files, folder per class


def _manifest(source: Source) -> Listing:
    """Columns path, label and perhaps split; paths are absolute or start at the manifest's folder, or at data.videos."""
    file = source.path
    if file.is_dir():
        raise DatasetError(f"{file}: a folder, not a manifest; name the CSV file")
    rows = read_rows(file)
    columns = [name or "" for name in next(rows)[1]]
    for name in ("path", "label"):
        if name not in columns:
            among = first_names(columns) or "none"
            raise DatasetError(f"{file}: no column {name!r} among {among}{nearest(name, columns)}")
    listing, names = Listing([]), FileNames()
    folder = str(source.videos if source.config.videos else file.parent)
    used = [name for name in ("path", "label", "split") if name in columns]
    further = [name for name in columns if name and name not in used]
    for line, row in rows:
        where = f"{file}, line {line}"
        values = {name: (row[name] or "").strip() for name in used}
        split = values.get("split", "").lower()
        empty = next((name for name, value in values.items() if not value), None)
        if None in row:
            listing.wrong.append(
                f"{where}: more values than columns; a value with a comma in it needs quotes"
            )
        elif empty:
            listing.wrong.append(f"{where}: the {empty} is empty")
        elif split and split not in SPLITS:
            listing.wrong.append(
                f"{where}: split {split!r} is none of {', '.join(SPLITS)}{nearest(split, SPLITS)}"
            )
        else:
            path = os.path.normpath(os.path.join(folder, values["path"]))
            if not names.has(path):
                require_text(file, line, [values["path"]])
            if further:
                own = {name: row[name] or "" for name in further}
                listing.columns.setdefault(path, own)
            for label in labels_in(values["label"], source.config.multi_label):
                listing.entries.append(
                    Entry(path, label, SPLITS.get(split, ""), where, names.has(path))
                )
    return listing


def _is_shards(source: Source) -> bool:
    """Whether there are tar files, and no folders that might be classes."""
    if source.path.is_file():
        return source.path.suffix.lower() == ".tar"
    folders = list_folder(source.path)[0]
    if any(folder.name.lower() not in SPLITS or list_folder(folder)[0] for folder in folders):
        return False
    return bool(tar_files(source.path))


FORMATS: Final[Mapping[str, Format]] = {  # the first that recognises a source reads it
    "kinetics": Format(lambda source: bool(_kinetics_lists(source)), _kinetics),
    "ssv2": Format(
        lambda source: any(name + "labels.json" in source.lists for name in _SSV2_PREFIXES), _ssv2
    ),
    "ucf101": Format(
        lambda source: {"classInd.txt", "trainlist01.txt"} <= source.lists.keys(), _ucf101
    ),
    "hmdb51": Format(lambda source: any(map(_HMDB_LIST.fullmatch, source.lists)), _hmdb51),
    "diving48": Format(lambda source: "Diving48_vocab.json" in source.lists, _diving48),
    "mmaction": Format(_is_mmaction, _mmaction),
    "webdataset": Format(
        _is_shards,
        lambda source: read_shards(source.path, source.classes(), source.config.multi_label),
    ),
    "manifest": Format(lambda source: source.path.is_file(), _manifest),
    "folder": Format(lambda source: True, lambda source: read_class_folders(source.path)),
}
