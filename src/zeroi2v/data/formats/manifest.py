"""How does a manifest list videos: a table with the columns path, label and perhaps split?

A manifest is a CSV file; semicolons and tabs may separate its columns too. A folder that holds
train.csv and val.csv or test.csv is a manifest in several files, each of one split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeroi2v.data.formats.disk import FileNames, list_folder
from zeroi2v.data.formats.labels import labels_in
from zeroi2v.data.formats.listing import Entry, Listing
from zeroi2v.data.formats.lists import delimiter_of, read_rows, require_text
from zeroi2v.data.formats.source import Source
from zeroi2v.data.formats.splits import SPLITS, split_of
from zeroi2v.errors import DatasetError, first_names, nearest

_NEEDED: Final = ("path", "label")
_USED: Final = (*_NEEDED, "split")
_ENDINGS: Final = (".csv", ".tsv")


def recognises(source: Source) -> bool:
    """Whether the source is a file, or a folder with a manifest of each split."""
    return source.path.is_file() or len(_by_split(source.path)) > 1


def read(source: Source) -> Listing:
    """Read a manifest, or the manifests of a folder.

    Paths are absolute, or start at the manifest's folder, or at the folder that data.videos names.
    """
    if source.path.is_file():
        files = [("", source.path)]
    else:
        files = _by_split(source.path)
        _require_files_of_splits(source.path, files)
    listing, names = Listing(), FileNames()
    for split, file in files:
        folder = source.videos if source.config.videos else file.parent
        _read_file(file, split, str(folder), source.config.multi_label, names, listing)
    return listing


def manifests_in(folder: Path) -> list[Path]:
    """The tables in a folder that have the columns of a manifest."""
    tables = [file for file in list_folder(folder)[1] if file.suffix.lower() in _ENDINGS]
    return [file for file in tables if delimiter_of(file, _NEEDED)]


def _by_split(folder: Path) -> list[tuple[str, Path]]:
    """Split and path of the manifests in a folder that are named after a split, train first."""
    files = [(split_of(file.stem), file) for file in manifests_in(folder)]
    order = [*dict.fromkeys(SPLITS.values())]
    return sorted(
        ((split, file) for split, file in files if split),
        key=lambda pair: (order.index(pair[0]), pair[1]),
    )


def _require_files_of_splits(folder: Path, files: Sequence[tuple[str, Path]]) -> None:
    """DatasetError unless the folder holds one manifest for each of several splits."""
    if len(files) < 2:
        raise DatasetError(f"{folder}: a folder, not a manifest; name the CSV file")
    for number, (split, file) in enumerate(files):
        for other, earlier in files[:number]:
            if split == other:
                raise DatasetError(
                    f"{file}: {earlier.name} lists the split {split} too; keep one of them"
                )


def _read_file(
    file: Path, split: str, folder: str, multi_label: bool, names: FileNames, listing: Listing
) -> None:
    """Add the videos of one manifest. `split` replaces a missing column split."""
    for line in _lines(file):
        if line.wrong:
            listing.wrong.append(f"{line.where}: {line.wrong}")
            continue
        wanted = os.path.normpath(os.path.join(folder, line.path))
        on_disk = names.find(wanted)
        path = on_disk or wanted
        if on_disk is None:
            require_text(file, line.where.removeprefix(f"{file}, "), [line.path])
        if line.further:
            listing.columns.setdefault(path, line.further)
        listing.entries += [
            Entry(path, label, line.split or split, line.where, on_disk is not None)
            for label in labels_in(line.label, multi_label)
        ]


@dataclass(frozen=True)
class _Line:
    """One line of a manifest."""

    where: str
    path: str
    label: str
    split: str  # train, val or test; "" without a column split
    further: dict[str, str]  # the other columns
    wrong: str  # why the line is of no use; "" if it is of use


def _lines(file: Path) -> Iterator[_Line]:
    """The lines of a manifest. DatasetError if a column is missing."""
    rows = read_rows(file, delimiter=delimiter_of(file, _NEEDED) or ",")
    header = [name or "" for name in next(rows)[1]]
    columns = _used_columns(file, header)
    others = [name for name in header if name and name not in columns.values()]
    for number, row in rows:
        values = {name: (row[column] or "").strip() for name, column in columns.items()}
        split = values.get("split", "").lower()
        empty = next((name for name in _USED if name in values and not values[name]), None)
        wrong = ""
        if None in row:
            wrong = "more values than columns; a value with a comma in it needs quotes"
        elif empty:
            wrong = f"the {empty} is empty"
        elif split and split not in SPLITS:
            wrong = f"split {split!r} is none of train, val and test{nearest(split, SPLITS)}"
        yield _Line(
            f"{file}, line {number}",
            values["path"],
            values["label"],
            SPLITS.get(split, ""),
            {name: row[name] or "" for name in others},
            wrong,
        )


def _used_columns(file: Path, header: Sequence[str]) -> dict[str, str]:
    """The columns that are used: path, label, split -> the name as the header spells it.

    DatasetError if the manifest is empty or lacks a column; the error names the first such column.
    """
    columns = {name.lower(): name for name in header if name.lower() in _USED}
    missing = next((name for name in _NEEDED if name not in columns), None)
    if missing is None:
        return {
            name: name if name in header else columns[name] for name in _USED if name in columns
        }
    if len(header) == 1 and all(name in header[0].lower() for name in _NEEDED):
        raise DatasetError(
            f"{file}: the header {header[0]!r} is one column; "
            "separate the columns by commas, semicolons or tabs"
        )
    if not header:
        raise DatasetError(f"{file}: empty; a manifest has the columns path and label")
    raise DatasetError(
        f"{file}: no column {missing!r} among {first_names(header)}{nearest(missing, header)}; "
        "a manifest has the columns path and label, separated by commas, semicolons or tabs"
    )
