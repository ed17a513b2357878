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
from zeroi2v.errors import DatasetError, first_names

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
    for own in classes:
        listing.ignored += own.ignored
        listing.entries += [
            Entry(str(path), own.folder.name, own.split, str(own.folder)) for path in own.videos
        ]
    with_videos = {entry.label for entry in listing.entries}
    empty = [own.folder for own in classes if own.folder.name not in with_videos]
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
        own = cls(split, folder, [folder / name for name in files.videos])
        own.ignored += [folder / name for name in (*files.images, *files.others)]
        stems = Counter(os.path.splitext(name)[0] for name in files.videos)
        if len(stems) < len(own.videos):
            own.twins += [path for path in own.videos if stems[path.stem] > 1]
        for name in files.folders:
            shows_video = name in stems or (bool(stems) and name.lower() in _STILLS_FOLDERS)
            own._add_folder(folder / name, shows_video=shows_video)
        own.videos.sort()
        own.ignored.sort()
        return own

    def _add_folder(self, clip: Path, *, shows_video: bool) -> None:
        """Add a folder of frames, or ignore it. `shows_video`: a video file has the same frames."""
        if is_system_folder(clip.name):
            self.ignored.append(clip)
            return
        files = folder_files(clip)
        if files.are_frames and not shows_video:
            self.videos.append(clip)
            self.stills += [clip] if len(files.images) == 1 else []
            return
        self.ignored.append(clip)
        if not files.is_output:
            self.too_deep += [clip / name for name in files.videos]


def _empty_splits(source: Path, classes: Sequence[_ClassFolder]) -> list[str]:
    """A warning for each split whose class folders hold no videos: the split is then missing."""
    videos: dict[str, int] = {}
    for own in classes:
        videos[own.split] = videos.get(own.split, 0) + len(own.videos)
    return [
        f"{source}: no videos in the class folders of the split {split}, which is not used"
        for split, count in videos.items()
        if not count
    ]


def _notes(source: Path, classes: Sequence[_ClassFolder]) -> list[str]:
    """A warning for each kind of thing that is odd."""
    odd = {
        "videos lie one folder too deep and are not used": [own.too_deep for own in classes],
        "videos are folders with a single image": [own.stills for own in classes],
        "videos differ from another only in the ending of the name; copies should go": [
            own.twins for own in classes
        ],
    }
    notes = []
    for kind, paths_of_classes in odd.items():
        paths = [path for paths in paths_of_classes for path in paths]
        if paths:
            notes.append(f"{source}: {len(paths)} {kind}: {first_names(paths)}")
    return notes
