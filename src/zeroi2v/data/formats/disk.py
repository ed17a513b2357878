"""What is on the disk: what does a folder hold, and where are the videos that a list names?

Every folder is asked for its names once. A name in a list and a name on the disk are the same if
they are the same text, whether their letters are composed or decomposed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeroi2v.data.file_kinds import FolderFiles, files_of, is_system_folder, kind_by_name
from zeroi2v.data.spellings import canonical
from zeroi2v.errors import DatasetError

_DEPTH: Final = 3  # folders below the first in which a video of a list may lie


def folder_files(folder: Path) -> FolderFiles:
    """The names in a folder by kind. DatasetError if the folder cannot be read."""
    try:
        return files_of(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and files in a folder, sorted, without hidden ones."""
    kinds = {folder / entry.name: entry.is_dir() for entry in _entries(folder)}
    names = sorted(kinds)
    return [name for name in names if kinds[name]], [name for name in names if not kinds[name]]


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # asks the disk once, not once a file
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class _Names:
    """The names in one folder."""

    exact: frozenset[str]
    by_text: dict[str, list[str]]  # canonical name -> names

    @classmethod
    def of(cls, folder: str) -> _Names | None:
        """None if there is no such folder."""
        try:
            names = os.listdir(folder or ".")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error
        by_text: dict[str, list[str]] = {}
        for name in names:
            if not name.isascii():
                by_text.setdefault(canonical(name), []).append(name)
        return cls(frozenset(names), by_text)


class FileNames:
    """Which files are there? Every folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, _Names | None] = {}

    def find(self, path: str) -> str | None:
        """The path of a file or folder as the disk spells it; None if there is nothing."""
        folder, name = os.path.split(path)
        names = self._names(folder)
        if names is not None and name in names.exact:
            return path
        if path.isascii() or not name:
            return None
        if names is None:
            spelled = self.find(folder)
            return None if spelled is None else self.find(os.path.join(spelled, name))
        same = names.by_text.get(canonical(name), [])
        return os.path.join(folder, same[0]) if len(same) == 1 else None

    def _names(self, folder: str) -> _Names | None:
        if folder not in self._folders:
            self._folders[folder] = _Names.of(folder)
        return self._folders[folder]


def locate(folder: Path, wanted: Collection[str], *, with_class: bool = False) -> dict[str, str]:
    """Where do the wanted videos lie in a folder, at most three folders deep?

    A wanted name has no ending, and its letters are composed (`canonical`). The result maps names
    to video files or folders of images. `with_class`: a wanted name is class/video, and the video
    lies in a folder named as the class. DatasetError if two videos have the same name, because then
    nothing tells which is meant.
    """
    paths: dict[str, str] = {}
    queue = [(str(folder), _DEPTH)]
    for inner, depth in queue:  # grows meanwhile
        prefix = f"{os.path.basename(inner)}/" if with_class else ""
        for entry in _entries(inner):
            is_folder = entry.is_dir()
            if not _may_be_video(entry, is_folder):
                continue
            stem = entry.name if is_folder else os.path.splitext(entry.name)[0]
            name = canonical(prefix + stem)
            if name not in wanted:
                if is_folder and depth:
                    queue.append((entry.path, depth - 1))
            elif name in paths:
                both = " and ".join(sorted((paths[name], entry.path)))
                raise DatasetError(
                    f"{folder}: the list names one video {name}, but both {both} have this name; "
                    "set data.videos to the folder to use"
                )
            else:
                paths[name] = entry.path
    return paths


def _may_be_video(entry: os.DirEntry[str], is_folder: bool) -> bool:
    if is_folder:
        return not is_system_folder(entry.name)
    return kind_by_name(entry.name) in ("video", None)
