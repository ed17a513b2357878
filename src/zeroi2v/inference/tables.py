"""How are the scores and confusions of an evaluation written as tables, CSV or Parquet?

The tables are for people who look closer, and for programs that average several models.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from zeroi2v.data.formats.labels import LABEL_SEPARATOR
from zeroi2v.errors import ConfigError
from zeroi2v.files import check_writable, write_files
from zeroi2v.inference.evaluate import Evaluation


def check_table(path: Path) -> None:
    """Find out before hours of evaluation whether a table can be written to this path.

    ConfigError or FileError says why not.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: a table ends in .csv or .parquet; choose such a name")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path}: there is no folder {path.parent}; make the folder, or choose another path"
        )
    check_writable(path)
    if path.suffix == ".parquet":
        _parquet()


def write_scores(evaluation: Evaluation, labels: Sequence[str], path: Path) -> None:
    """Write one row per video: path, label or labels, answer, and a score per class, 0..1.

    The answer is the label of the highest score.
    """
    videos = evaluation.videos
    columns: dict[str, Sequence[object]] = {
        "video": [_as_text(str(video.path)) for video in videos],
        "label": [
            LABEL_SEPARATOR.join(labels[label] for label in video.labels) for video in videos
        ],
        "answer": [labels[label] for label in evaluation.scores.argmax(1).tolist()],
    }
    for label, scores in zip(labels, evaluation.scores.T.tolist(), strict=True):
        columns[f"score: {label}"] = scores
    _write_table(columns, path)


def write_confusion(evaluation: Evaluation, labels: Sequence[str], path: Path) -> None:
    """Write one row per class: its name, and how many of its videos got each class as answer."""
    columns: dict[str, Sequence[object]] = {"label": labels}
    for label, counts in zip(labels, evaluation.confusion().T.tolist(), strict=True):
        columns[f"answer: {label}"] = counts
    _write_table(columns, path)


def _as_text(path: str) -> str:
    """A path with backslash escapes in place of bytes that are no text."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_table(columns: dict[str, Sequence[object]], path: Path) -> None:
    def write_csv(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def write_parquet(partial: Path) -> None:
        arrow, tables = _parquet()
        tables.write_table(arrow.table(columns), partial)

    write_files({path: write_parquet if path.suffix == ".parquet" else write_csv})


def _parquet() -> tuple[ModuleType, ModuleType]:
    """The packages pyarrow and pyarrow.parquet. ConfigError if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install pyarrow, or write .csv") from error
    return pyarrow, pyarrow.parquet
