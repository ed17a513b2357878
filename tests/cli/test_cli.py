"""Results go to standard output, a mistake takes one line, and the exit status tells which."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zeroi2v
from tests.cli_for_tests import said
from tests.towers_for_tests import respec
from zeroi2v import VideoClassifier
from zeroi2v.cli.main import build_parser, main
from zeroi2v.config import ClipConfig, Recipe, ViewsConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.engine import run as training
from zeroi2v.engine.processes import Processes
from zeroi2v.errors import VideoError
from zeroi2v.inference import evaluate as evaluation
from zeroi2v.log import Log
from zeroi2v.recipes import read_recipe

COMMANDS = [
    "quickstart",
    "train",
    "eval",
    "predict",
    "merge",
    "towers",
    "bench",
    "compare",
    "data synthetic",
    "data check",
    "data reencode",
]


@pytest.fixture(scope="module")
def run(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    words = [
        "train",
        str(motion_videos),
        "--out",
        str(out),
        "--epochs",
        "1",
        "--quiet",
        "--set",
        "clip.frames=4",
        "--set",
        "workers=0",
    ]
    assert main(words) == 0
    return out


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert all(name.split()[0] in out for name in COMMANDS)
    for name in COMMANDS:
        status, out, _ = said(capsys, *name.split(), "--help")
        assert status == 0
        parser = build_parser()
        for word in name.split():
            parser = parser.commands[word]
        for action in parser._actions:
            assert action.help, f"{name} {action.dest} has no help"
            assert action.help.split()[0] in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "x"], "unknown command 'trian', did you mean 'train'"),
        (["train", "x", "--epoch", "3"], "unknown argument '--epoch', did you mean '--epochs'"),
        (["data", "chekc", "x"], "did you mean 'check'"),
        (["train"], "DATA"),
        (["predict", "a.mp4"], "--model"),
        (["train", "x", "--epochs", "three"], "three"),
        ([], "a command is missing"),
        (["data"], "a command is missing"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "VIDEOS", "--set", "epoch=3"], "did you mean 'epochs'"),
        (
            ["train", "VIDEOS", "--set", "train.epochs=many"],
            "train.epochs must be a whole number, got 'many'",
        ),
        (["train", "VIDEOS", "--set", "epochs"], "expected key=value"),
        (["train", "VIDEOS", "--set", "strategy=zeroi2w"], "did you mean 'zeroi2v'"),
        (
            ["train", "VIDEOS", "--tower", "vit_base_patch16_223"],
            "did you mean 'vit_base_patch16_224'",
        ),
        (["train", "VIDEOS", "--set", 'flip_pairs=[["left", "rigth"]]'], "did you mean 'right'"),
        (["train", "VIDEOS", "--recipe", "missing.toml"], "missing.toml: cannot read the recipe"),
        (["train", "missing"], "missing"),
        (["eval", "missing", "--model", "RUN"], "missing"),
        (["eval", "VIDEOS", "--model", "missing/run/folder"], "missing/run/folder: no such folder"),
        (["merge", "RUN", "--out", "RUN"], "already there"),
        (["data", "synthetic", "VIDEOS"], "already there"),
        (["data", "check", "missing"], "missing"),
        (
            ["data", "check", "VIDEOS", "--out", "broken.json"],
            "broken.json: a list of videos is a .txt or .csv file",
        ),
        (["data", "reencode", "VIDEOS", "--out", "VIDEOS"], "lies in the data set"),
        (
            ["data", "reencode", "VIDEOS", "--out", "copy", "--crf", "60"],
            "crf must be 0 to 51, got 60",
        ),
        (["train", "VIDEOS", "--set", "train.exclude=missing.txt"], "missing.txt: cannot be read"),
        (["train", "VIDEOS", "--set", "weights=missing.pt"], "error: weights: missing.pt: no such"),
        (
            ["train", "VIDEOS", "--set", "start_from=a/b/c"],
            "error: train.start_from: a/b/c: no such",
        ),
        (["train", "VIDEOS", "--set", "clip.decoder=torchcodek"], "did you mean 'torchcodec'"),
    ],
)
def test_wrong_input_is_one_line_and_status_1(
    words: list[str],
    message: str,
    run: Path,
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"VIDEOS": str(motion_videos), "RUN": str(run)}
    words = [places.get(word, word) for word in words]
    if words[0] == "train":
        words += ["--out", str(tmp_path / "run")]
    status, out, err = said(capsys, *words)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_recipe_is_read_and_its_mistakes_are_named(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[train]\nepochs = 1\nlearning_rat = 0.1\n")
    status, _, err = said(
        capsys, "train", str(motion_videos), "--recipe", str(recipe), "--out", str(tmp_path / "run")
    )
    assert status == 1
    assert "mine.toml: unknown setting 'train.learning_rat', did you mean 'learning_rate'" in err
    recipe.write_text("[train]\nepochs = 3\nworkers = 0\n[clip]\nframes = 2\n")
    words = [
        "--recipe",
        str(recipe),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
        "--json",
        "--quiet",
    ]
    status, out, _ = said(capsys, "train", str(motion_videos), *words)
    assert status == 0
    assert json.loads(out)["epochs"] == 1
    assert zeroi2v.load(tmp_path / "run").frames == 2


def test_eval_counts_and_lists_what_it_skips(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, "eval", str(motion_videos), "--model", str(run), "--json")
    found = json.loads(out)
    assert (status, found["videos"], found["skipped"]) == (0, 16, [])
    assert 0 <= found["top1"] <= found["top5"] <= 1
    video = next(motion_videos.glob("val/left/*.mp4"))
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text(f"path,label\n{video},left\nbad.mp4,right\n")
    status, out, err = said(
        capsys, "eval", str(tmp_path / "list.csv"), "--model", str(run), "--json"
    )
    found = json.loads(out)
    assert (status, found["videos"]) == (1, 1)
    assert found["skipped"][0]["video"] == str(tmp_path / "bad.mp4")
    assert "bad.mp4" in err
    (tmp_path / "list.csv").write_text(f"path,label\n{video},lefft\n")
    status, _, err = said(capsys, "eval", str(tmp_path / "list.csv"), "--model", str(run))
    assert status == 1
    assert "did you mean 'left'" in err


def test_a_flag_of_train_is_the_setting_of_its_name(
    run: Path, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Recipe, Path, bool]] = []

    def noting(
        recipe: Recipe,
        dataset: VideoDataset,
        out: Path,
        *,
        resume: bool,
        processes: Processes,
        log: Log,
    ) -> training.Run:
        assert processes.size == 1
        assert dataset.source == motion_videos
        given.append((recipe, out, resume))
        return training.Run(out, 1, None, {}, 1, ())

    monkeypatch.setattr(training, "train", noting)
    flags: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
        ("--tower", "vit_tiny_patch16_224"): ("model", {"tower": "vit_tiny_patch16_224"}),
        ("--epochs", "7"): ("train", {"epochs": 7}),
        ("--seed", "5"): ("train", {"seed": 5}),
        ("--broken", "skip"): ("train", {"broken": "skip"}),
        ("--set", "label_smoothing=0.1"): ("train", {"label_smoothing": 0.1}),
        ("--set", "views.crops=3"): ("views", {"crops": 3}),
        ("--workers", "0"): ("train", {"workers": 0}),
        ("--tower", 'no "such\x7f'): ("model", {"tower": 'no "such\x7f'}),
    }
    for words, (table, settings) in flags.items():
        assert (
            main(["train", str(motion_videos), *words, "--out", str(tmp_path / "run"), "--quiet"])
            == 0
        )
        expected = dataclasses.replace(
            Recipe(), **{table: dataclasses.replace(getattr(Recipe(), table), **settings)}
        )
        assert given[-1] == (expected, tmp_path / "run", False)

    assert main(["train", str(motion_videos), "--start-from", str(run), "--quiet"]) == 0
    earlier = read_recipe(run / "recipe.toml")
    started = dataclasses.replace(
        Recipe(), model=earlier.model, clip=earlier.clip, views=earlier.views
    )
    from_run = dataclasses.replace(Recipe().train, start_from=str(run))
    assert given[-1] == (dataclasses.replace(started, train=from_run), Path("run"), False)

    assert main(["train", str(motion_videos), "--resume", "--out", str(run), "--quiet"]) == 0
    assert given[-1] == (earlier, run, True)
    resumed = ["train", str(motion_videos), "--resume", "--out", str(run), "--quiet"]
    assert main([*resumed, "--seed", "5"]) == 1
    assert len(given) == 10
    assert main([*resumed, "--workers", "3"]) == 0
    with_workers = dataclasses.replace(earlier.train, workers=3)
    assert given[-1] == (dataclasses.replace(earlier, train=with_workers), run, True)


def test_eval_takes_the_views_frames_and_size_that_it_is_told(
    run: Path, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[VideoClassifier, ViewsConfig, evaluation.Evaluation]] = []
    evaluate = evaluation.evaluate

    def noting(
        model: VideoClassifier, *arguments: Any, views: ViewsConfig, **options: Any
    ) -> evaluation.Evaluation:
        result = evaluate(model, *arguments, **{**options, "views": views, "workers": 0})
        found.append((model, views, result))
        return result

    monkeypatch.setattr(evaluation, "evaluate", noting)
    (tmp_path / "list.csv").write_text(
        f"path,label\n{next(motion_videos.glob('val/left/*.mp4'))},left\n"
    )
    words = ["eval", str(tmp_path / "list.csv"), "--model", str(run), "--quiet"]
    saved = zeroi2v.load(run)
    for flags, views, frames, size in (
        ([], saved.views, 4, 48),
        (["--clips", "3"], ViewsConfig(clips=3), 4, 48),
        (["--crops", "3"], ViewsConfig(crops=3), 4, 48),
        (["--frames", "2"], saved.views, 2, 48),
        (["--image-size", "32"], saved.views, 4, 32),
    ):
        assert main([*words, *flags]) == 0
        model, asked, result = found[-1]
        assert (asked, model.frames, model.clip.frames, model.image_size) == (
            views,
            frames,
            frames,
            size,
        )
        assert result.logits.shape == (1, views.clips * views.crops, 8)


def test_eval_writes_the_confusion_that_it_counted(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(motion_videos), "--model", str(run), "--json", "--quiet"]
    status, out, _ = said(capsys, *words, "--confusion", str(tmp_path / "confusion.csv"))
    found = json.loads(out)
    with (tmp_path / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    labels = zeroi2v.load(run).labels
    assert (status, header, [row[0] for row in rows]) == (
        0,
        ["label", *(f"answer: {one}" for one in labels)],
        [*labels],
    )
    counts = [[int(cell) for cell in row[1:]] for row in rows]
    assert sum(map(sum, counts)) == 16
    assert sum(counts[place][place] for place in range(8)) / 16 == found["top1"]
    for place, label in enumerate(labels):
        assert counts[place][place] / sum(counts[place]) == found["per_class"][label]


def test_the_mean_of_three_splits_takes_each_run_on_its_own(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Motion videos as UCF101 lists them: split n tests on 2 n videos, which no other split has."""
    labels, data = zeroi2v.load(run).labels, tmp_path / "data"
    (data / "ucfTrainTestlist").mkdir(parents=True)
    videos = [
        one for label in labels for one in sorted((motion_videos / "val" / label).glob("*.mp4"))[:2]
    ]
    for video in videos:
        (data / video.parent.name).mkdir(exist_ok=True)
        (data / video.parent.name / video.name).symlink_to(video)
    lists = {"classInd": [f"{number} {label}" for number, label in enumerate(labels, start=1)]}
    tested = {split: videos[start : start + 2 * split] for split, start in ((1, 0), (2, 2), (3, 6))}
    for split, own in tested.items():
        lists[f"trainlist0{split}"] = [
            f"{one.parent.name}/{one.name}" for one in videos if one not in own
        ]
        lists[f"testlist0{split}"] = [f"{one.parent.name}/{one.name}" for one in own]
    for name, lines in lists.items():
        (data / "ucfTrainTestlist" / f"{name}.txt").write_text("\n".join(lines))
    for split in tested:
        shutil.copytree(run, tmp_path / f"run-{split}")
        recipe = tmp_path / f"run-{split}" / "recipe.toml"
        recipe.write_text(recipe.read_text().replace("split = 1", f"split = {split}"))
    models = [word for split in tested for word in ("--model", str(tmp_path / f"run-{split}"))]
    alone = {}
    for split in tested:
        status, out, _ = said(
            capsys, "eval", str(data), "--model", str(tmp_path / f"run-{split}"), "--json"
        )
        alone[split] = json.loads(out)
        assert (status, alone[split]["videos"]) == (0, 2 * split)
    status, out, _ = said(capsys, "eval", str(data), *models, "--json", "--quiet")
    found = json.loads(out)
    for split, one in zip(tested, found["models"], strict=True):
        assert one == {"model": str(tmp_path / f"run-{split}"), "data.split": split, **alone[split]}
    for name in ("top1", "top5"):
        assert found[name] == pytest.approx(sum(alone[split][name] for split in tested) / 3)
    status, out, _ = said(capsys, "eval", str(data), *models, "--set", "data.split=3", "--quiet")
    lines = out.splitlines()
    assert [line.rpartition(" on ")[2] for line in lines[:3]] == ["6 videos"] * 3, (
        "what is said counts more"
    )
    assert lines[3].startswith("mean of 3 models: top-1 ")
    status, _, err = said(
        capsys, "eval", str(data), *models, "--scores", str(tmp_path / "scores.csv")
    )
    assert (status, err.count("\n"), "give a single --model" in err) == (1, 1, True)


