"""What lies in a folder: which files and class folders, which tar files, and where are the videos that a list names?

Every folder is listed once. A video in a tar file is read where it lies; nothing is unpacked.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from zeroi2v.data.frame_folders import IMAGE_SUFFIXES
from zeroi2v.data.video_files import tar_address
from zeroi2v.errors import DatasetError

SPLITS: Final = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_FILE_SPLITS: Final = {**SPLITS, "training": "train", "validate": "val", "testing": "test"}
_DOCUMENTS = (
    ".doc",
    ".docx",
    ".htm",
    ".html",
    ".log",
    ".md",
    ".pdf",
    ".rst",
    ".txt",
    ".ass",
    ".srt",
    ".vtt",
)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".xml", ".ini", ".cls")
_TENSORS = (".h5", ".mat", ".npy", ".npz", ".parquet", ".pkl", ".pt", ".pth")
_ARCHIVES = (".7z", ".bz2", ".gz", ".part", ".rar", ".tar", ".tgz", ".tmp", ".xz", ".zip")
_SOUNDS = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".wav")
_NOT_VIDEOS: Final = IMAGE_SUFFIXES.union(_DOCUMENTS, _TABLES, _TENSORS, _ARCHIVES, _SOUNDS)
LABEL_SEPARATOR: Final = "|"  # between the labels of a video, where it may have several
_LABELS: Final = (
    "cls",
    "txt",
    "json",
)  # endings of a label in a tar file; the first that is there counts
_LABEL_KEYS: Final = ("label", "class", "cls")  # where an object of a .json has it
_MOST_NUMBERS: Final = 100_000  # classes of a source that has numbers but no names for them
_LONGEST_LABEL: Final = 1 << 20  # bytes
_DEPTH: Final = 3  # folders below the first in which a video of a list may lie


class Entry(NamedTuple):
    """One label of one video as its source describes it; a video with several labels has an entry for each."""

    path: str
    label: str  # name of its class
    split: str  # a value of SPLITS, or "" if the source has none
    where: str  # where the source says so: a file and line, or a folder
    found: bool = True  # whether it is on disk


@dataclass
class Listing:
    """What a source says of its videos, before it is checked."""

    entries: list[Entry]
    classes: tuple[str, ...] | None = (
        None  # in the order that the data set publishes; None: alphabetical
    )
    flip_pairs: tuple[tuple[str, str], ...] = ()  # classes that a left-right flip exchanges
    ignored: list[Path] = field(default_factory=list)
    wrong: list[str] = field(
        default_factory=list
    )  # one sentence for each line that cannot be used, with file and line
    columns: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # path of a video -> the further columns of its row in a manifest


def split_in(name: str) -> str:
    """The split that a file or folder is named after, 'val' for k400_validate_list.csv; '' if none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_FILE_SPLITS[word] for word in words if word in _FILE_SPLITS), "")


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and files in a folder, sorted, without hidden ones."""
    kinds = {folder / one.name: one.is_dir() for one in _entries(folder)}
    names = sorted(kinds)
    return [name for name in names if kinds[name]], [name for name in names if not kinds[name]]


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:  # asks the disk once, not once a file
            yield from (one for one in found if not one.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error


class FileNames:
    """Whether files are there, from one listing per folder."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        """Whether there is a file or folder of this path."""
        folder, name = os.path.split(path)
        names = self._names.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(folder or "."))
            except (FileNotFoundError, NotADirectoryError):
                names = frozenset()
            except OSError as error:
                raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error
            self._names[folder] = names
        return name in names


def locate(folder: Path, wanted: Collection[str], *, with_class: bool = False) -> dict[str, str]:
    """Where the wanted videos lie in a folder, at most three folders deep: names without ending -> file or folder of images.

    `with_class`: a name is class/video, the class being the folder that the video lies in. DatasetError if two videos have one
    name: then nothing tells which is meant.
    """
    found: dict[str, str] = {}
    queue = [(str(folder), _DEPTH)]
    for place, depth in queue:  # grows meanwhile
        prefix = f"{os.path.basename(place)}/" if with_class else ""
        for one in _entries(place):
            is_folder = one.is_dir()
            stem, suffix = (one.name, "") if is_folder else os.path.splitext(one.name)
            if suffix.lower() in _NOT_VIDEOS:
                continue
            name = prefix + stem
            if name not in wanted:
                if is_folder and depth:
                    queue.append((one.path, depth - 1))
            elif name in found:
                both = " and ".join(sorted((found[name], one.path)))
                raise DatasetError(
                    f"{folder}: {both} are one video to the list; name the folder to use by data.videos"
                )
            else:
                found[name] = one.path
    return found


def place(listing: Listing, folder: Path, *, ending: str, with_class: bool = False) -> Listing:
    """The listing with the videos that its paths name, without ending, found in a folder and those below it."""
    found = locate(folder, {entry.path for entry in listing.entries}, with_class=with_class)
    listing.entries = [
        Entry(found.get(name, f"{folder}/{name}{ending}"), label, split, where, name in found)
        for name, label, split, where, _ in listing.entries
    ]
    return listing


def read_lines(file: Path) -> list[tuple[str, str]]:
    """'file, line n' and text of the lines that are not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not a list in UTF-8: {error}") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(f"{file}, line {number}", line) for number, line in stripped if line]


