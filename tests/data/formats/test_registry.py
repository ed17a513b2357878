"""Is every source read in its own format, and no folder per class in the format of a list?"""

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.sources_for_tests import kinetics, refusal, touch, ucf101, write
from zeroi2v.config import DataConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.formats.registry import FORMATS
from zeroi2v.errors import ConfigError


def test_a_wrong_name_gives_the_nearest_and_a_right_one_is_obeyed(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/run/x2_123456_123466.mp4", "train/walk/b.mp4", "val/run/v.mp4")
    with pytest.raises(
        ConfigError,
        match=r"format 'kinetic' is none of auto, kinetics, .*, did you mean 'kinetics'\?",
    ):
        open_dataset(tmp_path, DataConfig(format="kinetic"))
    assert open_dataset(tmp_path, DataConfig(format="folder")).classes == ("run", "walk")
    for name in FORMATS.keys() - {"kinetics", "folder", "manifest", "webdataset"}:
        assert refusal(tmp_path, DataConfig(format=name)).startswith("SOURCE: no ")
    assert (
        refusal(tmp_path, DataConfig(format="webdataset"))
        == "SOURCE: no videos in it that can be read as webdataset"
    )
    assert (
        refusal(tmp_path, DataConfig(format="manifest"))
        == "SOURCE: a folder, not a manifest; name the CSV file"
    )


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("folder", "classes"),
        ("folder", "videos"),
        ("manifest", "classes"),
        ("kinetics", "classes"),
        ("webdataset", "videos"),
    ],
)
def test_a_path_that_the_format_does_not_read_is_refused(
    tmp_path: Path, kind: str, setting: str
) -> None:
    source, other = tmp_path / "data", tmp_path / "other"
    touch(source, *(CLASS_FOLDERS if kind != "webdataset" else ("train-0.tar",)))
    write(source / "list.csv", "path,label", "run/a.mp4,run", "walk/c.mp4,walk")
    other.mkdir()
    write(other / "config.json", "{}")
    path = source / "list.csv" if kind == "manifest" else source
    value = str(other / "config.json" if setting == "classes" else other)
    formats = {"kinetics": "kinetics", "webdataset": "webdataset"}  # "auto" finds the others
    config = DataConfig(format=formats.get(kind, "auto"), **{setting: value})  # type: ignore[arg-type]  # both are text
    with pytest.raises(ConfigError) as caught:
        open_dataset(path, config)
    assert str(caught.value) == (
        f"data.{setting} has no meaning for {path}, which is read as {kind} (data.format); "
        "leave the setting out, or name another data.format"
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.MKV", "recording", "a.unknown", "a.ts"])
def test_a_video_in_the_place_of_a_data_set_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)))
    assert refusal(tmp_path / name) == (
        "SOURCE: a video; DATA is a folder or a list of videos, such as a CSV file"
    )


def test_an_image_in_the_place_of_a_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert refusal(tmp_path / "a.png") == (
        "SOURCE: an image; DATA is a folder or a list of videos, such as a CSV file"
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "a.csv", "table"])
def test_the_bytes_of_a_binary_file_are_not_shown(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x\xff\0\0" * 100)
    assert refusal(tmp_path / name) == "SOURCE: not a CSV manifest in UTF-8: line 1 is no text"


def test_what_only_resembles_a_list_does_not_hide_a_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "old.tar")
    write(tmp_path / "train_notes.txt", "recorded in 2024")
    write(tmp_path / "notes.csv", "name,size", "a,3")
    assert open_dataset(tmp_path).format == "folder"


def test_frames_are_not_listed_to_find_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(
        ucf101(tmp_path),
        *(
            f"rawframes/{name}/img_00001.jpg"
            for name in ("YoYo/v_YoYo_g08_c01", "Archery/v_Archery_g08_c01")
        ),
    )
    touch(tmp_path, "rawframes/HandstandPushups/v_HandStandPushups_g01_c01/img_00001.jpg")
    listed = []
    plain = os.scandir

    def noted(folder: str) -> object:
        listed.append(os.path.basename(folder))
        return plain(folder)

    monkeypatch.setattr(os, "scandir", noted)
    open_dataset(tmp_path)
    assert not [name for name in listed if name.startswith("v_")]


