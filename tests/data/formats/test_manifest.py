"""Does a manifest become the videos, classes and splits it lists, and is each defect named?"""

import csv
import io
import os
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from tests.sources_for_tests import held, refusal, touch, write
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.errors import DatasetError


def manifest(folder: Path, text: str | bytes, *videos: str) -> Path:
    touch(folder, *videos)
    path = folder / "index.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(source: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        _ = open_dataset(source).train
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(source))
    return text.removeprefix(str(source))


def test_a_manifest(tmp_path: Path) -> None:
    rows = [
        "label, path ,other,split",
        "",
        '"run, fast","a, b.mp4",1,Train',
        " walk , clip ,2,val",
        f"walk,{tmp_path}/c.mp4,,train",
        "",
    ]
    text = "\ufeff" + "\r\n".join(rows)
    source = manifest(tmp_path / "sub", text, "a, b.mp4", "clip/1.png", "../c.mp4")
    dataset = open_dataset(source)
    assert dataset.classes == ("run, fast", "walk")
    assert [(video.path, video.label) for video in dataset.train] == [
        (tmp_path / "sub/a, b.mp4", 0),
        (tmp_path / "c.mp4", 1),
    ]
    assert [(video.path, video.label) for video in dataset.val] == [(tmp_path / "sub/clip", 1)]


def test_the_real_manifest_and_the_real_folder_agree(shared_data: Path) -> None:
    folder, table = (
        open_dataset(shared_data / "surveillance_fights" / name) for name in ("", "index.csv")
    )
    assert folder.classes == table.classes == ("fight", "noFight")
    for split, count in (("train", 60), ("val", 30)):
        assert len(table.splits[split]) == count
        assert {*folder.splits[split]} == {*table.splits[split]}
    with (shared_data / "surveillance_fights" / "index.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [video.path.name for video in table.for_evaluation()] == [
        Path(row["path"]).name for row in rows if row["split"] == "val"
    ]