def first_line(file: Path) -> str:
    """The first line of a file of any kind, as far as it is text, stripped; '' if it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            return opened.readline(1 << 16).strip()
    except OSError:
        return ""


def read_json(file: Path, kind: type) -> Any:
    """The value in a JSON file, a `dict` or a `list`."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, kind):
        raise DatasetError(f"{file}: expected a JSON {'object' if kind is dict else 'list'}")
    return value


def read_rows(file: Path) -> Iterator[tuple[int, dict[str | None, str | None]]]:
    """Line number and row of a CSV file with a header; first, as line 1, its columns.

    A path may hold bytes that are no UTF-8, as the names of files may; nothing else may.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            require_text(file, 1, reader.fieldnames)
            yield 1, dict.fromkeys(reader.fieldnames)
            for row in reader:
                texts = [text for name, text in row.items() if name != "path"]
                require_text(file, reader.line_num, texts)
                yield reader.line_num, row
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"{file}: not a CSV manifest in UTF-8: {error}") from error


def require_text(file: Path, line: int, texts: Iterable[object]) -> None:
    """DatasetError if one of the texts of a CSV file holds bytes that are no UTF-8."""
    for text in texts:
        if any("\udc80" <= character <= "\udcff" for character in str(text)):
            raise DatasetError(
                f"{file}: not a CSV manifest in UTF-8: {os.fsencode(str(text))!r} in line {line}"
            )


def read_class_names(file: Path) -> tuple[str, ...]:
    """The classes in a file of names, one a line, which may be numbered from 1, as UCF101's are."""
    names = [line for _, line in read_lines(file)]
    parts = [name.split(None, 1) for name in names]
    if all(len(part) == 2 and part[0] == str(number) for number, part in enumerate(parts, start=1)):
        names = [part[1] for part in parts]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        raise DatasetError(
            f"{file}: {f'names {first_names(twice)} twice' if twice else 'no class names in it'}"
        )
    return (*names,)


def read_class_folders(source: Path) -> Listing:
    """The videos of a folder per class, perhaps below folders named by split, and what among them is none."""
    folders, ignored = list_folder(source)
    split_folders = [
        folder for folder in folders if folder.name.lower() in SPLITS and _holds_classes(folder)
    ]
    class_folders = [("", folder) for folder in folders]
    if split_folders:
        ignored += [folder for folder in folders if folder not in split_folders]
        class_folders = []
        for split_folder in split_folders:
            folders, files = list_folder(split_folder)
            ignored += files
            class_folders += [(SPLITS[split_folder.name.lower()], folder) for folder in folders]
    if not class_folders:
        raise DatasetError(
            f"{source}: no class folders in it; expected {source.name}/class/video, or a CSV manifest"
        )
    entries: list[Entry] = []
    for split, folder in class_folders:
        clips, files = list_folder(folder)
        videos = [clip for clip in clips if _holds_images(clip)]
        videos += [file for file in files if file.suffix.lower() not in _NOT_VIDEOS]
        ignored += sorted({*clips, *files}.difference(videos))
        entries += [Entry(str(path), folder.name, split, str(folder)) for path in sorted(videos)]
    empty = sorted(
        {folder.name for _, folder in class_folders}.difference(entry.label for entry in entries)
    )
    if empty:
        raise DatasetError(f"{source}: no videos in the class folders {first_names(empty)}")
    return Listing(entries, ignored=ignored)


def _holds_images(folder: Path) -> bool:
    return any(
        os.path.splitext(one.name)[1].lower() in IMAGE_SUFFIXES
        for one in _entries(folder)
        if not one.is_dir()
    )


def _holds_classes(folder: Path) -> bool:
    """Whether folders of videos are in it; a class called train holds videos itself."""
    return any(not _holds_images(inner) for inner in list_folder(folder)[0])


def tar_files(source: Path) -> list[tuple[str, Path]]:
    """Split and path of the tar files of a folder: in folders named by split, else with the split, if any, in their names."""
    if source.is_file():
        return [(split_in(source.stem), source)]
    folders, files = list_folder(source)
    found = [(split_in(file.stem), file) for file in files if file.suffix.lower() == ".tar"]
    for folder in folders:
        if folder.name.lower() in SPLITS:
            inside = list_folder(folder)[1]
            found += [
                (SPLITS[folder.name.lower()], file)
                for file in inside
                if file.suffix.lower() == ".tar"
            ]
    return found


def labels_in(text: str, multi_label: bool) -> list[str]:
    """The labels that a text names: itself, or with `multi_label` what stands between bars."""
    return [label.strip() for label in text.split(LABEL_SEPARATOR)] if multi_label else [text]


