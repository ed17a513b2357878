"""Which videos are left out of a data set?

The videos of a list: a text file with one path a line, or a CSV file with the column path. A path
is absolute or starts at the data set's folder: DATA itself, or the folder of the manifest.
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


def without_listed(dataset: VideoDataset, list_file: Path) -> tuple[VideoDataset, list[Path]]:
    """The data set without the listed videos, and the paths of the videos that were left out.

    A listed video of a class that `data.leave_out` names counts as left out by the list. The paths
    are in the data set's order; the paths of such videos come last. DatasetError if a listed video
    is not in the data set.
    """
    folder = _folder(dataset)
    videos_there = (*(video.path for video in dataset.for_check), *dataset.left_out)
    paths = {_absolute(path): path for path in videos_there}
    names = _read(list_file)
    excluded = {_absolute(folder / name): name for name in names}
    for path, name in excluded.items():
        if path not in paths:
            near = nearest(name, (os.path.relpath(known, folder) for known in paths))
            raise DatasetError(
                f"train.exclude: {list_file}: {name} is not in {dataset.source}{near}"
            )
    splits = {
        split: tuple(video for video in videos if _absolute(video.path) not in excluded)
        for split, videos in dataset.splits.items()
    }
    left_out = [paths[path] for path in paths if path in excluded]
    return replace(dataset, splits=splits), left_out


def check_list_path(path: Path) -> None:
    """DatasetError if no list can be written at this path. Call this before hours of work."""
    if path.suffix.lower() not in (".txt", ".csv"):
        raise DatasetError(f"{path}: a list of videos is a .txt or .csv file; choose such a name")
    if not path.parent.is_dir():
        raise DatasetError(
            f"{path.parent}: no such folder; make the folder, or choose another path for the list"
        )


def write_list(path: Path, dataset: VideoDataset, reasons: Mapping[Path, str]) -> None:
    """Write a list that `without_listed` reads: the videos that are the keys of `reasons`.

    A .csv file has the reasons too. FileError if the file cannot be written.
    """
    folder = _absolute(_folder(dataset))
    names = {os.path.relpath(_absolute(video), folder): reason for video, reason in reasons.items()}
    text = io.StringIO()
    if path.suffix.lower() == ".csv":
        csv.writer(text).writerows([("path", "error"), *names.items()])
    else:
        for name in names:
            if name != name.strip() or len(name.splitlines()) > 1:
                raise DatasetError(
                    f"{path}: the name {name!r} does not fit into a line; write a .csv file"
                )
        text.writelines(f"{name}\n" for name in names)
    write_text(path, text.getvalue())


def _read(list_file: Path) -> list[str]:
    """The paths in a list, as they are written there."""
    try:
        with list_file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if list_file.suffix.lower() != ".csv":
                return [line.strip() for line in file if line.strip()]
            reader = csv.DictReader(file, strict=True)
            if "path" not in (reader.fieldnames or ()):
                raise DatasetError(
                    f"train.exclude: {list_file}: no column 'path'; "
                    "name the column of the paths 'path', or give a .txt file with one path a line"
                )
            return [row["path"] for row in reader if row["path"]]
    except OSError as error:
        raise DatasetError(
            f"train.exclude: {list_file}: cannot be read: {error.strerror}"
        ) from error
    except csv.Error as error:
        raise DatasetError(f"train.exclude: {list_file}: not a CSV file: {error}") from error


def _folder(dataset: VideoDataset) -> Path:
    """The folder at which the relative paths of a list start."""
    return dataset.source if dataset.source.is_dir() else dataset.source.parent


def _absolute(path: Path) -> str:
    """The absolute path. A symbolic link stays in it: the link is a name of its own."""
    return os.path.abspath(path)
