"""Which errors does zeroi2v raise?

Every error whose cause lies outside the code is one of these, and its text is one line: what, where, what to do.

    ZeroI2VError
    ├── ConfigError       a setting, an option or a recipe is wrong
    │   └── HeadsError    a head layout does not fit the tower
    ├── TowerError        a tower is unknown, cannot be adapted, or its weights cannot be had
    ├── CheckpointError   a saved model cannot be read, or does not fit
    ├── MergeError        a model holds something that no linear layer can absorb
    ├── DatasetError      a folder or manifest of videos is wrong
    ├── VideoError        a video cannot be read; `.path` names it
    └── FileError         a file cannot be written
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence


class ZeroI2VError(Exception):
    """The root of the tree; catch it to catch everything that is not a defect of the code."""


class ConfigError(ZeroI2VError, ValueError):
    """A setting, an option or a recipe is wrong."""


class HeadsError(ConfigError):
    """A head layout does not fit the tower."""


class TowerError(ZeroI2VError):
    """A tower is unknown, cannot be adapted, or its weights cannot be had."""


class CheckpointError(ZeroI2VError):
    """A saved model cannot be read, or does not fit."""


class MergeError(ZeroI2VError):
    """A model holds something that no linear layer can absorb."""


class DatasetError(ZeroI2VError):
    """A folder or manifest of videos is wrong."""


class VideoError(ZeroI2VError):
    """A video cannot be read. `path` is the file or folder, `reason` one clause that says why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(
            os.fspath(path), reason
        )  # both arguments, so that the error survives pickling
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FileError(ZeroI2VError):
    """A file cannot be written."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The clause of an error that names the known words nearest to a wrong one: ', did you mean ...?'; '' if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def first_names(names: Sequence[object]) -> str:
    """The part of an error that lists the first three of several things, and counts the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
