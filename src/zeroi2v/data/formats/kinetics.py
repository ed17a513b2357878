"""How does Kinetics-400, 600 or 700 list its videos?

A CSV file for each split has the columns label, youtube_id, time_start, time_end, split. The video
of a line is called youtube_id_000012_000022.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zeroi2v.data.formats.disk import list_folder
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import first_line, read_rows
from zeroi2v.data.formats.source import Source
from zeroi2v.data.formats.splits import split_in
from zeroi2v.errors import DatasetError

_COLUMNS: Final = ("youtube_id", "time_start", "time_end")


def recognises(source: Source) -> bool:
    """Whether there is a CSV file with Kinetics' columns."""
    return bool(_lists(source))


def read(source: Source) -> Listing:
    """Read the list of each split. A list without labels, as of some test splits, is left out."""
    listing = Listing()
    by_length = sorted(list_folder(source.videos)[0], key=lambda folder: -len(folder.name))
    # Longest name first, so that the folder train replaces the folder train_256.
    folders = {split_in(folder.name): folder for folder in by_length}
    for split_of_file, file in _lists_by_split(source).items():
        by_split = _read_list(file, split_of_file, listing)
        for split, entries in by_split.items():
            folder = folders.get(split, source.videos) if split else source.videos
            part = Listing(entries)
            part.find_videos(folder, ending=".mp4")
            listing.entries += part.entries
    return listing


def _lists(source: Source) -> list[Path]:
    files = [file for name, file in sorted(source.lists.items()) if name.lower().endswith(".csv")]
    return [file for file in files if all(column in first_line(file) for column in _COLUMNS)]


def _lists_by_split(source: Source) -> dict[str, Path]:
    """The list of each split. DatasetError if there is none, or two lists are of one split."""
    files = _lists(source)
    if not files:
        raise DatasetError(f"{source.path}: no CSV file with the columns {', '.join(_COLUMNS)}")
    by_split: dict[str, Path] = {}
    for file in files:
        split = split_in(file.stem)
        first = by_split.setdefault(split, file)
        if first is not file:
            raise DatasetError(
                f"{file}: {first.name} lists the split {split or 'train'} too; keep one of them"
            )
    return by_split


def _read_list(file: Path, split_of_file: str, listing: Listing) -> dict[str, list[Entry]]:
    """The entries by split, with names in place of paths. Odd lines go to the listing."""
    by_split: dict[str, list[Entry]] = {}
    rows = read_rows(file)
    if "label" not in next(rows)[1]:
        listing.ignored.append(file)
        return {}
    for line, row in rows:
        where = f"{file}, line {line}"
        split = split_in(row.get("split") or "") or split_of_file
        label, name, start, end = ((row[column] or "").strip() for column in ("label", *_COLUMNS))
        if not (name and start.isdecimal() and end.isdecimal()):
            listing.wrong.append(
                f"{where}: expected a youtube_id, and whole seconds as time_start and time_end"
            )
            continue
        path = f"{name}_{int(start):06d}_{int(end):06d}"
        by_split.setdefault(split, []).append(Entry(path, label, split, where))
    return by_split
