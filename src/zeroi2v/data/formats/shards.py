"""How do tar files (WebDataset shards) hold videos beside their labels?

KEY.mp4 lies beside KEY.cls, KEY.txt or KEY.json. The tar files are gone through once, and nothing
is unpacked: the path of a video says at which bytes of the tar file the video lies.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zeroi2v.data.file_kinds import kind_by_name
from zeroi2v.data.formats.disk import list_folder
from zeroi2v.data.formats.labels import labels_in
from zeroi2v.data.formats.layout import class_names
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.source import Source
from zeroi2v.data.formats.splits import split_in, split_of
from zeroi2v.data.video_files import tar_address
from zeroi2v.errors import DatasetError

_LABEL_ENDINGS: Final = ("cls", "txt", "json")  # the first that is there counts
_LABEL_KEYS: Final = ("label", "class", "cls")  # where an object of a .json has the label
_LONGEST_LABEL: Final = 1 << 20  # bytes


def recognises(source: Source) -> bool:
    """Whether the source is a tar file, or a folder of tar files without class folders."""
    if source.path.is_file():
        return source.path.suffix.lower() == ".tar"
    return bool(_tar_files(source.path)) and not class_names(source.path)


def read(source: Source) -> Listing:
    """Read the headers and the labels of all tar files. Labels may be numbers of classes."""
    listing = Listing(classes=source.classes())
    for split, archive in _tar_files(source.path):
        shard = _Shard(archive, source.config.multi_label, listing.wrong)
        shard.read_members()
        shard.add_entries(split, listing)
    listing.name_numbers()
    return listing


def _tar_files(source: Path) -> list[tuple[str, Path]]:
    """Split and path of the tar files. A folder or the name of the file tells the split."""
    if source.is_file():
        return [(split_in(source.stem), source)]
    folders, files = list_folder(source)
    archives = [(split_in(file.stem), file) for file in files if _is_tar(file)]
    for folder in folders:
        if split := split_of(folder.name):
            archives += [(split, file) for file in list_folder(folder)[1] if _is_tar(file)]
    return archives


def _is_tar(file: Path) -> bool:
    return file.suffix.lower() == ".tar"


@dataclass
class _Shard:
    """One tar file, read member by member."""

    archive: Path
    multi_label: bool
    wrong: list[str]  # a sentence for each member that is of no use
    videos: dict[str, Path] = field(default_factory=dict)  # key -> path
    labels: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (key, ending) -> names

    def read_members(self) -> None:
        """Collect videos and labels. DatasetError if the file is damaged, or no plain tar file."""
        try:
            # "r:" refuses a compressed file: no single video could be read out of it in place
            with tarfile.open(self.archive, "r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # drops old headers
                    self._add(tar, member)
                end = tar.offset
            with self.archive.open("rb") as file:
                file.seek(end)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise DatasetError(f"{self.archive}: damaged at byte {end}; write it again")
        except (tarfile.TarError, EOFError) as error:
            text = f"{self.archive}: not a plain tar file, or damaged: {error}"
            raise DatasetError(text) from error
        except OSError as error:
            raise DatasetError(f"{self.archive}: cannot be read: {error.strerror}") from error

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        folder, name = os.path.split(member.name)
        key, _, ending = name.partition(".")
        if not member.isfile() or not key or not ending:
            return
        key, ending = os.path.join(folder, key), ending.lower()
        where = f"{self.archive}, {member.name}"
        if ending in _LABEL_ENDINGS:
            if member.size > _LONGEST_LABEL:
                self.wrong.append(f"{where}: {member.size} bytes are too many for a label")
                return
            file = tar.extractfile(member)
            content = file.read() if file else b""
            self.labels[key, ending] = self._read_labels(content, ending, where)
        elif kind_by_name(name) in ("video", None):
            if member.issparse():
                self.wrong.append(
                    f"{where}: a sparse member, which cannot be read in place; "
                    "write the tar file without sparse members"
                )
            elif key in self.videos:
                self.wrong.append(f"{where}: another video has the same key {key}; keep one")
            self.videos[key] = tar_address(
                self.archive, member.name, member.offset_data, member.size
            )

    def _read_labels(self, content: bytes, ending: str, where: str) -> list[str]:
        """The label, or the labels, in a member."""
        try:
            text = content.decode("utf-8-sig").strip()
            value: object = json.loads(text) if ending == "json" else text
        except ValueError as error:
            kind = "JSON" if ending == "json" else "text"
            self.wrong.append(f"{where}: not {kind} in UTF-8: {error}")
            return []
        if isinstance(value, dict):
            value = next((value[key] for key in _LABEL_KEYS if key in value), None)
        values = value if self.multi_label and isinstance(value, list) else [value]
        if not values or not all(_is_label(item) for item in values):
            several = isinstance(value, list) and not self.multi_label
            hint = "; several labels need data.multi_label" if several else ""
            place = f" under the key {' or '.join(_LABEL_KEYS)}" if ending == "json" else ""
            self.wrong.append(f"{where}: no text or whole number{place}{hint}")
            return []
        return [label for item in values for label in labels_in(str(item), self.multi_label)]

    def add_entries(self, split: str, listing: Listing) -> None:
        """Put videos and labels together."""
        for key, path in self.videos.items():
            ending = next((name for name in _LABEL_ENDINGS if (key, name) in self.labels), "")
            if not ending:
                self.wrong.append(
                    f"{self.archive}, {key}: no label beside the video; "
                    f"expected {key}.cls, .txt or .json"
                )
                continue
            where = f"{self.archive}, {key}.{ending}"
            listing.entries += [
                Entry(str(path), label, split, where) for label in self.labels[key, ending]
            ]
        for key, ending in self.labels:
            if ending == "cls" and key not in self.videos:
                missing, where = str(self.archive / key), f"{self.archive}, {key}.cls"
                listing.entries += [
                    Entry(missing, label, split, where, found=False)
                    for label in self.labels[key, ending]
                ]


def _is_label(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
