"""Are exactly the listed videos left out, and is a list for another data set refused?"""

from pathlib import Path

import pytest

from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.data.exclude import check_list_path, without_listed, write_list
from zeroi2v.errors import DatasetError

NAMES = ["a/1.mp4", "a/2 two.mp4", "a/naïve, 3.mp4", "b/1.mp4", "b/5.mp4", "b/6.mp4"]


@pytest.fixture
def dataset(tmp_path: Path) -> VideoDataset:
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return open_dataset(tmp_path / "data")


def names(dataset: VideoDataset) -> dict[str, list[str]]:
    return {
        split: [str(video.path.relative_to(dataset.source)) for video in videos]
        for split, videos in dataset.splits.items()
    }


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_what_a_check_lists_is_left_out_and_nothing_else(
    dataset: VideoDataset, tmp_path: Path, kind: str
) -> None:
    broken = {dataset.source / name: "no frame, at all" for name in (NAMES[2], NAMES[4])}
    listed = tmp_path / f"broken.{kind}"
    write_list(listed, dataset, broken)
    kept, left = without_listed(dataset, listed)
    assert {*left} == {*broken}
    assert names(kept) == {
        split: [name for name in inside if name not in (NAMES[2], NAMES[4])]
        for split, inside in names(dataset).items()
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [listed.name]
    assert ("no frame, at all" in listed.read_text()) == (kind == "csv")


def test_a_list_by_hand_may_hold_absolute_paths_and_empty_lines(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text(f"b/../a/1.mp4\r\n\n{dataset.source / 'b' / '6.mp4'}\na/1.mp4\n")
    found = [path.relative_to(dataset.source) for path in without_listed(dataset, listed)[1]]
    assert sorted(map(str, found)) == ["a/1.mp4", "b/6.mp4"]


@pytest.mark.parametrize("directions", [False, True])
def test_a_listed_video_of_a_left_out_class_counts_as_excluded(
    dataset: VideoDataset, tmp_path: Path, directions: bool
) -> None:
    config = DataConfig(leave_out=("b",), directions=directions)
    without = open_dataset(dataset.source, config)
    listed = tmp_path / "mine.txt"
    listed.write_text("b/6.mp4\na/1.mp4\n")
    kept, left = without_listed(without, listed)
    assert left == [dataset.source / "a" / "1.mp4", dataset.source / "b" / "6.mp4"]
    assert {video.path for video in kept.for_check}.isdisjoint(left)
    listed.write_text("b/66.mp4\n")
    with pytest.raises(DatasetError, match=r"b/66\.mp4 is not in"):
        without_listed(without, listed)


def test_an_empty_list_leaves_nothing_out(dataset: VideoDataset, tmp_path: Path) -> None:
    write_list(tmp_path / "none.txt", dataset, {})
    assert without_listed(dataset, tmp_path / "none.txt") == (dataset, [])


def test_a_listed_video_that_is_not_there_is_named(dataset: VideoDataset, tmp_path: Path) -> None:
    (tmp_path / "wrong.txt").write_text("a/1.mp4\na/2_two.mp4\n")
    with pytest.raises(
        DatasetError,
        match=r"train\.exclude: .*wrong.txt: a/2_two.mp4 is not in .*data, "
        r"did you mean 'a/2 two.mp4'\?",
    ):
        without_listed(dataset, tmp_path / "wrong.txt")
    (tmp_path / "wrong.csv").write_text("video\na/1.mp4\n")
    with pytest.raises(DatasetError, match=r"train\.exclude: .*no column 'path'"):
        without_listed(dataset, tmp_path / "wrong.csv")
    with pytest.raises(
        DatasetError, match=r"train\.exclude: .*nowhere\.txt: cannot be read: No such file"
    ):
        without_listed(dataset, tmp_path / "nowhere.txt")
    (tmp_path / "quote.csv").write_text('path\n"a/1.mp4\n')
    with pytest.raises(DatasetError, match=r"train\.exclude: .*quote\.csv: not a CSV file"):
        without_listed(dataset, tmp_path / "quote.csv")


def test_a_list_that_cannot_be_written_is_refused_before_the_work(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"a list of videos is a \.txt or \.csv file"):
        check_list_path(tmp_path / "broken")
    with pytest.raises(DatasetError, match="no such folder"):
        check_list_path(tmp_path / "nowhere" / "broken.txt")
    with pytest.raises(DatasetError, match=r"does not fit into a line; write a \.csv file"):
        write_list(tmp_path / "broken.txt", dataset, {dataset.source / "a" / "x\ny.mp4": "broken"})
