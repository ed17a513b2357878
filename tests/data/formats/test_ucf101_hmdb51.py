"""Are UCF101 and HMDB51 read as published, by official split, and odd lines named?"""

from pathlib import Path

import pytest

from tests.sources_for_tests import held, hmdb51, refusal, touch, ucf101, write
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset


@pytest.mark.parametrize("place", ["UCF-101/", "", "videos/"])
@pytest.mark.parametrize("ending", [".avi", ".mp4", "/img_00001.jpg"])
def test_ucf101(tmp_path: Path, place: str, ending: str) -> None:
    names = [
        "YoYo/v_YoYo_g08_c01",
        "Archery/v_Archery_g08_c01",
        "HandstandPushups/v_HandStandPushups_g01_c01",
    ]
    touch(ucf101(tmp_path), *(f"{place}{name}{ending}" for name in names))
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == ("ucf101", ("YoYo", "Archery", "HandstandPushups"))
    yoyo, archery, handstand = (
        (f"{place}{name}{ending.partition('/')[0]}", name.partition("/")[0]) for name in names
    )
    assert held(dataset) == {"train": [yoyo, archery], "val": [handstand]}
    assert held(open_dataset(tmp_path, DataConfig(split=2))) == {
        "train": [handstand, yoyo],
        "val": [archery],
    }
    assert (
        refusal(tmp_path, DataConfig(split=3))
        == "SOURCE: no trainlist03.txt in it, did you mean 'trainlist02.txt'?"
    )


def test_odd_lines_of_ucf101(tmp_path: Path) -> None:
    touch(
        ucf101(tmp_path),
        "YoYo/v_YoYo_g08_c01.avi",
        "Archery/v_Archery_g08_c01.avi",
        "YoYo/v_YoYo_g09_c01.avi",
    )
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2")
    write(lists / "testlist01.txt", "Arcery/v_YoYo_g08_c01.avi")
    assert refusal(tmp_path) == (
        "ucfTrainTestlist/trainlist01.txt, line 1: 2 is not the number of the class 'YoYo'; "
        "ucfTrainTestlist/testlist01.txt, line 1: "
        "no class is called 'Arcery', did you mean 'Archery'?"
    )


@pytest.mark.parametrize("ending", [".avi", "/frame1.png"])
def test_hmdb51(tmp_path: Path, ending: str) -> None:
    videos = [
        f"hmdb51_org/{name}{ending}"
        for name in ("wave/a_wave_0", "wave/a clip #2_wave", "brush_hair/a_wave_0", "brush_hair/b")
    ]
    touch(hmdb51(tmp_path), *videos)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == ("hmdb51", ("brush_hair", "wave"))
    wave0, wave1, hair0, hair1 = (
        (name.removesuffix("/frame1.png"), name.split("/")[1]) for name in videos
    )
    assert held(dataset) == {"train": [wave0], "val": [hair0, wave1]}
    assert held(open_dataset(tmp_path, DataConfig(split=2))) == {
        "train": [hair1, wave1],
        "val": [wave0],
    }
    write(tmp_path / "testTrainMulti_7030_splits/wave_test_split1.txt", "a_wave_0.avi 3 ")
    assert refusal(tmp_path).endswith(
        "wave_test_split1.txt, line 1: '3' is none of 0 (unused), 1 (train) and 2 (test)"
    )
