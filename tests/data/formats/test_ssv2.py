"""Is Something-Something V2 read as published, with its classes in order, and odd entries named?"""

import json
from pathlib import Path

import pytest

from tests.sources_for_tests import held, refusal, ssv2, touch, write
from zeroi2v.data.datasets import open_dataset


@pytest.mark.parametrize(("place", "prefix"), [("labels", ""), (".", "something-something-v2-")])
def test_something_something(tmp_path: Path, place: str, prefix: str) -> None:
    names = ssv2(tmp_path / place, prefix)
    videos = touch(
        tmp_path, "20bn-something-something-v2/78687.webm", "videos/3.mp4", "videos/1420.webm"
    )
    dataset = open_dataset(videos)
    assert dataset.format == "ssv2"
    assert dataset.classes == tuple(names)
    assert held(dataset) == {
        "train": [("20bn-something-something-v2/78687.webm", names[93])],
        "val": [("videos/3.mp4", names[0])],
        "test": [("videos/1420.webm", names[167])],
    }


def test_a_flip_of_something_something_exchanges_left_and_right(tmp_path: Path) -> None:
    ssv2(tmp_path)
    touch(tmp_path, "78687.webm", "3.webm", "1420.webm")
    pairs = open_dataset(tmp_path).flip_pairs
    assert len(pairs) == 3
    for first, second in pairs:
        assert "left" in first
        assert second == first.replace("left", "@").replace("right", "left").replace("@", "right")


def test_odd_entries_of_something_something(tmp_path: Path) -> None:
    ssv2(tmp_path, answers=False)
    touch(tmp_path, "78687.webm", "3.webm")
    assert [path.name for path in open_dataset(tmp_path).ignored] == ["test.json"]
    write(
        tmp_path / "train.json",
        json.dumps([{"id": "78687", "template": "Pushing [something] from lef to right"}]),
    )
    assert refusal(tmp_path) == (
        "train.json, entry 1: no class is called 'Pushing something from lef to right', "
        "did you mean 'Pushing something from left to right'?"
    )
    write(tmp_path / "train.json", json.dumps([{"id": "78687"}]))
    assert refusal(tmp_path) == "train.json, entry 1: expected an object with id and template"
    write(tmp_path / "train.json", "[")
    assert refusal(tmp_path).startswith("train.json: not JSON: ")
    write(tmp_path / "labels.json", json.dumps({"a": "0", "b": "2"}))
    assert refusal(tmp_path) == "labels.json: its numbers must be 0 to 1, each once"