CLASS_FOLDERS = ("run/a.mp4", "run/b.mp4", "walk/c.mp4")
OWN_LISTS: dict[str, dict[str, str]] = {
    "labels by number": {"labels.json": '{"run": 0, "walk": 1}'},
    "a list of labels": {"labels.json": '["run", "walk"]'},
    "own files with the names of ssv2": {
        "labels.json": '{"run": "0", "walk": "1"}',
        "train.json": '[{"video": "a.mp4", "label": "run"}]',
        "validation.json": "[]",
    },
    "labels of each video": {
        "labels.json": '{"a.mp4": "run"}',
        "train.json": '[{"id": "a", "template": "run"}]',
    },
    "files that are no JSON": {"labels.json": "run, walk", "train.json": "a.mp4"},
    "a list with the name of HMDB51's": {"X_test_split1.txt": "run/a.mp4\nwalk/c.mp4\n"},
    "a list with lines as HMDB51's": {"X_test_split1.txt": "a.mp4 1\nb.mp4 2\n"},
    "a list of one class": {"run_test_split1.txt": "a.mp4 1\nb.mp4 2\n"},
    "lists with the names of UCF101's": {
        "classInd.txt": "1 run\n2 walk\n",
        "trainlist01.txt": "a.mp4\nb.mp4\n",
    },
    "a vocabulary": {"Diving48_vocab.json": '["run", "walk"]'},
    "how many videos a class has": {"train_counts.txt": "run 2\nwalk 1\n", "test.txt": "run 0\n"},
    "numbers of classes": {"train_classes.txt": "run 0\nwalk 1\n"},
    "a table": {"train.csv": "name,size\na,1\n", "val.csv": "name,size\nb,1\n"},
    "one manifest of a split": {"train.csv": "path,label\nrun/a.mp4,run\n"},
    "an archive": {"old.tar": "", "train.tar": ""},
}


@pytest.mark.parametrize("lists", OWN_LISTS)
@pytest.mark.parametrize("parent", ["", "annotations/", "labels/"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_own_lists_do_not_hide_a_folder_per_class(
    tmp_path: Path, lists: str, parent: str, split: str
) -> None:
    touch(tmp_path, *(f"{split}{name}" for name in CLASS_FOLDERS))
    for name, text in OWN_LISTS[lists].items():
        write(tmp_path / parent / name, text)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.classes) == ("folder", ("run", "walk"))
    assert len(dataset.for_check) == 3


LISTS_OF_OTHER_VIDEOS = {
    "kinetics": {"all.csv": "label,youtube_id,time_start,time_end\nrun,x,0,10\n"},
    "hmdb51": dict.fromkeys(("run_test_split1.txt", "walk_test_split1.txt"), "x.avi 1\ny.avi 2\n"),
    "ucf101": {
        "classInd.txt": "1 run\n2 walk\n",
        "trainlist01.txt": "run/x.avi 1\n",
        "testlist01.txt": "walk/y.avi\n",
    },
    "manifest": {"train.csv": "path,label\nrun/x,run\n", "val.csv": "path,label\nwalk/y,walk\n"},
}


@pytest.mark.parametrize("name", LISTS_OF_OTHER_VIDEOS)
def test_lists_of_videos_that_are_not_there_beside_class_folders_leave_the_choice(
    tmp_path: Path, name: str
) -> None:
    touch(tmp_path, *CLASS_FOLDERS)
    for file, text in LISTS_OF_OTHER_VIDEOS[name].items():
        write(tmp_path / file, text, end="")
    message = refusal(tmp_path)
    assert f"its lists ({name}) name " in message
    assert message.endswith("; if the class folders are the data set, add --set data.format=folder")
    assert open_dataset(tmp_path, DataConfig(format="folder")).classes == ("run", "walk")


def test_a_run_in_a_folder_of_tar_files_hides_them_not(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in {"a.mp4": b"video", "a.cls": b"0"}.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    touch(tmp_path, "run-1/recipe.toml", "run-1/log.jsonl", "lost+found/x", "@eaDir/y.jpg")
    assert open_dataset(tmp_path).format == "webdataset"
