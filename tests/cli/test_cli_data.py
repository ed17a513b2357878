"""Does every command that takes videos open every format, and say what is missing?"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import av
import pytest

import zeroi2v
from tests.cli_for_tests import said
from tests.videos_for_tests import add_video, picture, sequential
from zeroi2v.data.datasets import open_dataset
from zeroi2v.recipes import read_recipe


def train(data: Path, out: Path, *words: object) -> list[object]:
    settings = [
        "--set",
        "clip.frames=2",
        "--set",
        "workers=0",
        "--set",
        "warmup_epochs=0.5",
        "--epochs",
        "1",
    ]
    return ["train", data, "--out", out, "--json", "--quiet", *settings, *words]


@pytest.fixture(scope="module")
def shards(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The motion videos as one tar file for each split, labels as text."""
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            for number, video in enumerate(sorted(motion_videos.glob(f"{split}/*/*.mp4"))):
                label = folder / "label.tmp"
                label.write_text(video.parent.name)
                tar.add(video, f"{number:05d}.mp4")
                tar.add(label, f"{number:05d}.txt")
                label.unlink()
    return folder


def test_shards_are_trained_on_evaluated_merged_and_checked_as_the_folder_is(
    motion_videos: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *train(shards, tmp_path / "run"))
    assert (status, err) == (0, "")
    assert json.loads(out)["epochs"] == 1
    assert zeroi2v.load(tmp_path / "run").labels == tuple(
        sorted(path.name for path in (motion_videos / "val").iterdir())
    )
    model = ["--model", tmp_path / "run", "--json"]
    by_tar, by_folder = (
        json.loads(said(capsys, "eval", data, *model, "--set", f"data.format={name}")[1])
        for data, name in ((shards, "webdataset"), (motion_videos, "folder"))
    )
    assert by_tar == by_folder
    assert by_tar["videos"] == 16
    status, out, _ = said(
        capsys, "merge", tmp_path / "run", "--out", tmp_path / "merged", "--data", shards, "--json"
    )
    assert (status, json.loads(out)["clips"]) == (0, 16)
    first = sorted(motion_videos.glob("val/*/*.mp4"))[0]
    named = open_dataset(shards).val[0].path
    in_tar, alone = json.loads(said(capsys, "predict", named, first, *model)[1])
    assert in_tar["video"] == f"{named}"
    assert in_tar["predictions"] == alone["predictions"]
    status, out, _ = said(capsys, "data", "check", shards, "--json")
    assert (status, json.loads(out)) == (
        0,
        {"videos": 64, "frames": 64 * 17, "broken": [], "ignored": []},
    )


@pytest.mark.parametrize(
    "words",
    [
        ["train", "DATA"],
        ["eval", "DATA", "--model", "RUN"],
        ["data", "check", "DATA"],
    ],
)
def test_a_wrong_format_is_one_line_with_the_nearest(
    words: list[str], motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2).save_pretrained(
        tmp_path / "model"
    )
    places = {"DATA": motion_videos, "RUN": tmp_path / "model"}
    given = [places.get(word, word) for word in words]
    status, out, err = said(capsys, *given, "--set", "data.format=webdatset")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: format 'webdatset' is none of auto, ")
    assert "did you mean 'webdataset'?" in err
    if words[0] != "train":
        status, _, err = said(capsys, *given, "--set", "epochs=3")
        assert (status, err) == (
            1,
            "error: --set epochs=3: this command takes only settings of [data], "
            "such as data.split\n",
        )


