"""Which videos are left out of a data set? A list of paths, one a line, or a CSV file with the column path.

A path in it is absolute, or starts at the data set's folder: DATA itself, or the folder that the manifest lies in.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from zeroi2v.data.datasets import VideoDataset
from zeroi2v.errors import DatasetError, nearest
from zeroi2v.files import write_text


def leave_out(dataset: VideoDataset, listed: Path) -> tuple[VideoDataset, list[Path]]:
    """The data set without the listed videos, and these in its own order. DatasetError if a listed one is not in it."""
    folder = _folder(dataset)
    own = {_absolute(video.path): video.path for video in dataset.for_check}
    names = _read(listed)
    wanted = {_absolute(folder / name): name for name in names}
    for path, name in wanted.items():
        if path not in own:
            near = nearest(name, (os.path.relpath(one, folder) for one in own))
            raise DatasetError(f"{listed}: {name} is not in {dataset.source}{near}")
    splits = {
        split: tuple(video for video in videos if _absolute(video.path) not in wanted)
        for split, videos in dataset.splits.items()
    }
    return replace(dataset, splits=splits), [path for key, path in own.items() if key in wanted]


def check_list_path(path: Path) -> None:
    """DatasetError if no list can be written there; asked before hours of work."""
    if path.suffix.lower() not in (".txt", ".csv"):
        raise DatasetError(f"{path}: a list of videos is a .txt or .csv file")
    if not path.parent.is_dir():
        raise DatasetError(f"{path}: no such folder as {path.parent}")


def write_list(path: Path, dataset: VideoDataset, reasons: Mapping[Path, str]) -> None:
    """Write the videos, the keys of `reasons`, as a list that `leave_out` reads; .csv with the reasons. All of it, or nothing."""
    folder = _absolute(_folder(dataset))
    names = {os.path.relpath(_absolute(video), folder): reason for video, reason in reasons.items()}
    text = io.StringIO()
    if path.suffix.lower() == ".csv":
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows([("path", "error"), *names.items()])
    else:
        split = next(
            (name for name in names if name != name.strip() or len(name.splitlines()) > 1), None
        )
        if split is not None:
            raise DatasetError(
                f"{path}: the name {split!r} does not fit into a line; write a .csv file"
            )
        text.writelines(f"{name}\n" for name in names)
    write_text(path, text.getvalue())


def _read(listed: Path) -> list[str]:
    try:
        with listed.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if listed.suffix.lower() != ".csv":
                return [line.strip() for line in file if line.strip()]
            reader = csv.DictReader(file, strict=True)
            if "path" not in (reader.fieldnames or ()):
                raise DatasetError(f"{listed}: no column 'path'")
            return [row["path"] for row in reader if row["path"]]
    except OSError as error:
        raise DatasetError(f"{listed}: cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"{listed}: not a CSV file: {error}") from error


def _folder(dataset: VideoDataset) -> Path:
    return dataset.source if dataset.source.is_dir() else dataset.source.parent


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # symbolic links stay: they are names of their own
