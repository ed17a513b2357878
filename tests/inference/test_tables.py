"""The table of scores says for every video what the model answered."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from zeroi2v.data.datasets import Video
from zeroi2v.errors import ZeroI2VError
from zeroi2v.inference.evaluate import Evaluation
from zeroi2v.inference.tables import check_table, write_confusion, write_scores

LABELS = ("run", 'jump, "high"', "é")
LOGITS = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 0.0, 3.0]], [[0.0, 1.0, 0.0]]])
VIDEOS = tuple(
    Video(Path(f"{name}.mp4"), label) for name, label in {"a": 0, "b": 1, "c": 1}.items()
)
FOUND = Evaluation(LOGITS, torch.tensor([0, 1, 1]), VIDEOS, ())


def test_a_csv_table_holds_every_score(tmp_path: Path) -> None:
    write_scores(FOUND, LABELS, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["video"], row["label"], row["answer"]) for row in rows] == [
        ("a.mp4", "run", "run"),
        ("b.mp4", LABELS[1], "é"),
        ("c.mp4", LABELS[1], LABELS[1]),
    ]
    read = torch.tensor([[float(row[f"score: {label}"]) for label in LABELS] for row in rows])
    torch.testing.assert_close(read, LOGITS[:, 0].softmax(-1))


def test_a_parquet_table_is_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_scores(FOUND, LABELS, tmp_path / "scores.parquet")
    table = parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["answer"] == ["run", "é", LABELS[1]]
    torch.testing.assert_close(torch.tensor(table["score: run"]), LOGITS[:, 0].softmax(-1)[:, 0])


def test_the_confusion_table_has_a_row_per_class(tmp_path: Path) -> None:
    write_confusion(FOUND, LABELS, tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.reader(file)]
    assert rows == [
        ["label", *(f"answer: {label}" for label in LABELS)],
        ["run", "1", "0", "0"],
        [LABELS[1], "0", "1", "1"],
        ["é", "0", "0", "0"],
    ]


def test_a_class_without_videos_has_no_accuracy() -> None:
    assert FOUND.per_class() == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scores.txt", "csv or .parquet"),
        ("none/scores.csv", "no folder"),
        ("folder.csv", "a folder"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ZeroI2VError, match=reason):
        check_table(tmp_path / name)
