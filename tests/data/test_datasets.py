"""Are splits chosen, held out, evaluated and relabelled as promised, whatever the format?"""

import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from tests.sources_for_tests import held, touch, write
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset, relabel
from zeroi2v.errors import ConfigError, DatasetError


def stems(dataset: VideoDataset, split: str | None) -> set[str]:
    return {video.path.stem for video in dataset.for_evaluation(split)}


@pytest.mark.parametrize(
    ("splits", "chosen"), [(["train", "test"], "test"), (["train", "test", "valid"], "valid")]
)
def test_what_there_is_to_validate_on(tmp_path: Path, splits: list[str], chosen: str) -> None:
    for split in splits:
        touch(tmp_path, f"{split}/run/{split}.mp4", f"{split}/walk/{split}.mp4")
    dataset = open_dataset(tmp_path)
    assert {video.path.stem for video in dataset.val} == stems(dataset, None) == {chosen}
    assert {video.path.stem for video in dataset.train} == {"train"}


def test_a_split_can_be_evaluated_by_its_name(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        touch(tmp_path, f"{split}/run/{split}_1.mp4", f"{split}/walk/{split}_2.mp4")
    dataset = open_dataset(tmp_path)
    for split, stem in {
        "train": "train",
        "val": "valid",
        "Validation": "valid",
        "test": "test",
    }.items():
        assert stems(dataset, split) == {f"{stem}_1", f"{stem}_2"}
    with pytest.raises(DatasetError) as caught:
        dataset.for_evaluation("tets")
    assert str(caught.value) == (
        f"{tmp_path}: no split 'tets', only train, val, test, did you mean 'test'?"
    )


def test_the_test_split_keeps_its_name_where_it_is_what_to_validate_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        touch(tmp_path, f"{split}/run/{split}.mp4", f"{split}/walk/{split}.mp4")
    dataset = open_dataset(tmp_path)
    assert dataset.for_evaluation("test") == dataset.for_evaluation() == dataset.val
    with pytest.raises(DatasetError, match=r"no split 'val', only train, test$"):
        dataset.for_evaluation("val")


def test_what_is_held_out_is_no_split_of_the_source(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in ("run", "walk") for number in range(5)))
    dataset = open_dataset(tmp_path)
    assert dataset.val
    assert {*dataset.for_evaluation("train")} == {*dataset.for_check}
    with pytest.raises(DatasetError, match=r"no split 'val', only train$"):
        dataset.for_evaluation("val")


def test_without_a_split_a_share_of_each_class_is_held_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"run/{i}.mp4" for i in range(10)), "walk/0.mp4", "walk/1.mp4", "jump/0.mp4")
    dataset = open_dataset(tmp_path, val_share=0.3)
    counts = [sum(video.label == label for video in dataset.val) for label in range(3)]
    assert counts == [0, 3, 1]  # jump, run, walk
    assert not {*dataset.train} & {*dataset.val}
    assert {*dataset.train} | {*dataset.val} == {*dataset.for_evaluation()}
    assert len(dataset.for_evaluation()) == 13
    assert dataset == open_dataset(tmp_path, val_share=0.3)
    others = [open_dataset(tmp_path, val_share=0.3, seed=seed).val for seed in range(1, 5)]
    assert any(other != dataset.val for other in others)


def test_a_hold_out_does_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    touch(tmp_path / "one", *(f"{label}/{i}.mp4" for label in ("run", "walk") for i in range(9)))
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    first, second = (held(open_dataset(tmp_path / name)) for name in ("one", "other"))
    assert first == second


def test_only_a_train_split_is_split_for_training_and_whole_for_evaluation(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{label}/{i}.mp4" for label in ("run", "walk") for i in range(5)))
    dataset = open_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.for_evaluation())) == (8, 2, 10)


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_is_checked(tmp_path: Path, share: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"val_share must be at least 0 and below 1, got {share}"
    ):
        open_dataset(touch(tmp_path, "run/a.mp4"), val_share=share)


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    dataset = open_dataset(touch(tmp_path, "run/a.mp4", "walk/b.mp4"))
    relabelled = relabel(dataset, ("walk", "jump", "run"))
    assert relabelled.classes == ("walk", "jump", "run")
    labels = {video.path.name: video.label for video in relabelled.for_evaluation()}
    assert labels == {"a.mp4": 2, "b.mp4": 0}
    message = r"the model has no class 'walk', did you mean 'walking'\? \(data\.leave_out leaves"
    with pytest.raises(DatasetError, match=message):
        relabel(dataset, ("walking", "run"))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_label_with_accents_is_the_models_whatever_form_that_has(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    dataset = open_dataset(touch(tmp_path, "plié/a.mp4", "walk/b.mp4"))
    relabelled = relabel(dataset, ("walk", unicodedata.normalize(form, "plié")))
    labels = {video.path.name: video.label for video in relabelled.for_check}
    assert labels == {"a.mp4": 1, "b.mp4": 0}


def test_further_columns_of_a_manifest_are_kept_by_video(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    lines = ["path,subject,label,split,take", "a.mp4,p 1,x,train,1", 'b.mp4,"p, 2",y,train,']
    source = write(tmp_path / "list.csv", *lines, "c.mp4,p3,x,val,2")
    dataset = open_dataset(source)
    expected = {
        tmp_path / "a.mp4": {"subject": "p 1", "take": "1"},
        tmp_path / "b.mp4": {"subject": "p, 2", "take": ""},
        tmp_path / "c.mp4": {"subject": "p3", "take": "2"},
    }
    assert dataset.columns == expected
    assert relabel(dataset, ("y", "x")).columns == expected
    assert not open_dataset(touch(tmp_path / "folder", "x/a.mp4", "y/b.mp4")).columns


def test_further_columns_are_kept_once_where_a_video_has_a_line_for_each_label(
    tmp_path: Path,
) -> None:
    source = write(
        touch(tmp_path, "a.mp4") / "list.csv", "path,label,subject", "a.mp4,x,p1", "a.mp4,y,p1"
    )
    dataset = open_dataset(source, DataConfig(multi_label=True), val_share=0)
    assert dataset.columns == {tmp_path / "a.mp4": {"subject": "p1"}}
