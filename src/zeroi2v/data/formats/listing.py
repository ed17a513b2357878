"""What does a source say about its videos, before anything is checked?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from zeroi2v.data.formats.disk import locate
from zeroi2v.data.spellings import canonical
from zeroi2v.errors import DatasetError, how_many

_MOST_NUMBERS: Final = 100_000  # classes of a source that has numbers but no names for them


class Entry(NamedTuple):
    """One label of one video. A video with several labels has an entry for each."""

    path: str
    label: str  # the name of the class
    split: str  # train, val or test; "" if the source has no splits
    where: str  # where the source says so: a file and line, or a folder
    found: bool = True  # whether the video is on disk


@dataclass
class Listing:
    """What a format reads from a source."""

    entries: list[Entry] = field(default_factory=list)
    classes: tuple[str, ...] | None = None  # in the published order; None: in alphabetical order
    flip_pairs: tuple[tuple[str, str], ...] = ()  # classes that a left-right flip exchanges
    ignored: list[Path] = field(default_factory=list)  # files and folders that are not used
    wrong: list[str] = field(default_factory=list)  # a sentence for each line that is of no use
    notes: list[str] = field(default_factory=list)  # a warning each
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> further columns

    def find_videos(self, folder: Path, *, ending: str, with_class: bool = False) -> None:
        """Replace the names of all entries by paths of videos in a folder and the folders below it.

        A name has no ending (`locate`). A video that is not there gets the path of the folder, the
        name and `ending`.
        """
        wanted = {canonical(entry.path) for entry in self.entries}
        paths = locate(folder, wanted, with_class=with_class)
        entries = []
        for entry in self.entries:
            path = paths.get(canonical(entry.path))
            missing = f"{folder}/{entry.path}{ending}"
            entries.append(entry._replace(path=path or missing, found=path is not None))
        self.entries = entries

    def name_numbers(self) -> None:
        """Replace labels that are numbers by class names.

        Without class names, numbers are classes called "0", "1" ... in that order. DatasetError if
        such a number is too large to be the number of a class.
        """
        numbers = [int(entry.label) if entry.label.isdecimal() else -1 for entry in self.entries]
        largest = max(numbers, default=-1)
        if self.classes is None and largest < 0:
            return  # names only
        if self.classes is None and largest >= _MOST_NUMBERS:
            where = self.entries[numbers.index(largest)].where
            raise DatasetError(
                f"{where}: class number {largest} is improbably large; "
                "if the number is right, name the classes by data.classes"
            )
        self.classes = self.classes or tuple(map(str, range(largest + 1)))
        count = len(self.classes)
        entries = []
        for entry, number in zip(self.entries, numbers, strict=True):
            if number < 0:
                entries.append(entry)
            elif number < count:
                entries.append(entry._replace(label=self.classes[number]))
            else:
                classes = how_many(count, "class is", "classes are")
                self.wrong.append(
                    f"{entry.where}: class number {number}, but only {classes} there, "
                    "numbered from 0"
                )
        self.entries = entries
