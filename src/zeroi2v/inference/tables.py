"""What did a model answer? Scores and confusions as tables, CSV or Parquet, for whoever wants to look closer or to average models."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeroi2v.data.formats.labels import LABEL_SEPARATOR
from zeroi2v.errors import ConfigError
from zeroi2v.files import check_writable, write_files
from zeroi2v.inference.evaluate import Evaluation


def check_table(path: Path) -> None:
    """ConfigError if a table cannot be written there: known before hours of evaluation, not after."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: a table ends in .csv or .parquet")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    check_writable(path)
    if path.suffix == ".parquet":
        _parquet()


def write_scores(found: Evaluation, labels: Sequence[str], path: Path) -> None:
    """One row per video: its path, its label or labels, the label of its highest score, and a score per class, of 0..1."""
    best = found.scores.argmax(1).tolist()
    columns: dict[str, list[Any]] = {
        "video": [str(video.path) for video in found.videos],
        "label": [
            LABEL_SEPARATOR.join(labels[label] for label in video.labels) for video in found.videos
        ],
        "answer": [labels[label] for label in best],
    }
    columns |= {
        f"score: {label}": scores
        for label, scores in zip(labels, found.scores.T.tolist(), strict=True)
    }
    _write_table(columns, path)


def write_confusion(found: Evaluation, labels: Sequence[str], path: Path) -> None:
    """One row per class: its name, and for each class how many of its videos were taken for that one."""
    columns = {
        f"answer: {label}": counts
        for label, counts in zip(labels, found.confusion().T.tolist(), strict=True)
    }
    _write_table({"label": [*labels], **columns}, path)


def _write_table(columns: dict[str, list[Any]], path: Path) -> None:
    write_files({path: lambda partial: _write(columns, partial, parquet=path.suffix == ".parquet")})


def _write(columns: dict[str, list[Any]], path: Path, *, parquet: bool) -> None:
    if parquet:
        arrow, tables = _parquet()
        tables.write_table(arrow.table(columns), path)
        return
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install pyarrow, or write .csv") from error
    return pyarrow, pyarrow.parquet
