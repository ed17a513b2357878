"""May results be written to a folder? Not inside DATA: the folder could count as a class."""

from __future__ import annotations

import os
from pathlib import Path

from zeroi2v.errors import DatasetError


def require_outside(out: Path, folder: Path, *, kind: str = "the data set") -> None:
    """DatasetError if the folder `out`, which is to be written, lies in `folder` or is `folder`.

    `kind` says in the error what `folder` is. Links are followed. If `folder` is a file,
    such as a manifest, `out` may lie anywhere.
    """
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    if outer.is_dir() and inner.is_relative_to(outer):
        raise DatasetError(f"{out}: lies in {kind} {folder}; choose a folder outside of it")
