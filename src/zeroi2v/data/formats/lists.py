"""How are lists read: lines of text, JSON, and tables with columns?"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from zeroi2v.errors import DatasetError

_DELIMITERS: Final = (",", ";", "\t")


def read_lines(file: Path) -> list[tuple[str, str]]:
    """'file, line n' and the text of each line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not a list in UTF-8: {error}") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(f"{file}, line {number}", line) for number, line in stripped if line]


def first_line(file: Path) -> str:
    """The first line of a file of any kind, as far as it is text; '' if it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            return opened.readline(1 << 16).strip()
    except OSError:
        return ""


def read_object(file: Path) -> dict[str, object]:
    """The object in a JSON file."""
    value = _read_json(file)
    if not isinstance(value, dict):
        raise DatasetError(f"{file}: expected a JSON object")
    return value


def read_array(file: Path) -> list[object]:
    """The list in a JSON file."""
    value = _read_json(file)
    if not isinstance(value, list):
        raise DatasetError(f"{file}: expected a JSON list")
    return value


def _read_json(file: Path) -> object:
    try:
        value: object = json.loads(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{file}: not JSON: {error}") from error
    return value


def delimiter_of(file: Path, columns: Sequence[str]) -> str | None:
    """Which of comma, semicolon and tab separates the header of a table into these columns?

    None if none of them does. Upper case letters count as lower case letters.
    """
    header = first_line(file)
    for delimiter in _DELIMITERS:
        names = {name.strip(' "').lower() for name in header.split(delimiter)}
        if names.issuperset(columns):
            return delimiter
    return None


def read_rows(
    file: Path, *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str | None, str | None]]]:
    """The number and the row of each line of a table. The header comes first, with values None.

    Only a path may hold bytes that are not UTF-8, because names of files may hold such bytes.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            reader = csv.DictReader(opened, delimiter=delimiter, skipinitialspace=True, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            require_text(file, "line 1", reader.fieldnames)
            yield 1, dict.fromkeys(reader.fieldnames)
            for row in reader:
                texts = [text for name, text in row.items() if (name or "").lower() != "path"]
                require_text(file, f"line {reader.line_num}", texts)
                yield reader.line_num, row
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"{file}: not a CSV manifest in UTF-8: {error}") from error


def require_text(file: Path, line: str, texts: Iterable[object]) -> None:
    """DatasetError if one of the texts in a line of a table holds bytes that are no UTF-8."""
    for text in texts:
        if "\0" in str(text):
            raise DatasetError(f"{file}: not a CSV manifest in UTF-8: {line} is no text")
        if any("\udc80" <= character <= "\udcff" for character in str(text)):
            raw = os.fsencode(str(text))
            raise DatasetError(f"{file}: not a CSV manifest in UTF-8: {raw!r} in {line}")
