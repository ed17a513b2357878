"""How are labels written: several in one text, and the names of all classes in a file?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from zeroi2v.data.formats.lists import read_lines
from zeroi2v.errors import DatasetError, first_names

LABEL_SEPARATOR: Final = "|"  # between the labels of a video, where it may have several


def labels_in(text: str, multi_label: bool) -> list[str]:
    """The labels in a text: the whole text, or with `multi_label` the texts between bars."""
    return [label.strip() for label in text.split(LABEL_SEPARATOR)] if multi_label else [text]


def read_class_names(file: Path) -> tuple[str, ...]:
    """The classes in a file with one name a line. Lines may be numbered from 1, as UCF101's are."""
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
