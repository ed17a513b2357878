"""Which errors does zeroi2v raise?

Every error whose cause lies outside the code is one of these classes. The text of an error is one
line: what is wrong, where, and what to do.

    ZeroI2VError
    ├── ConfigError       a setting, an option or a recipe is wrong
    │   └── HeadsError    a head layout does not fit the tower
    ├── TowerError        a tower is unknown, cannot be adapted, or its weights cannot be had
    ├── CheckpointError   a saved model cannot be read, or does not fit the model that it is
    │                     loaded into
    ├── MergeError        a model cannot be merged, or merging changed its logits
    ├── DatasetError      a folder or manifest of videos is wrong
    ├── VideoError        a video cannot be read; `.path` names it
    ├── FileError         a file cannot be written
    └── WorkerError       a process that decodes videos ended before its work was done
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence


class ZeroI2VError(Exception):
    """The base class of all errors above.

    `except ZeroI2VError` catches every error that is not a defect of the code.
    """


class ConfigError(ZeroI2VError, ValueError):
    """A setting, an option or a recipe is wrong."""


class HeadsError(ConfigError):
    """A head layout does not fit the tower."""


class TowerError(ZeroI2VError):
    """A tower is unknown, cannot be adapted, or its weights cannot be had."""


class CheckpointError(ZeroI2VError):
    """A saved model cannot be read, or does not fit the model that it is loaded into."""


class MergeError(ZeroI2VError):
    """A model cannot be merged, or merging changed its logits."""


class DatasetError(ZeroI2VError):
    """A folder or manifest of videos is wrong."""


class VideoError(ZeroI2VError):
    """A video cannot be read. `path` is the file or folder; `reason` is a clause that says why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(os.fspath(path), reason)  # pickling needs both arguments
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FileError(ZeroI2VError):
    """A file cannot be written."""


class WorkerError(ZeroI2VError):
    """A process that decodes videos ended before its work was done."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error's text that suggests the known word nearest to a wrong word.

    For example ", did you mean 'epochs'?"; an empty text if no known word is similar.
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""


def nearest_class(name: str, classes: Sequence[str]) -> str:
    """The end of an error's text for a class that is not there.

    As `nearest`; but if no class has a similar name, the first three classes: "; the classes are a,
    b, c and 2 more".
    """
    return nearest(name, classes) or f"; the classes are {first_names(classes)}"


def first_names(names: Sequence[object]) -> str:
    """The part of an error's text that lists the first three of several names.

    For example "a, b, c and 2 more".
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more


def how_many(count: int, singular: str, plural: str = "") -> str:
    """A count and the words for it, for people: "1 video", "2 videos", "1,600 videos".

    Without `plural`, an "s" after `singular` makes the plural. Words may follow the noun:
    `how_many(count, "video is", "videos are")`.
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def one_line(error: BaseException) -> str:
    """The first line of an exception's message; the exception's name if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def escaped(text: str) -> str:
    """A text whose control characters and line breaks, as in the name of a file, are escapes."""
    breaks = ("Cc", "Zl", "Zp")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in breaks else c for c in text)
