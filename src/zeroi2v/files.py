"""How is a file written whole? A file appears complete under its name, or does not appear at all.

Every file that zeroi2v writes is written by this module. `write_files` writes several files
together, `write_text` a text, `write_json` a JSON value. `append_json` adds one line to a file of
JSON lines. `check_writable` tells before long work whether the file of its result can be written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from zeroi2v.errors import ConfigError, FileError

Writer: TypeAlias = Callable[[Path], object]


def write_files(files: Mapping[Path, Writer]) -> None:
    """Write several files whole. `files` maps the path of each file to a function that writes it.

    Each writer gets the path of a temporary file. When all temporary files are on the disk, each is
    renamed to its final path. A writer reports a failure as OSError or UnicodeError.

    FileError names all files if one of them cannot be written. Earlier files at these paths
    then stay unchanged, unless a rename fails after another rename has succeeded.
    """
    partials = {path: _partial(path) for path in files}
    is_renamed = False
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partials[path].touch()
            mode = partials[path].stat().st_mode
            write(partials[path])
            partials[path].chmod(mode)  # some writers make a file that only its owner can read
            with partials[path].open("rb") as file:
                os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
            is_renamed = True
    except (OSError, UnicodeError) as error:
        names = ", ".join(str(path) for path in files)
        reason = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
        outcome = (
            "only some of the files have their new content"
            if is_renamed
            else "files that were there before are unchanged"
        )
        raise FileError(f"{names}: cannot be written: {reason}; {outcome}") from error
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole. Raises FileError like `write_files`.

    File names in the text may hold bytes that are not UTF-8; these bytes are written unchanged.
    """

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")

    write_files({path: write})


def write_json(path: Path, value: object) -> None:
    """Write one JSON value, indented, whole. Raises FileError like `write_files`."""
    write_text(path, json_text(value, indent=1) + "\n")


def json_text(value: object, *, encoding: str = "utf-8", indent: int | None = None) -> str:
    """A value as JSON that a file or stream of this encoding can hold.

    If the encoding lacks a character, every character beyond ASCII is escaped. The same happens if
    the value holds a file name whose bytes are not UTF-8. JSON has no word for infinity and NaN:
    they become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        value = _without_infinities(value)
        text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _without_infinities(value: object) -> object:
    """A plain value with None in place of every infinite number and NaN."""
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(path: Path) -> None:
    """FileError if no file can be written at this path.

    Call this before the work whose result goes into the file. Missing folders are made.
    """
    probe = _partial(path)
    try:
        if path.is_dir():
            raise FileError(
                f"{path}: cannot be written: a folder of that name is there; choose another path"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise FileError(
            f"{path}: cannot be written: {path.parent} is no folder; choose another path"
        ) from error
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error


def is_partial(path: Path) -> bool:
    """Whether a path is that of a temporary file. A killed process may leave such a file behind."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def _partial(path: Path) -> Path:
    """The path of the temporary file for a file. Each process has its own temporary file."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def append_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file, and wait until the line is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The entries that `append_json` wrote; none if the file is missing.

    If a crash cut the last line short, that line is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def keep_json_lines(path: Path, count: int) -> None:
    """Keep the first `count` entries of a file, and drop later entries and a line cut short."""
    if path.exists():
        write_text(
            path, "".join(json.dumps(entry) + "\n" for entry in read_json_lines(path)[:count])
        )


def require_no_file(folder: Path) -> None:
    """ConfigError if `folder`, or a folder above `folder`, is a file."""
    file = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if file.is_file():
        what = "a file" if file == folder else f"{file} is a file"
        raise ConfigError(f"{folder}: {what}, not a folder; choose another --out")


@contextlib.contextmanager
def claimed(folder: Path, claimant: str) -> Iterator[None]:
    """Within the block no other process can claim the folder.

    A missing folder is made, and removed at the end of the block if it is still empty. `claimant`
    describes the other process in the message, such as "another training". ConfigError says that
    another process has claimed the folder, or that the folder cannot be made.
    """
    require_no_file(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot make the folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: {claimant} is running there; wait for it, or choose another --out"
            ) from error
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # the folder holds something now
                    folder.rmdir()
    finally:
        os.close(descriptor)
