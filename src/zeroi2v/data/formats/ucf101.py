"""How does UCF101 list its videos?

classInd.txt orders the classes. Of each official split N, trainlist0N.txt has lines of
class/video.avi and a number, and testlist0N.txt has lines of class/video.avi.
"""

from __future__ import annotations

import os
import re
from typing import Final

from zeroi2v.data.formats.labels import read_class_names
from zeroi2v.data.formats.layout import is_folder_per_class
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import first_line, read_lines
from zeroi2v.data.formats.source import Source

_CLASS_FILE: Final = "classInd.txt"
_TRAIN_LISTS: Final = tuple(f"trainlist0{number}.txt" for number in (1, 2, 3))
_LINE: Final = re.compile(r"[^/]+/[^/]+\.\w+(?:\s+\d+)?")


def recognises(source: Source) -> bool:
    """Whether classInd.txt and a trainlist are there.

    If the source has class folders too, the trainlist must begin with a line of UCF101's form.
    """
    lists = [source.lists[name] for name in _TRAIN_LISTS if name in source.lists]
    if _CLASS_FILE not in source.lists or not lists:
        return False
    has_own_lines = _LINE.fullmatch(first_line(lists[0])) is not None
    return has_own_lines or not is_folder_per_class(source.path)


def read(source: Source) -> Listing:
    """Read the lists of the official split that the settings name."""
    classes = read_class_names(source.need(_CLASS_FILE))
    numbers = {name: str(number) for number, name in enumerate(classes, start=1)}
    listing = Listing(classes=classes)
    for split in ("train", "test"):
        for where, line in read_lines(source.need(f"{split}list0{source.config.split}.txt")):
            name, _, number = line.partition(" ")
            label, _, video = name.rpartition("/")
            if number.strip() not in ("", numbers.get(label)):
                listing.wrong.append(
                    f"{where}: {number.strip()} is not the number of the class {label!r}"
                )
            else:
                path = f"{label}/{os.path.splitext(video)[0]}"
                listing.entries.append(Entry(path, label, split, where))
    listing.find_videos(source.videos, with_class=True, ending=".avi")
    return listing
