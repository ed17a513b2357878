"""How does HMDB51 list its videos?

For each class and each official split N, CLASS_test_splitN.txt has lines of video.avi and 1 for
training, 2 for testing, 0 for neither.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from zeroi2v.data.formats.layout import class_names, is_folder_per_class
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import first_line, read_lines
from zeroi2v.data.formats.source import Source
from zeroi2v.errors import DatasetError

_LIST: Final = re.compile(r"(.+)_test_split([123])\.txt")
_LINE: Final = re.compile(r"\S.*\.\w+\s+[012]")
_SPLIT_OF_USE: Final = {"1": "train", "2": "test"}


def recognises(source: Source) -> bool:
    """Whether a list is there.

    If the source has class folders too, every class needs a list, with lines of HMDB51's form.
    """
    lists = _lists(source)
    if not lists:
        return False
    return not is_folder_per_class(source.path) or _are_hmdb51_lists(source, lists)


def read(source: Source) -> Listing:
    """Read the lists of the official split that the settings name."""
    split = source.config.split
    lists = [(label, file) for label, number, file in _lists(source) if number == split]
    if not lists:
        raise DatasetError(f"{source.path}: no CLASS_test_split{split}.txt in it")
    listing = Listing(classes=tuple(label for label, _ in lists))
    for label, file in lists:
        for where, line in read_lines(file):
            name, _, use = line.rpartition(" ")
            if use in _SPLIT_OF_USE:
                path = f"{label}/{os.path.splitext(name.strip())[0]}"
                listing.entries.append(Entry(path, label, _SPLIT_OF_USE[use], where))
            elif use != "0":
                listing.wrong.append(
                    f"{where}: {use!r} is none of 0 (unused), 1 (train) and 2 (test)"
                )
    listing.find_videos(source.videos, with_class=True, ending=".avi")
    return listing


def _lists(source: Source) -> list[tuple[str, int, Path]]:
    """Class, number of the official split, and path of each list."""
    matches = [match for name in sorted(source.lists) if (match := _LIST.fullmatch(name))]
    return [(match[1], int(match[2]), source.lists[match[0]]) for match in matches]


def _are_hmdb51_lists(source: Source, lists: list[tuple[str, int, Path]]) -> bool:
    """Whether a list for each class folder is there, with lines of a video and 0, 1 or 2."""
    listed = {label for label, _, _ in lists}
    has_own_lines = all(_LINE.fullmatch(first_line(file)) for _, _, file in lists)
    return has_own_lines and class_names(source.path) <= listed
