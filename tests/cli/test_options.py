"""Options that commands share: workers, splits, precision, and commands to copy from the output."""

from __future__ import annotations

import json
import multiprocessing.process
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

import zeroi2v
from tests.cli_for_tests import said
from zeroi2v.cli.main import build_parser
from zeroi2v.config import Recipe
from zeroi2v.engine import run as training
from zeroi2v.recipes import data_settings, override

ODD_NAMES = ["my run", "it's", "a$b", "-dash", 'say "x"', "semi;colon", "1"]


@pytest.fixture(scope="module")
def model(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=8, frames=2, pretrained=True)
    labels = sorted(path.name for path in (motion_videos / "val").iterdir())
    model.with_labels(labels).save_pretrained(folder)
    return folder


@pytest.fixture
def splits(motion_videos: Path, tmp_path: Path) -> Path:
    """A manifest of 3 videos to train on, 2 to validate on and 1 to test on."""
    left, right = (sorted(motion_videos.glob(f"train/{name}/*.mp4")) for name in ("left", "right"))
    named = {"train": [*left[:2], right[0]], "val": [left[2], right[1]], "test": [right[2]]}
    rows = [
        f"{video},{video.parent.name},{split}"
        for split, videos in named.items()
        for video in videos
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return tmp_path / "list.csv"


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "DATA", "--model", "MODEL"],
        ["predict", "VIDEO", "VIDEO", "--model", "MODEL"],
        ["merge", "MODEL", "--data", "DATA", "--out", "OUT"],
        ["data", "check", "DATA"],
        ["data", "reencode", "DATA", "--out", "OUT", "--short-side", "16"],
        ["data", "synthetic", "OUT", "--train", "16", "--val", "16"],
    ],
    ids=" ".join,
)
def test_a_command_with_no_workers_starts_no_process(
    words: Sequence[str],
    splits: Path,
    model: Path,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(self: multiprocessing.process.BaseProcess) -> None:
        raise AssertionError(f"{self} was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    video = next(motion_videos.glob("val/left/*.mp4"))
    places = {"DATA": splits, "MODEL": model, "VIDEO": video, "OUT": tmp_path / "out"}
    given = [places.get(word, word) for word in words]
    assert said(capsys, *given, "--workers", "0", "--quiet")[0] == 0
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["eval", "DATA", "--model", "M", "--workers", "-1"],
            "must be a whole number of at least 0, got '-1'",
        ),
        (["data", "check", "DATA", "--workers", "some"], "some"),
        (["train", ""], "DATA: must not be empty"),
        (["train", "DATA", "--out", ""], "--out: must not be empty"),
        (["eval", "DATA", "--model", ""], "--model: must not be empty"),
        (["merge", "", "--out", "x"], "RUN: must not be empty"),
        (["eval", "DATA", "--model", "M", "--split", "vall"], "vall"),
        (["predict", "a.mp4", "--model", "M", "--dtype", "int8"], "int8"),
    ],
    ids=str,
)
def test_a_value_that_no_option_takes_is_wrong_usage(
    words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_eval_takes_the_split_that_it_is_told(
    splits: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", splits, "--model", model, "--workers", "0", "--json"]
    expected = {"train": 3, "val": 2, "test": 1, "all": 6}
    for split, videos in expected.items():
        status, out, err = said(capsys, *words, "--split", split)
        answer = json.loads(out)
        assert (status, err, answer["split"], answer["videos"]) == (0, "", split, videos)
    status, out, _ = said(capsys, *words)
    assert (json.loads(out)["split"], json.loads(out)["videos"]) == ("val", 2)


def test_eval_names_the_splits_that_there_are(
    splits: Path, model: Path, motion_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--model", model, "--workers", "0", "--split"]
    status, out, err = said(capsys, *words, "test", motion_videos)
    assert (status, out) == (1, "")
    assert err == f"error: {motion_videos}: no split 'test', only train, val\n"
    rows = splits.read_text().splitlines()
    splits.write_text("\n".join(row.rpartition(",")[0] for row in rows))
    status, out, err = said(capsys, *words, "val", splits)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {splits}: no split 'val', only train")
    status, out, err = said(capsys, *words, "train", splits, "--json")
    assert (status, err, json.loads(out)["videos"]) == (0, "", 6)


def test_predict_says_each_video_as_soon_as_it_is_done(
    model: Path, motion_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted(motion_videos.glob("val/*/*.mp4"))[:3]
    words = ["predict", *videos, "--model", model, "--json", "--dtype", "bf16"]
    status, out, err = said(capsys, *words)
    answers = json.loads(out)
    assert (status, len(answers)) == (0, 3)
    for number, (line, answer) in enumerate(zip(err.splitlines(), answers, strict=True), start=1):
        assert line.startswith(f"{number} of 3: {answer['video']}: ")
        assert line.endswith(answer["predictions"][0]["label"])
    assert said(capsys, *words, "--quiet")[1:] == (out, "")


def test_half_precision_is_predicted_and_printed(
    model: Path, motion_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next(motion_videos.glob("val/left/*.mp4"))
    scores = {}
    for dtype in ("fp32", "bf16", "fp16"):
        words = ["predict", video, "--model", model, "--dtype", dtype, "--json", "--quiet"]
        (answer,) = json.loads(said(capsys, *words)[1])
        scores[dtype] = [one["score"] for one in answer["predictions"]]
    assert scores["bf16"] == pytest.approx(scores["fp32"], abs=0.05)
    assert scores["fp16"] == pytest.approx(scores["fp32"], abs=0.05)
    assert scores["bf16"] != scores["fp32"]


def parsed(command: str) -> list[str]:
    """The words of a printed command as a shell splits them; the parser must take them."""
    program, *words = shlex.split(command)
    assert program == "zeroi2v"
    build_parser().parse_args(words)
    return words


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_next_command_of_train_can_be_copied(
    name: str,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def trained(*_: object, **__: object) -> training.Run:
        return training.Run(Path(name), 1, 0.5, {}, 1, (), needs_tower=True)

    monkeypatch.setattr(training, "train", trained)
    status, out, _ = said(capsys, "train", motion_videos, f"--out={tmp_path / name}")
    _, tower, following = out.splitlines()
    assert status == 0
    assert tower.startswith("Wherever the run is loaded, its tower zeroi2v_tiny is needed again.")
    folder = f"./{name}" if name.startswith("-") else name
    assert parsed(tower.partition(": ")[2]) == ["merge", folder, "--out", "FOLDER"]
    assert parsed(following.removeprefix("Next: ")) == ["predict", "VIDEO", "--model", folder]


def test_a_run_that_holds_its_tower_does_not_ask_for_it(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["strategy=full", "clip.frames=2", "workers=0", "warmup_epochs=0.5", "epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    status, out, _ = said(capsys, "train", motion_videos, "--out", tmp_path / "run", *words)
    assert status == 0
    assert "needs its tower" not in out


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_next_commands_of_data_can_be_copied(
    name: str,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = f"./{name}" if name.startswith("-") else name
    for number, label in enumerate(("left", "right")):
        (tmp_path / name / label).mkdir(parents=True)
        video = sorted(motion_videos.glob(f"val/{label}/*.mp4"))[number]
        (tmp_path / name / label / video.name).symlink_to(video)
    (tmp_path / name / "left" / "broken.mp4").write_bytes(b"nothing")
    words = ["data", "check", folder, "--set", "data.format=folder", "--workers", "0"]
    status, out, _ = said(capsys, *words, f"--out={name}.txt")
    assert status == 1
    command, data, *options = parsed(out.splitlines()[-1].removeprefix("Next: "))
    assert (command, data, options[::2]) == ("train", folder, ["--set", "--set"])
    assert options[1] == "data.format=folder"
    assert override(Recipe(), [options[3]]).train.exclude == f"{name}.txt"
    words = ["data", "reencode", folder, "--workers", "0", "--short-side", "16"]
    status, out, _ = said(capsys, *words, f"--out={name}-copy")
    assert status == 1
    copy = f"{folder}-copy/manifest.csv"
    assert parsed(out.partition("next: ")[2]) == ["train", copy]


def test_the_next_command_of_a_copy_with_several_labels_says_so(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted(motion_videos.glob("val/*/*.mp4"))[:2]
    rows = [f"{videos[0]},a|b,train", f"{videos[1]},b,val"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    words = ["data", "reencode", tmp_path / "list.csv", "--set", "data.multi_label=true"]
    status, out, _ = said(capsys, *words, "--workers", "0", "--out", tmp_path / "copy")
    assert status == 0
    *_, option, setting = parsed(out.partition("next: ")[2])
    assert option == "--set"
    assert data_settings([setting]).multi_label


def test_a_path_that_begins_with_a_dash_is_told_how_to_be_written(
    motion_videos: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    video = next(motion_videos.glob("val/*/*.mp4"))
    Path("-dash.mp4").write_bytes(video.read_bytes())
    for words in (["-dash.mp4", "--model", model], ["--model", model, "-dash.mp4"]):
        status, _, error = said(capsys, "predict", *words)
        assert status == 2
        assert error.startswith("error: -dash.mp4: a path must not begin with -; write ./-dash.mp4")
    for path in (["./-dash.mp4"], ["--", "-dash.mp4"]):
        assert said(capsys, "predict", "--model", model, *path)[0] == 0


@pytest.mark.parametrize("odd", ["\n", "\r", "\x1b[2J", "\u2028", "\t"], ids=ascii)
def test_the_name_of_a_file_never_breaks_a_line(
    motion_videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: str
) -> None:
    good, broken = (tmp_path / f"{name}{odd}name é.mp4" for name in ("good", "broken"))
    good.write_bytes(next(motion_videos.glob("val/*/*.mp4")).read_bytes())
    broken.write_bytes(b"no video")
    words = ["predict", good, broken, "--model", model, "--top-k", 1, "--quiet"]
    status, out, error = said(capsys, *words)
    escaped = ascii(odd)[1:-1]
    assert status == 1
    assert out.splitlines()[0] == f"{tmp_path}/good{escaped}name é.mp4"
    [line] = error.splitlines()
    assert line.startswith(f"error: {tmp_path}/broken{escaped}name é.mp4: ")
