"""Which folders in a folder are splits, which are classes, and which are neither?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zeroi2v.data.file_kinds import FolderFiles, is_system_folder
from zeroi2v.data.formats.disk import folder_files
from zeroi2v.data.formats.source import LIST_FOLDERS
from zeroi2v.data.formats.splits import split_of


class Folders(dict[Path, FolderFiles]):
    """Folders and what they hold. A folder is listed when it is asked for the first time."""

    def __missing__(self, folder: Path) -> FolderFiles:
        self[folder] = folder_files(folder)
        return self[folder]


@dataclass(frozen=True)
class Layout:
    """The class folders of a source, and what else lies beside them."""

    class_folders: list[tuple[str, Path]]  # split ("" without splits), folder
    ignored: list[Path]

    @classmethod
    def of(cls, source: Path, folders: Folders) -> Layout:
        """Look for folders named by split that hold class folders, else for class folders."""
        candidates, ignored = possible_classes(source, folders)
        splits = _split_folders(candidates, folders)
        if not splits:
            return cls([("", folder) for folder in candidates], ignored)
        ignored += [folder for folder in candidates if folder not in splits]
        class_folders: list[tuple[str, Path]] = []
        for split_folder in splits:
            candidates, others = possible_classes(split_folder, folders)
            ignored += others
            class_folders += [(split_of(split_folder.name), folder) for folder in candidates]
        return cls(class_folders, ignored)


def is_folder_per_class(source: Path) -> bool:
    """Whether a folder holds at least two class folders with videos, enough to train."""
    return source.is_dir() and len(class_names(source)) > 1


def class_names(source: Path) -> set[str]:
    """The classes that have videos in a folder per class.

    A folder named after a split is no class here: the videos of a list may lie in DATA/train.
    """
    folders = Folders()
    return {
        folder.name
        for _, folder in Layout.of(source, folders).class_folders
        if not split_of(folder.name) and holds_videos(folder, folders)
    }


def possible_classes(parent: Path, folders: Folders) -> tuple[list[Path], list[Path]]:
    """The folders that may be classes or splits, and everything else in their parent.

    Folders of the operating system, folders of lists and folders that zeroi2v wrote are no classes.
    """
    files = folders[parent]
    candidates: list[Path] = []
    ignored = [parent / name for name in files.all_files]
    for name in files.folders:
        folder = parent / name
        is_class = not is_system_folder(name) and not folders[folder].is_output
        if is_class and name.lower() in LIST_FOLDERS:
            is_class = holds_videos(folder, folders)  # a class may be called splits
        (candidates if is_class else ignored).append(folder)
    return candidates, ignored


def holds_videos(folder: Path, folders: Folders) -> bool:
    """Whether video files or folders of frames lie in a folder."""
    files = folders[folder]
    inner = (folder / name for name in files.folders if not is_system_folder(name))
    return bool(files.videos) or any(folder_files(clip).are_frames for clip in inner)


def _split_folders(candidates: Sequence[Path], folders: Folders) -> list[Path]:
    """The folders that are splits, perhaps none.

    A split holds class folders. A class may be called train, too: its folder holds videos, as the
    folders of the other classes do.
    """
    splits = [
        folder for folder in candidates if split_of(folder.name) and _holds_classes(folder, folders)
    ]
    others = [folder for folder in candidates if folder not in splits]
    are_classes = all(folders[folder].videos for folder in splits) and any(
        folders[folder].videos for folder in others
    )
    return [] if are_classes else splits


def _holds_classes(folder: Path, folders: Folders) -> bool:
    """Whether folders that are no videos lie in a folder."""
    candidates, _ = possible_classes(folder, folders)
    return any(not folders[candidate].are_frames for candidate in candidates)
