"""What a command writes never becomes a class of the data set, or mixes with another command's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import zeroi2v
from tests.cli_for_tests import said
from zeroi2v.data.datasets import open_dataset
from zeroi2v.files import claimed

QUICK = ["--set", "clip.frames=2", "--set", "workers=0", "--set", "warmup_epochs=0.5", "--quiet"]


@pytest.fixture
def data(motion_videos: Path, tmp_path: Path) -> Path:
    """Two classes with three videos each."""
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for video in sorted(motion_videos.glob(f"train/{name}/*.mp4"))[:3]:
            (tmp_path / "data" / name / video.name).symlink_to(video)
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2, pretrained=True)
    model.with_labels(["left", "right"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "."],
        ["train", ".", "--out", "left/run"],
        ["train", "../data", "--out", "./deep/er/run"],
        ["train", "../link", "--out", "run"],
        ["train", ".", "--out", "../link/run"],
        ["train", ".", "--out", "."],
        ["train", "left/..", "--out", "left/../run"],
        ["compare", "."],
        ["compare", "../link", "--out", "right"],
        ["merge", "../model", "--data", ".", "--out", "merged"],
        ["data", "reencode", ".", "--out", "copy"],
        ["data", "reencode", "../link", "--out", "copy"],
        ["data", "reencode", "../list.csv", "--set", "data.videos=.", "--out", "copy"],
        ["show", "left", "--model", "../model", "--out", "left"],
        ["show", "left", "--model", "../model", "--out", "left/drawn"],
    ],
    ids=" ".join,
)
def test_a_folder_inside_the_data_set_is_refused_in_one_line(
    words: Sequence[str],
    data: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "list.csv").write_text("path,label\ndata/left/x.mp4,left\n")
    monkeypatch.chdir(data)
    before = sorted(data.rglob("*"))
    status, out, err = said(capsys, *words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "; choose a folder outside of it" in err
    assert sorted(data.rglob("*")) == before


def test_a_folder_beside_the_data_set_is_none_of_its_classes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose path begins like that of the data set."""
    monkeypatch.chdir(data)
    words = ["train", ".", "--out", "../data-run", "--epochs", "1", *QUICK]
    assert said(capsys, *words)[0] == 0
    assert open_dataset(data).classes == ("left", "right")
    words = ["train", ".", "--out", "../data-run", "--resume", "--quiet"]
    assert said(capsys, *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "user"),
    [
        (["quickstart"], "another quickstart"),
        (["train", "DATA", *QUICK], "another training"),
        (["compare", "DATA", "--seeds", "0"], "another comparison"),
        (["data", "reencode", "DATA", "--workers", "0"], "another copying"),
        (["show", "VIDEO", "--model", "MODEL"], "another show"),
        (["bench", "plain", "--max-batch", "1", "--quiet"], "another bench"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_folder_that_another_command_is_writing_is_refused(
    words: Sequence[str],
    user: str,
    data: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = next((data / "left").iterdir())
    places = {"DATA": data, "MODEL": model, "VIDEO": video}
    given = [places.get(word, word) for word in words]
    with claimed(tmp_path / "out", user):
        status, out, err = said(capsys, *given, "--out", tmp_path / "out")
        assert not [*(tmp_path / "out").iterdir()]
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'out'}: {user} is running there")


@pytest.mark.parametrize(
    "words",
    [
        ["quickstart"],
        ["train", "DATA", *QUICK],
        ["compare", "DATA", "--seeds", "0"],
        ["data", "reencode", "DATA", "--workers", "0"],
        ["show", "VIDEO", "--model", "MODEL"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_the_place_of_the_folder_or_above_it_is_named(
    words: Sequence[str],
    data: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = model / "config.json"
    before = file.read_bytes()
    places = {"DATA": data, "MODEL": model, "VIDEO": next((data / "left").iterdir())}
    given = [places.get(word, word) for word in words]
    for out, what in ((file, "a file"), (file / "deep" / "run", f"{file} is a file")):
        status, _, err = said(capsys, *given, "--out", out)
        message = f"error: {out}: {what}, not a folder; choose another --out"
        assert (status, err.splitlines()[-1]) == (1, message)
    assert file.read_bytes() == before


@pytest.mark.parametrize("place", ["missing", "model", "model/config.json", "data"])
def test_a_folder_without_a_run_cannot_be_resumed(
    place: str, data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capsys, "train", data, "--resume", "--out", tmp_path / place)
    assert (status, err) == (
        1,
        f"error: {tmp_path / place}: holds no run, because there is no recipe.toml in it; give the "
        "folder that `zeroi2v train` wrote, or begin a run there without --resume\n",
    )
    assert not (tmp_path / "missing").exists()


def test_a_merge_into_a_folder_that_is_there_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "out", "another merge"):
        status, _, err = said(capsys, "merge", model, "--out", tmp_path / "out")
    assert (status, "already there" in err) == (1, True)
    assert not (tmp_path / "out").exists()