COLUMNS = "; a manifest has the columns path and label, separated by commas, semicolons or tabs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": empty; a manifest has the columns path and label"),
        (
            "paths,label\na.mp4,run\n",
            f": no column 'path' among paths, label, did you mean 'paths'?{COLUMNS}",
        ),
        ("path,class\na.mp4,run\n", f": no column 'label' among path, class{COLUMNS}"),
        ("path,label\n", ": no videos in it, only a header"),
        ("path,label\na.mp4,run\nb.mp4,\n", ", line 3: the label is empty"),
        ("path,label\na.mp4\n", ", line 2: the label is empty"),
        ("path,label\n,run\n", ", line 2: the path is empty"),
        (
            "path,label\na,b.mp4,run\n",
            ", line 2: more values than columns; a value with a comma in it needs quotes",
        ),
        (
            "path,label,split\na.mp4,run,trian\n",
            ", line 2: split 'trian' is none of train, val and test, did you mean 'train'?",
        ),
        (
            "path,label\na.mp4,run\n./a.mp4,walk\n",
            ", line 3: {0}/a.mp4 is also at {0}/index.csv, line 2, with another label "
            "(keep one of the lines, or set data.multi_label)",
        ),
        (
            "path,label,split\na.mp4,run,train\na.mp4,run,val\n",
            ", line 3: {0}/a.mp4 is also at {0}/index.csv, line 2, with another split "
            "(keep one of the lines)",
        ),
        (
            "path,label\na.mp4,run\nx1,a\nx2,a\nx3,a\nx4,b\n",
            ": 4 of its 5 videos are missing: {0}/x1, {0}/x2, {0}/x3 and 1 more"
            "; put the missing videos there, or set data.videos to their folder",
        ),
        (
            "path,label\na.mp4,run\nb.mp4,run\n",
            ": training needs at least 2 classes, found only 'run'; add videos of another class",
        ),
        (
            "path,label,split\na.mp4,run,val\nb.mp4,walk,test\n",
            ": no videos to train on, only the splits val, test; add a split train",
        ),
        (
            "path|label\na.mp4|run\n",
            ": the header 'path|label' is one column; "
            "separate the columns by commas, semicolons or tabs",
        ),
    ],
)
def test_a_defect_of_a_manifest_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert message(manifest(tmp_path, text, "a.mp4", "b.mp4")) == expected.format(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\ncaf\xe9.mp4,run\n",
        b'path,label\n"a.mp4,run\nb.mp4,walk\n',
        b"\x00\x00\x00\x18ftypmp42\xff",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    assert message(manifest(tmp_path, text, "a.mp4", "b.mp4")).startswith(
        ": not a CSV manifest in UTF-8: "
    )


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
@pytest.mark.parametrize("header", ["path{0}label{0}note", '"Path"{0} "LABEL"{0}note'])
def test_commas_semicolons_and_tabs_separate_columns(
    tmp_path: Path, delimiter: str, header: str
) -> None:
    lines = [header, '"a; b,\tc.mp4"{0}run{0}x', "d.mp4{0}walk{0}"]
    text = "\n".join(line.format(delimiter) for line in lines)
    dataset = open_dataset(manifest(tmp_path, text, "a; b,\tc.mp4", "d.mp4"), val_share=0)
    assert held(dataset)["train"] == [("a; b,\tc.mp4", "run"), ("d.mp4", "walk")]
    assert dataset.columns[tmp_path / "a; b,\tc.mp4"] == {"note": "x"}


def test_a_word_for_a_split_may_be_training_or_testing(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,x,Training\nb.mp4,x,validation\nc.mp4,x,Testing\n"
    dataset = open_dataset(manifest(tmp_path, text, "a.mp4", "b.mp4", "c.mp4"))
    assert held(dataset) == {
        "train": [("a.mp4", "x")],
        "val": [("b.mp4", "x")],
        "test": [("c.mp4", "x")],
    }


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("path", ["été/plié.mp4", "été/a.mp4", "x/plié", "été/한국/a b.mp4"])
def test_a_name_with_accents_is_found_whatever_form_the_disk_has(
    tmp_path: Path, path: str, listed: Form, stored: Form
) -> None:
    on_disk = unicodedata.normalize(stored, path)
    touch(tmp_path, on_disk if path.endswith(".mp4") else f"{on_disk}/1.jpg", "b.mp4")
    lines = ["path,label", f"{unicodedata.normalize(listed, path)},x", "b.mp4,y"]
    dataset = open_dataset(write(tmp_path / "list.csv", *lines), val_share=0)
    assert [video.path for video in dataset.train] == [tmp_path / on_disk, tmp_path / "b.mp4"]


def test_of_two_files_whose_names_look_alike_the_listed_one_is_meant(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "plié.mp4") for form in ("NFC", "NFD")]
    touch(tmp_path, *names)
    lines = ["path,label", *(f"{name},{label}" for name, label in zip(names, "xy", strict=True))]
    dataset = open_dataset(write(tmp_path / "list.csv", *lines), val_share=0)
    assert [video.path for video in dataset.train] == [tmp_path / name for name in names]


def test_manifests_named_by_split_in_a_folder_are_one_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4", "videos/c.mp4", "videos/d.mp4")
    write(tmp_path / "train.csv", "path,label,subject", "videos/a.mp4,x,1", "videos/b.mp4,y,2")
    write(tmp_path / "val.csv", "path,label", "videos/c.mp4,x")
    assert held(open_dataset(tmp_path)) == {
        "train": [("videos/a.mp4", "x"), ("videos/b.mp4", "y")],
        "val": [("videos/c.mp4", "x")],
    }
    write(tmp_path / "Testing.csv", "path;label", "videos/d.mp4;y")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "manifest"
    assert [video.path.name for video in dataset.for_evaluation("test")] == ["d.mp4"]
    write(tmp_path / "validation.csv", "path,label", "videos/d.mp4,x")
    assert refusal(tmp_path) == "validation.csv: val.csv lists the split val too; keep one of them"


def test_a_list_without_columns_of_a_manifest_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.mp4", "y/b.mp4")
    write(tmp_path / "train.csv", "name,size", "a,1")
    write(tmp_path / "val.csv", "path,label", "x/a.mp4,x")
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe\0path,label")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "folder"
    assert {path.name for path in dataset.ignored} == {"train.csv", "val.csv", "test.csv"}


def test_a_folder_without_classes_names_the_manifest_in_it(tmp_path: Path) -> None:
    write(touch(tmp_path / "data", "a.mp4") / "index.csv", "path,label", "a.mp4,x")
    assert refusal(tmp_path / "data") == (
        "SOURCE: no class folders in it; expected data/class/video, or a CSV manifest: "
        "give index.csv"
    )
    folder = DataConfig(format="manifest")
    assert refusal(tmp_path / "data", folder) == (
        "SOURCE: a folder, not a manifest; name the CSV file"
    )


def test_a_long_list_asks_the_disk_once_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number % 3}/{number}.mp4" for number in range(600)]
    touch(tmp_path, *names)
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label"), *((name, name[:2]) for name in names)])
    write(tmp_path / "all.csv", table.getvalue())
    asked = {"stat": 0, "listdir": 0}
    for name in asked:
        plain = getattr(os, name)

        def counted(
            *arguments: object, plain: object = plain, name: str = name, **options: object
        ) -> object:
            asked[name] += 1
            return plain(*arguments, **options)  # type: ignore[operator]  # a function of os

        monkeypatch.setattr(os, name, counted)
    assert len(open_dataset(tmp_path / "all.csv").for_check) == 600
    assert asked["listdir"] == 3
    assert asked["stat"] < 10