def test_missing_videos_stop_a_training_or_are_left_out_and_listed(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{path},{path.parent.name},train"
        for path in sorted(motion_videos.glob("train/*/*.mp4"))[:20]
    ]
    gone = [tmp_path / f"gone{number}.mp4" for number in range(4)]
    rows += [f"{path},left,{'val' if number else 'train'}" for number, path in enumerate(gone)]
    rows += [
        f"{path},{path.parent.name},val" for path in sorted(motion_videos.glob("val/*/*.mp4"))[:2]
    ]
    source = tmp_path / "list.csv"
    source.write_text("\n".join(["path,label,split", *rows]))
    status, _, err = said(capsys, *train(source, tmp_path / "run"))
    first = ", ".join(map(str, gone[:3]))
    assert (status, err) == (
        1,
        f"error: {source}: 4 of its 26 videos are missing: {first} and 1 more"
        "; put the missing videos there, or set data.videos to their folder\n",
    )
    assert not (tmp_path / "run").exists()
    status, out, err = said(capsys, *train(source, tmp_path / "run", "--broken", "skip"))
    assert status == 0
    assert json.loads(out)["broken"] == [
        {"video": str(path), "error": "no such file"} for path in gone
    ]
    assert err.startswith(f"warning: {source}: missing, left out: 4 videos: {first} and 1 more\n")
    status, out, _ = said(capsys, "eval", source, "--model", tmp_path / "run", "--json")
    assert status == 1
    assert [one["video"] for one in json.loads(out)["skipped"]] == [str(path) for path in gone[1:]]
    status, out, _ = said(capsys, "data", "check", source, "--json")
    assert [one["video"] for one in json.loads(out)["broken"]] == [str(path) for path in gone]


def test_training_on_something_something_flips_its_labels_and_writes_that_down(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"Doing {number}" for number in range(174)]
    names[86], names[87] = "Pulling from left to right", "Pulling from right to left"
    data = tmp_path / "ssv2"
    data.mkdir()
    (data / "labels.json").write_text(
        json.dumps({name: str(number) for number, name in enumerate(names)})
    )
    videos = sorted(motion_videos.glob("train/*/*.mp4"))[:3]
    for number, video in enumerate(videos):
        shutil.copy(video, data / f"{number}.mp4")
    items = [{"id": str(number), "template": names[86 + number]} for number in range(3)]
    (data / "train.json").write_text(json.dumps(items[:2]))
    (data / "validation.json").write_text(json.dumps(items[2:]))
    assert said(capsys, *train(data, tmp_path / "run"))[0] == 0
    pairs = read_recipe(tmp_path / "run" / "recipe.toml").pixels.flip_pairs
    assert pairs == (
        ("Pulling from left to right", "Pulling from right to left"),
        ("Doing 93", "Doing 94"),
        ("Doing 166", "Doing 167"),
    )
    mine = ["--set", 'pixels.flip_pairs=[["Doing 0", "Doing 1"]]']
    assert said(capsys, *train(data, tmp_path / "mine", *mine))[0] == 0
    assert read_recipe(tmp_path / "mine" / "recipe.toml").pixels.flip_pairs == (
        ("Doing 0", "Doing 1"),
    )


@pytest.mark.parametrize("damage", ["zeroed", "cut off"])
def test_a_check_counts_the_frames_that_cannot_be_decoded(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index at the start of the file announces 60 frames, each a packet of its own."""
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
        with av.open(str(tmp_path / label / "x.mp4"), "w", options={"movflags": "faststart"}) as x:
            stream = add_video(x, "mpeg4")
            for number in range(60):
                x.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 96, 64))))
            x.mux(stream.encode(None))
    path = tmp_path / "left" / "x.mp4"
    data, half = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(data[:half] + (bytes(1000) + data[half + 1000 :] if damage[0] == "z" else b""))
    decoded = sum(1 for _ in sequential(path))
    assert 0 < decoded < 60
    status, out, err = said(capsys, "data", "check", tmp_path, "--workers", "0", "--json")
    answer = json.loads(out)
    assert (status, answer["frames"], answer["broken"]) == (0, 60 + decoded, [])
    assert err == (
        f"warning: {path}: {60 - decoded} of 60 frames cannot be decoded and are passed over\n"
    )
