"""Why does a folder per class hold no videos? The texts of errors, with the likely reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zeroi2v.data.file_kinds import is_unread_image, kind_by_name
from zeroi2v.data.formats.layout import Folders, Layout, holds_videos, possible_classes
from zeroi2v.data.formats.manifest import manifests_in
from zeroi2v.data.formats.source import LIST_FOLDERS
from zeroi2v.errors import first_names

_DEPTH: Final = 3  # folders below a folder that are searched for videos


def no_class_folders(source: Path) -> str:
    """The error for a source without class folders; names a manifest that lies there."""
    name = source.absolute().name
    text = f"{source}: no class folders in it; expected {name}/class/video, or a CSV manifest"
    manifests = manifests_in(source)
    return f"{text}: give {first_names(manifests)}" if manifests else text


def no_videos(source: Path, empty: Sequence[Path], folders: Folders, *, is_all: bool) -> str:
    """The error for class folders without videos. `is_all`: no class folder holds videos."""
    inner = _data_set_below(source, folders) if is_all else None
    video = _first_video(inner, folders) if inner else None
    if video is not None:
        return (
            f"{source}: no videos in its class folders; the videos lie deeper, as {video}: "
            f"give {inner} if that is the data set"
        )
    names = first_names(sorted({folder.name for folder in empty}))
    reasons = (_why_empty(folder, folders) for folder in empty)
    reason = next(filter(None, reasons), "")
    return f"{source}: no videos in the class folders {names}{reason}"


def _data_set_below(source: Path, folders: Folders) -> Path | None:
    """The data set that lies alone in a folder, as the content of an archive does; else None."""
    folder = source
    for _ in range(_DEPTH):
        candidates, _ = possible_classes(folder, folders)
        if len(candidates) != 1:
            return None
        (folder,) = candidates
        has_lists = any(name.lower() in LIST_FOLDERS for name in folders[folder].folders)
        class_folders = Layout.of(folder, folders).class_folders
        if has_lists or any(holds_videos(inner, folders) for _, inner in class_folders):
            return folder
    return None


def _why_empty(folder: Path, folders: Folders) -> str:
    """The reason why a class folder holds no videos: a clause, or ''."""
    files = folders[folder]
    if files.are_frames:
        return (
            f"; {folder / files.images[0]} is an image: a folder of images is one video, "
            "and lies in a class folder"
        )
    copies = [name for name in files.others if kind_by_name(name) == "copy"]
    if copies:
        return f"; {folder / copies[0]} is the small copy that a camera keeps of a video"
    video = _first_video(folder, folders)
    if video is not None:
        return (
            f"; {video} lies too deep: move videos into the class folder, "
            "or list them in a manifest"
        )
    inner = [folder, *possible_classes(folder, folders)[0]]
    names = [parent / name for parent in inner for name in folders[parent].others]
    images = [path for path in names if is_unread_image(path.name)]
    return f"; {images[0]} is an image of a kind that is not read as a frame" if images else ""


def _first_video(folder: Path, folders: Folders) -> Path | None:
    """A video file or a folder of frames in a folder or below it, None without any."""
    queue = [(folder, _DEPTH)]
    for inner, depth in queue:  # grows meanwhile
        files = folders[inner]
        if files.videos:
            return inner / files.videos[0]
        if files.are_frames:
            return inner
        queue += [(below, depth - 1) for below in possible_classes(inner, folders)[0] if depth]
    return None