def test_predict_goes_on_after_a_broken_video(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(next(motion_videos.glob("val/left/*.mp4")))
    bad = [str(tmp_path / name) for name in ("missing.mp4", "empty.mp4", "text.txt", "folder")]
    Path(bad[1]).write_bytes(b"")
    Path(bad[2]).write_text("hello " * 100)
    Path(bad[3]).mkdir()
    status, out, err = said(
        capsys, "predict", bad[0], good, *bad[1:], "--model", str(run), "--json", "--top-k", "3"
    )
    answers = json.loads(out)
    assert status == 1
    assert [answer["video"] for answer in answers] == [bad[0], good, *bad[1:]]
    assert [set(answer) for answer in answers] == [{"video", "error"}, {"video", "predictions"}] + [
        {"video", "error"}
    ] * 3
    scores = [one["score"] for one in answers[1]["predictions"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == bad
    assert [line for line in err.splitlines() if line not in errors and good in line]
    predicted = zeroi2v.Predictor(run).predict(good, top_k=3)
    assert [one.score for one in predicted] == pytest.approx(scores, abs=1e-6)
    status, out, err = said(capsys, "predict", good, "--model", str(run))
    assert (status, err) == (0, "")
    assert predicted[0].label in out


def test_merge_proves_that_it_changed_nothing(
    run: Path, motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(
        capsys,
        "merge",
        str(run),
        "--out",
        str(tmp_path / "merged"),
        "--data",
        str(motion_videos),
        "--json",
    )
    proof = json.loads(out)
    assert (status, proof["clips"], proof["same_answers"]) == (0, 16, 16)
    assert proof["largest_logit_difference"] < 1e-4
    merged = zeroi2v.load(tmp_path / "merged")
    assert merged.spec.merged
    assert zeroi2v.cost(merged).extra_gmacs == 0


def test_data_check_names_the_broken_ones(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, "data", "check", str(motion_videos), "--json")
    assert (status, json.loads(out)) == (
        0,
        {"videos": 64, "frames": 64 * 17, "broken": [], "ignored": []},
    )
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text(
        f"path,label\n{next(motion_videos.glob('val/left/*.mp4'))},a\nbad.mp4,b\n"
    )
    status, out, err = said(capsys, "data", "check", str(tmp_path / "list.csv"), "--json")
    assert status == 1
    assert [one["video"] for one in json.loads(out)["broken"]] == [str(tmp_path / "bad.mp4")]
    assert "bad.mp4" in err


def small_data(folder: Path, motion_videos: Path) -> Path:
    """Three videos of each of two classes, and a broken one."""
    for split, number in (("train", 2), ("val", 1)):
        for name in ("left", "right"):
            (folder / split / name).mkdir(parents=True)
            for video in sorted((motion_videos / split / name).glob("*.mp4"))[:number]:
                (folder / split / name / video.name).symlink_to(video)
    (folder / "train" / "left" / "bad one.mp4").write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_training_leaves_out_what_data_check_lists(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data, listed = small_data(tmp_path / "data", motion_videos), tmp_path / f"broken.{kind}"
    status, out, _ = said(capsys, "data", "check", str(data), "--out", str(listed))
    assert status == 1
    assert out.splitlines()[-1] == f"Next: zeroi2v train {data} --set train.exclude={listed}"
    words = [
        "train",
        str(data),
        "--epochs",
        "1",
        "--set",
        "clip.frames=2",
        "--set",
        "workers=0",
        "--json",
    ]
    status, _, err = said(capsys, *words, "--out", str(tmp_path / "stops"))
    assert (status, "bad one.mp4" in err) == (1, True)
    setting = ["--set", f"train.exclude={listed}"]
    status, out, err = said(capsys, *words, *setting, "--out", str(tmp_path / "run"))
    bad = str(data / "train" / "left" / "bad one.mp4")
    assert (status, json.loads(out)["excluded"], json.loads(out)["broken"]) == (0, [bad], [])
    assert f"1 video left out, as listed in {listed}: {bad}" in err
    assert f'exclude = "{listed}"' in (tmp_path / "run" / "recipe.toml").read_text()


def test_an_interrupted_check_leaves_no_list(
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(paths: list[Path], **_: object) -> Iterator[tuple[Path, VideoError]]:
        yield paths[0], VideoError(paths[0], "broken")
        raise KeyboardInterrupt

    monkeypatch.setattr("zeroi2v.data.loader.check_videos", interrupted)
    words = ["data", "check", str(motion_videos), "--out", str(tmp_path / "broken.txt")]
    assert said(capsys, *words)[0] == 130
    assert not [*tmp_path.iterdir()]


def test_data_reencode_copies_and_lists_what_it_cannot(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = small_data(tmp_path / "data", motion_videos), tmp_path / "copy"
    words = [
        "data",
        "reencode",
        str(data),
        "--out",
        str(out),
        "--short-side",
        "32",
        "--workers",
        "1",
        "--json",
    ]
    status, printed, err = said(capsys, *words)
    found = json.loads(printed)
    assert (status, found["videos"]) == (1, 6)
    assert [one["video"] for one in found["broken"]] == [
        str(data / "train" / "left" / "bad one.mp4")
    ]
    assert "bad one.mp4" in err
    status, printed, _ = said(capsys, "data", "check", str(out / "manifest.csv"), "--json")
    assert (status, json.loads(printed)["frames"]) == (0, 6 * 17)


def test_a_saved_model_asks_nobody_for_a_decoder(tmp_path: Path) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2)
    respec(model, clip=ClipConfig(frames=2, decoder="torchcodec"))
    model.save_pretrained(tmp_path / "model")
    assert zeroi2v.load(tmp_path / "model").clip == ClipConfig(frames=2)


def test_help_and_mistakes_need_no_heavy_import() -> None:
    program = (
        "import sys; from zeroi2v.cli.main import build_parser; build_parser();"
        "print({'torch', 'timm', 'rich', 'av'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert build_parser().prog == "zeroi2v"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version")[:2] == (0, f"{zeroi2v.__version__}\n")
