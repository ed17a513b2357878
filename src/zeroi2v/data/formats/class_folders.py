"""How does a folder with one folder per class list its videos?

DATA/CLASS/video, or DATA/train/CLASS/video. A video is a file, or a folder of images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zeroi2v.data.file_kinds import is_system_folder
from zeroi2v.data.formats.disk import folder_files
from zeroi2v.data.formats.empty_folders import no_class_folders, no_videos
from zeroi2v.data.formats.layout import Folders, Layout
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.source import Source
from zeroi2v.errors import DatasetError, first_names, how_many

_STILLS_FOLDERS: Final = frozenset(  # beside video files, folders of these names hold their stills
    f"{name}{ending}"
    for name in ("cover", "poster", "preview", "screenshot", "still", "thumb", "thumbnail")
    for ending in ("", "s")
)


def read(source: Source) -> Listing:
    """Find the videos of all class folders.

    DatasetError if there are no class folders, or if a class folder holds no videos.
    """
    folders = Folders()
    layout = Layout.of(source.path, folders)
    if not layout.class_folders:
        raise DatasetError(no_class_folders(source.path))
    classes = [_ClassFolder.of(split, folder, folders) for split, folder in layout.class_folders]
    listing = Listing(ignored=[*layout.ignored])
    for class_folder in classes:
        listing.ignored += class_folder.ignored
        listing.entries += [
            Entry(str(path), class_folder.folder.name, class_folder.split, str(class_folder.folder))
            for path in class_folder.videos
        ]
    with_videos = {entry.label for entry in listing.entries}
    empty = [
        class_folder.folder
        for class_folder in classes
        if class_folder.folder.name not in with_videos
    ]
    if empty:
        raise DatasetError(no_videos(source.path, empty, folders, is_all=not listing.entries))
    listing.notes = [*_empty_splits(source.path, classes), *_notes(source.path, classes)]
    return listing


@dataclass
class _ClassFolder:
    """One class folder: the videos in it, the things that are not used, and the odd videos."""

    split: str
    folder: Path
    videos: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    too_deep: list[Path] = field(default_factory=list)  # videos in folders of the class folder
    stills: list[Path] = field(default_factory=list)  # folders of frames with a single image
    twins: list[Path] = field(default_factory=list)  # files whose names differ in the ending only

    @classmethod
    def of(cls, split: str, folder: Path, folders: Folders) -> _ClassFolder:
        files = folders[folder]
        class_folder = cls(split, folder, [folder / name for name in files.videos])
        class_folder.ignored += [folder / name for name in (*files.images, *files.others)]
        stems = Counter(os.path.splitext(name)[0] for name in files.videos)
        if len(stems) < len(class_folder.videos):
            class_folder.twins += [path for path in class_folder.videos if stems[path.stem] > 1]
        for name in files.folders:
            beside_video_file = name in stems or (bool(stems) and name.lower() in _STILLS_FOLDERS)
            class_folder._add_folder(folder / name, beside_video_file=beside_video_file)
        class_folder.videos.sort()
        class_folder.ignored.sort()
        return class_folder

    def _add_folder(self, clip: Path, *, beside_video_file: bool) -> None:
        """Add a folder of frames, or ignore the folder.

        `beside_video_file`: whether the folder only holds frames of a video file beside it.
        """
        if is_system_folder(clip.name):
            self.ignored.append(clip)
            return
        files = folder_files(clip)
        if files.are_frames and not beside_video_file:
            self.videos.append(clip)
            self.stills += [clip] if len(files.images) == 1 else []
            return
        self.ignored.append(clip)
        if not files.is_output:
            self.too_deep += [clip / name for name in files.videos]


def _empty_splits(source: Path, classes: Sequence[_ClassFolder]) -> list[str]:
    """A warning for each split whose class folders hold no videos: the split is then missing."""
    videos: dict[str, int] = {}
    for class_folder in classes:
        videos[class_folder.split] = videos.get(class_folder.split, 0) + len(class_folder.videos)
    return [
        f"{source}: no videos in the class folders of the split {split}, which is not used"
        for split, count in videos.items()
        if not count
    ]


def _notes(source: Path, classes: Sequence[_ClassFolder]) -> list[str]:
    """A warning for each kind of thing that is odd."""
    too_deep = [path for class_folder in classes for path in class_folder.too_deep]
    stills = [path for class_folder in classes for path in class_folder.stills]
    twins = [path for class_folder in classes for path in class_folder.twins]
    odd = (
        (
            too_deep,
            "video lies one folder too deep and is not used",
            "videos lie one folder too deep and are not used",
        ),
        (stills, "video is a folder with a single image", "videos are folders with a single image"),
        (
            twins,
            "video has the name of another video but for the ending; remove the copy",
            "videos have the name of another video but for the ending; remove the copies",
        ),
    )
    return [
        f"{source}: {how_many(len(paths), singular, plural)}: {first_names(paths)}"
        for paths, singular, plural in odd
        if paths
    ]
