"""What is a source: the folder or file that a user names, with the lists that lie there?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeroi2v.config import DataConfig
from zeroi2v.data.file_kinds import kind_of_file
from zeroi2v.data.formats.disk import list_folder
from zeroi2v.data.formats.labels import read_class_names
from zeroi2v.errors import DatasetError, nearest

LIST_FOLDERS: Final = frozenset(  # names of folders that hold lists, not videos
    (
        "annotation",
        "annotations",
        "labels",
        "lists",
        "splits",
        "testtrainmulti_7030_splits",  # HMDB51's
        "ucftraintestlist",  # UCF101's
    )
)
_LIST_ENDINGS: Final = (".csv", ".json", ".tsv", ".txt")
_CLASS_FILES: Final = re.compile(r"label_map.*\.txt|classes\.txt|classind\.txt", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """The path that a user named, the settings, and the lists that lie there."""

    path: Path
    config: DataConfig
    lists: Mapping[str, Path]  # file name -> CSV, JSON or text file, perhaps in a folder of lists

    @classmethod
    def of(cls, path: Path, config: DataConfig) -> Source:
        """Look for lists. DatasetError if there is nothing at the path."""
        if not path.exists():
            raise DatasetError(f"{path}: no such folder or manifest")
        if config.videos is not None and not Path(config.videos).is_dir():
            raise DatasetError(
                f"{config.videos}: no such folder; data.videos names the folder of the videos"
            )
        if config.classes is not None and not Path(config.classes).is_file():
            raise DatasetError(
                f"{config.classes}: no such file; data.classes names the file of the class names"
            )
        if path.is_file():
            kind = kind_of_file(path)
            if kind in ("video", "image") and path.stat().st_size:
                raise DatasetError(
                    f"{path}: {'a video' if kind == 'video' else 'an image'}; "
                    "DATA is a folder or a list of videos, such as a CSV file"
                )
            return cls(path, config, {path.name: path})
        folders, files = list_folder(path)
        for folder in folders:
            if folder.name.lower() in LIST_FOLDERS:
                files += list_folder(folder)[1]
        lists = [file for file in files if file.suffix.lower() in _LIST_ENDINGS]
        return cls(path, config, {file.name: file for file in reversed(lists)})

    @property
    def videos(self) -> Path:
        """The folder of the videos."""
        if self.config.videos is not None:
            return Path(self.config.videos)
        folder = self.path if self.path.is_dir() else self.path.parent
        is_inside = self.path.is_file() and folder.name.lower() in LIST_FOLDERS
        return folder.parent if is_inside else folder

    def classes(self) -> tuple[str, ...] | None:
        """The names in the file of class names, None without such a file.

        data.classes names the file. Without data.classes, the file is label_map*.txt, classes.txt
        or classInd.txt.
        """
        file = None if self.config.classes is None else Path(self.config.classes)
        if file is None:
            names = (name for name in sorted(self.lists) if is_class_file(name))
            file = next((self.lists[name] for name in names), None)
        return None if file is None else read_class_names(file)

    def need(self, *names: str) -> Path:
        """The list with one of these names. DatasetError if there is none."""
        for name in names:
            if name in self.lists:
                return self.lists[name]
        raise DatasetError(
            f"{self.path}: no {' or '.join(names)} in it{nearest(names[0], self.lists)}"
        )


def is_class_file(name: str) -> bool:
    """Whether a file of this name holds the names of the classes."""
    return _CLASS_FILES.fullmatch(name) is not None
