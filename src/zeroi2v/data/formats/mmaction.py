"""How do MMAction's text lists name videos?

A line holds a path and the number of the class, or a folder, its number of frames and the number of
the class. The name of the file says the split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zeroi2v.data.file_kinds import kind_by_name
from zeroi2v.data.formats.disk import FileNames, folder_files
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import first_line, read_lines
from zeroi2v.data.formats.source import Source, is_class_file
from zeroi2v.data.formats.splits import split_in
from zeroi2v.errors import DatasetError, first_names

_LINE: Final = re.compile(r"(\S.*?)((?:\s+-?\d+)+)\s*")
_OFFICIAL_SPLIT: Final = re.compile(r"split_?(\d)")
_TRIED_LINES: Final = 100  # lines of a list that are tried to find the folder its paths start from


def recognises(source: Source) -> bool:
    """Whether text lists are there, and one of the first paths in a list is a video on the disk."""
    lists = _lists(source)
    if source.path.is_file():
        return bool(lists)
    return bool(lists) and _folder_of(source, *lists[0], FileNames()) is not None


def read(source: Source) -> Listing:
    """Read the list of each split.

    DatasetError if two lists are of one split, or if a line has several labels but
    data.multi_label is not set.
    """
    listing, names = Listing(classes=source.classes()), FileNames()
    lists = _lists(source)
    if not lists:
        raise DatasetError(
            f"{source.path}: no text list in it whose lines hold a path and a class number, and "
            "whose name says the split (such as train.txt)"
        )
    if len({split for split, _ in lists}) < len(lists):
        files = first_names([file.name for _, file in lists])
        raise DatasetError(
            f"{source.path}: several lists of one split: {files}; give the list to use as DATA"
        )
    for split, file in lists:
        folder = str(_folder_of(source, split, file, names) or source.videos)
        for where, line in read_lines(file):
            match = _LINE.fullmatch(line)
            if match is None:
                listing.wrong.append(
                    f"{where}: expected a path and the number of its class, got {line!r}"
                )
                continue
            name, numbers = match[1], match[2].split()
            numbers = _labels(name, numbers, where, listing)
            if len(numbers) > 1 and not source.config.multi_label:
                raise DatasetError(
                    f"{where}: labels {', '.join(numbers)}; "
                    "if a video may have several labels, set data.multi_label"
                )
            path = os.path.normpath(os.path.join(folder, name))
            on_disk = names.find(path)
            listing.entries += [
                Entry(on_disk or path, number, split, where, on_disk is not None)
                for number in numbers
            ]
    listing.name_numbers()
    return listing


def _labels(name: str, numbers: Sequence[str], where: str, listing: Listing) -> list[str]:
    """The numbers of a line without the number of frames, which follows the name of a folder."""
    has_ending = bool(os.path.splitext(name)[1].strip(".0123456789"))
    if has_ending or len(numbers) == 1:
        return [*numbers]
    if int(numbers[0]) < 1:
        listing.wrong.append(f"{where}: the number of frames must be at least 1")
    return [*numbers[1:]]


def _lists(source: Source) -> list[tuple[str, Path]]:
    """Split and path of the text lists, without the lists of other official splits."""
    lists = []
    for name, file in sorted(source.lists.items()):
        split, numbered = split_in(file.stem), _OFFICIAL_SPLIT.search(file.stem)
        is_other = numbered is not None and int(numbered[1]) != source.config.split
        is_wanted = source.path.is_file() or (split and not is_other)
        is_list = name.endswith(".txt") and not is_class_file(name)
        if is_wanted and is_list and _LINE.fullmatch(first_line(file)):
            lists.append((split, file))
    return lists


def _folder_of(source: Source, split: str, file: Path, names: FileNames) -> Path | None:
    """The folder that the paths of a list start from, None if no path is a video in any folder."""
    matches = (_LINE.fullmatch(line) for _, line in read_lines(file)[:_TRIED_LINES])
    paths = [match[1] for match in matches if match]
    inner = ("", "videos", f"videos_{split}", "rawframes", f"rawframes_{split}", split)
    folders = [source.videos] if source.config.videos else [source.videos / name for name in inner]
    for folder in folders:
        if any(_is_video(os.path.join(folder, path), names) for path in paths):
            return folder
    return None


def _is_video(path: str, names: FileNames) -> bool:
    """Whether a video file or a folder of frames is there; the folder of a class is neither."""
    on_disk = names.find(path)
    if on_disk is None:
        return False
    if os.path.isdir(on_disk):
        return folder_files(Path(on_disk)).are_frames
    return kind_by_name(on_disk) in ("video", None)
