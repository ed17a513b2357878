"""Is Diving48 read as published, and are odd entries named?"""

import json
from pathlib import Path

from tests.sources_for_tests import held, refusal, touch, write
from zeroi2v.data.datasets import open_dataset


def test_diving48(tmp_path: Path) -> None:
    write(
        tmp_path / "Diving48_vocab.json",
        json.dumps([["Reverse", "Dive", "NoTwis", "PIKE"], ["Back", "15som", "05Twis", "FREE"]]),
    )
    item = {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}
    write(tmp_path / "Diving48_V2_train.json", json.dumps([item]))
    write(tmp_path / "Diving48_V2_test.json", json.dumps([{**item, "vid_name": "b_1", "label": 1}]))
    touch(tmp_path, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/b_1.mp4")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == (
        "diving48",
        ("Reverse Dive NoTwis PIKE", "Back 15som 05Twis FREE"),
    )
    assert held(dataset) == {
        "train": [("rgb/-mmq0PT-u8k_00155.mp4", "Reverse Dive NoTwis PIKE")],
        "val": [("rgb/b_1.mp4", "Back 15som 05Twis FREE")],
    }
    write(
        tmp_path / "Diving48_V2_test.json",
        json.dumps([{"vid_name": "b_1", "label": 2}, {"vid_name": "b_1", "label": -1}]),
    )
    assert refusal(tmp_path) == (
        "Diving48_V2_test.json, entry 1: class number 2, but only 2 classes "
        "are there, numbered from 0; "
        "Diving48_V2_test.json, entry 2: no class is called '-1'"
    )