def read_shards(source: Path, classes: tuple[str, ...] | None, multi_label: bool) -> Listing:
    """The videos in tar files, each beside its label: key.mp4 and key.cls, key.txt or key.json. `classes` names the numbers.

    With `multi_label` a label may be several, between bars or in a JSON list. Without `classes`, numbers are classes called "0",
    "1" ... in that order. The tar files are read through once; a video's path says at which bytes it lies.
    """
    listing = Listing([], classes)
    for split, archive in tar_files(source):
        _read_shard(archive, split, listing, multi_label)
    return name_numbers(listing)


def name_numbers(listing: Listing) -> Listing:
    """The listing with class names in place of numbers. If it has no classes and any number, they are "0", "1" ... in that order."""
    numbers = [int(entry.label) if entry.label.isdecimal() else -1 for entry in listing.entries]
    largest = max(numbers, default=-1)
    if listing.classes is None and largest < 0:
        return listing  # names only
    if listing.classes is None and largest >= _MOST_NUMBERS:
        where = listing.entries[numbers.index(largest)].where
        raise DatasetError(
            f"{where}: class {largest} is no likely number; if it is right, name the classes by data.classes"
        )
    classes = listing.classes or tuple(map(str, range(largest + 1)))
    entries = []
    for entry, number in zip(listing.entries, numbers, strict=True):
        if number < len(classes):
            entries.append(entry if number < 0 else entry._replace(label=classes[number]))
        else:
            listing.wrong.append(
                f"{entry.where}: class {number} of only {len(classes)}, counted from 0"
            )
    return replace(listing, entries=entries, classes=classes)


def _read_shard(archive: Path, split: str, listing: Listing, multi_label: bool) -> None:
    """Add the videos of one tar file."""
    videos: dict[str, Path] = {}
    labels: dict[tuple[str, str], list[str]] = {}  # (key, ending) -> labels
    try:
        with tarfile.open(
            archive, "r:"
        ) as tar:  # "r:": never a compressed one, of which no bytes can be picked
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                folder, name = os.path.split(member.name)
                key, _, ending = name.partition(".")
                if not member.isfile() or not key or not ending:
                    continue
                key, ending = os.path.join(folder, key), ending.lower()
                where = f"{archive}, {member.name}"
                if ending in _LABELS:
                    if member.size > _LONGEST_LABEL:
                        listing.wrong.append(
                            f"{where}: {member.size} bytes are too many for a label"
                        )
                        continue
                    content = tar.extractfile(member)
                    text = content.read() if content else b""
                    labels[key, ending] = _labels(text, ending, where, listing.wrong, multi_label)
                elif f".{ending.rpartition('.')[2]}" not in _NOT_VIDEOS:
                    if key in videos or member.issparse():
                        listing.wrong.append(
                            f"{where}: {'sparse' if member.issparse() else 'a second video of its key'}"
                        )
                    videos[key] = tar_address(archive, member.name, member.offset_data, member.size)
            end = tar.offset
        with archive.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DatasetError(f"{archive}: damaged at byte {end}; write it again")
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{archive}: not a plain tar file, or damaged: {error}") from error
    except OSError as error:
        raise DatasetError(f"{archive}: cannot be read: {error.strerror}") from error
    for key, path in videos.items():
        ending = next((one for one in _LABELS if (key, one) in labels), "")
        if not ending:
            listing.wrong.append(
                f"{archive}, {key}: no label beside the video; expected {key}.cls, .txt or .json"
            )
        else:
            where = f"{archive}, {key}.{ending}"
            listing.entries += [
                Entry(str(path), label, split, where) for label in labels[key, ending]
            ]
    for key, ending in labels:
        if ending == "cls" and key not in videos:
            name, where = str(archive / key), f"{archive}, {key}.cls"
            listing.entries += [
                Entry(name, label, split, where, found=False) for label in labels[key, ending]
            ]


def _labels(
    content: bytes, ending: str, where: str, wrong: list[str], multi_label: bool
) -> list[str]:
    """The label, or labels, in a file of a tar file; what is odd about it goes to `wrong`."""
    try:
        value: Any = content.decode("utf-8-sig").strip()
        if ending == "json":
            value = json.loads(value)
    except ValueError as error:
        wrong.append(f"{where}: not {'JSON' if ending == 'json' else 'text'} in UTF-8: {error}")
        return []
    if isinstance(value, dict):
        value = next((value[key] for key in _LABEL_KEYS if key in value), None)
    values = value if multi_label and isinstance(value, list) else [value]
    if not values or any(isinstance(one, bool) or not isinstance(one, str | int) for one in values):
        several = (
            "; several labels need data.multi_label"
            if isinstance(value, list) and not multi_label
            else ""
        )
        wrong.append(f"{where}: no text or whole number under {', '.join(_LABEL_KEYS)}{several}")
        return []
    return [label for one in values for label in labels_in(str(one), multi_label)]


def first_names(names: Sequence[object]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
