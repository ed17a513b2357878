"""How does Diving48 list its videos?

Diving48_vocab.json lists the four parts of each class. Diving48_V2_train.json and
Diving48_V2_test.json give the vid_name and the label, a number, of each video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zeroi2v.data.formats.layout import is_folder_per_class
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import read_array
from zeroi2v.data.formats.source import Source
from zeroi2v.errors import DatasetError

_VOCABULARY: Final = "Diving48_vocab.json"


def recognises(source: Source) -> bool:
    """Whether the vocabulary is there.

    If the source has class folders too, the vocabulary must list four parts for each class.
    """
    if _VOCABULARY not in source.lists:
        return False
    return not is_folder_per_class(source.path) or _is_diving48(source.lists[_VOCABULARY])


def read(source: Source) -> Listing:
    """Read the vocabulary and both lists."""
    vocabulary = read_array(source.need(_VOCABULARY))
    listing = Listing(classes=tuple(_class_name(parts) for parts in vocabulary))
    for split in ("train", "test"):
        file = source.need(f"Diving48_V2_{split}.json")
        for number, item in enumerate(read_array(file), start=1):
            where = f"{file}, entry {number}"
            if not isinstance(item, dict) or "vid_name" not in item or "label" not in item:
                listing.wrong.append(f"{where}: expected an object with vid_name and label")
            else:
                name, label = str(item["vid_name"]), str(item["label"])
                listing.entries.append(Entry(name, label, split, where))
    listing.name_numbers()
    listing.find_videos(source.videos, ending=".mp4")
    return listing


def _class_name(parts: object) -> str:
    return " ".join(map(str, parts)) if isinstance(parts, list) else str(parts)


def _is_diving48(vocabulary: Path) -> bool:
    try:
        classes = read_array(vocabulary)
    except DatasetError:
        return False
    return all(isinstance(parts, list) and len(parts) == 4 for parts in classes)
