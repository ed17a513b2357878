"""Does time matter? Training in both directions, and what evaluation says of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import zeroi2v
from tests.cli_for_tests import said
from tests.training_for_tests import interrupted_after
from zeroi2v.config import (
    ClipConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    ViewsConfig,
)
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.data.decode import read_clip
from zeroi2v.data.directions import Direction, sharpness
from zeroi2v.data.encode import write_video
from zeroi2v.data.synthetic import MOTIONS, write_motion_videos
from zeroi2v.data.views import read_views
from zeroi2v.engine.run import Run, train
from zeroi2v.errors import CheckpointError, ConfigError
from zeroi2v.experiments.quickstart import recipe as quickstart_recipe
from zeroi2v.files import read_json_lines
from zeroi2v.inference.directions import direction_by_sharpness
from zeroi2v.inference.evaluate import evaluate

KEPT = ("right", "down")
LEFT_OUT = tuple(motion for motion in MOTIONS if motion not in KEPT)
RECIPE = Recipe(
    data=DataConfig(directions=True, leave_out=LEFT_OUT),
    clip=ClipConfig(frames=4),
    train=TrainConfig(epochs=2, batch_size=8, warmup_epochs=0.5, workers=0),
)


@pytest.fixture(scope="module")
def dataset(motion_videos: Path) -> VideoDataset:
    return open_dataset(motion_videos, RECIPE.data)


@pytest.fixture(scope="module")
def run(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, dataset, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_knows_its_directions_and_logs_both_accuracies(
    run: Run, dataset: VideoDataset
) -> None:
    model = zeroi2v.load(run.folder)
    assert model.labels == ("down", "down, backwards", "right", "right, backwards")
    assert model.spec.directions
    assert model.merge().spec.directions
    evaluation = evaluate(model, dataset.val)
    entry = read_json_lines(run.folder / "log.jsonl")[run.best_epoch - 1]
    for name in ("within_pairs", "sharpness"):
        assert entry[name] == evaluation.figures[name]
    assert (entry["pairs"], entry["reading"]) == tuple(evaluation.direction_answer().values())
    assert entry["pairs"] == len(dataset.val) // 2
    assert model.spec.results["validation within pairs"] == entry["within_pairs"]
    card = (run.folder / "README.md").read_text(encoding="utf-8")
    assert "| validation within pairs |" in card
    assert "| validation by sharpness alone |" in card
    assert "forwards and backwards" in card


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Run, dataset: VideoDataset, motion_videos: Path, tmp_path: Path
) -> None:
    with interrupted_after(3):
        train(RECIPE, dataset, tmp_path / "run")
    without = dataclasses.replace(RECIPE, data=DataConfig(leave_out=LEFT_OUT))
    plain = open_dataset(motion_videos, without.data)
    with pytest.raises(CheckpointError):
        train(without, plain, tmp_path / "run", resume=True)
    train(RECIPE, dataset, tmp_path / "run", resume=True)
    for name in ("last.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run.folder / name).read_bytes()


def test_a_recipe_and_a_data_set_that_disagree_are_refused(
    dataset: VideoDataset, motion_videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.directions is false in the recipe, and true"):
        train(dataclasses.replace(RECIPE, data=DataConfig()), dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.directions is true in the recipe, and false"):
        train(RECIPE, open_dataset(motion_videos), tmp_path / "run")
    complete = open_dataset(motion_videos, DataConfig(directions=True))
    with pytest.raises(ConfigError, match=r"data\.leave_out of the recipe names .*opened with"):
        train(RECIPE, complete, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_see_the_order_is_right_in_exactly_half_of_the_answers(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    blind = ModelConfig(heads=(), temporal_embedding="zero")
    run = train(dataclasses.replace(RECIPE, model=blind), dataset, tmp_path / "run")
    figures = evaluate(zeroi2v.load(run.folder), dataset.val).figures
    assert figures["within_pairs"] == 0.5


def test_eval_needs_no_setting_and_says_how_to_read_the_numbers(
    run: Run, dataset: VideoDataset, motion_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", motion_videos, "--model", run.folder, "--workers", "0"]
    status, out, _ = said(capsys, *words, "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["videos"] == answer["pairs"] == len(dataset.val) // 2
    assert {"top1", "top5", "within_pairs", "sharpness", "reading"} <= answer.keys()
    per_class = answer["within_pairs_per_class"]
    assert {*per_class} == {*KEPT}
    assert sum(per_class.values()) / 2 == pytest.approx(answer["within_pairs"])
    status, out, _ = said(capsys, *words)
    assert status == 0
    assert f"within pairs {answer['within_pairs']:.2%}" in out
    assert f"Does time matter? {answer['reading']}" in out.splitlines()


def test_train_says_what_the_best_epoch_tells(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "data.directions=true", "--set", "clip.frames=2", "--workers", "0"]
    words = ["train", motion_videos, "--epochs", "1", "--set", "warmup_epochs=0.5", *settings]
    status, out, err = said(capsys, *words, "--out", tmp_path / "run")
    assert status == 0
    assert "Does time matter? within pairs" in out
    assert "warning: playing backwards seems to turn one class into the other" in err
    status, out, _ = said(capsys, *words, "--out", tmp_path / "json", "--json", "--quiet")
    answer = json.loads(out)
    assert {"within_pairs", "sharpness", "pairs", "reading", "top1"} <= answer.keys()


def test_predict_and_merge_take_the_clips_as_evaluation_does(
    run: Run,
    dataset: VideoDataset,
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictor = zeroi2v.Predictor(run.folder, device="cpu")
    (video, *_) = dataset.val
    assert video.direction == "forwards"
    (scores,) = evaluate(predictor.model, [video]).scores.tolist()
    found = {one.label: one.score for one in predictor.predict(video.path)}
    expected = dict(zip(predictor.model.labels, scores, strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    words = ["merge", run.folder, "--out", tmp_path / "merged", "--data", motion_videos]
    status, _, err = said(capsys, *words, "--workers", "0")
    assert (status, err) == (0, "")
    merged = zeroi2v.load(tmp_path / "merged")
    assert merged.spec.directions
    assert evaluate(merged, dataset.val).figures["within_pairs"] == pytest.approx(
        evaluate(predictor.model, dataset.val).figures["within_pairs"]
    )


def test_left_out_classes_of_a_run_may_be_absent_and_a_merged_model_needs_them_again(
    run: Run,
    dataset: VideoDataset,
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in KEPT:
        shutil.copytree(motion_videos / "val" / name, tmp_path / "kept" / "val" / name)
    words = ["eval", tmp_path / "kept", "--model", run.folder, "--workers", "0", "--json"]
    status, out, _ = said(capsys, *words)
    assert (status, json.loads(out)["pairs"]) == (0, len(dataset.val) // 2)
    left_out = ["--set", f"data.leave_out={json.dumps(LEFT_OUT)}"]
    status, _, err = said(capsys, *words, *left_out)
    assert (status, err.count("\n")) == (1, 1)
    assert "data.leave_out: no class is called" in err
    words = ["merge", run.folder, "--out", tmp_path / "merged", "--data", tmp_path / "kept"]
    status, _, err = said(capsys, *words, "--workers", "0")
    assert (status, err) == (0, "")
    words = ["eval", motion_videos, "--model", tmp_path / "merged", "--workers", "0", "--quiet"]
    status, _, err = said(capsys, *words)
    assert (status, err.count("\n")) == (1, 1)
    assert "the model has no class" in err
    assert "data.leave_out" in err
    status, _, err = said(capsys, *words, *left_out)
    assert (status, err) == (0, "")


def test_a_run_goes_on_where_its_left_out_classes_are_gone_and_a_new_run_names_them(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, *_ = LEFT_OUT
    for name in (*KEPT, gone):
        shutil.copytree(motion_videos / "val" / name, tmp_path / "data" / "val" / name)
        shutil.copytree(motion_videos / "train" / name, tmp_path / "data" / "train" / name)
    settings = [f"data.leave_out={json.dumps([gone])}", "warmup_epochs=0.5", "clip.frames=2"]
    options = [word for setting in settings for word in ("--set", setting)]
    words = ["train", tmp_path / "data", "--workers", "0", "--quiet", "--out"]
    status, _, _ = said(capsys, *words, tmp_path / "run", "--epochs", "1", *options)
    assert status == 0
    for split in ("val", "train"):
        shutil.rmtree(tmp_path / "data" / split / gone)
    status, _, err = said(capsys, *words, tmp_path / "run", "--resume")
    assert (status, err) == (0, "")
    for further in (options, ["--recipe", tmp_path / "run" / "recipe.toml"]):
        status, _, err = said(capsys, *words, tmp_path / "new", *further)
        assert (status, err.count("\n")) == (1, 1)
        assert f"data.leave_out: no class is called {gone!r}" in err


def test_other_commands_refuse_the_setting_or_do_not_need_it(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = ["--set", "data.directions=true", "--workers", "0"]
    words = ["data", "reencode", motion_videos, "--out", tmp_path / "copies", *setting]
    status, _, err = said(capsys, *words, "--quiet")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: data.directions: ")
    assert not (tmp_path / "copies").exists()
    status, out, _ = said(capsys, "data", "check", motion_videos, *setting, "--json", "--quiet")
    assert (status, json.loads(out)["videos"]) == (0, 64)
    plain = dataclasses.replace(RECIPE, data=DataConfig())
    run = train(
        dataclasses.replace(plain, train=dataclasses.replace(plain.train, epochs=1)),
        open_dataset(motion_videos),
        tmp_path / "plain",
    )
    words = ["eval", motion_videos, "--model", run.folder, *setting]
    status, _, err = said(capsys, *words, "--quiet")
    assert (status, err.count("\n")) == (1, 1)
    assert "knows no label of clips played backwards" in err


@pytest.mark.slow
def test_motions_are_told_from_their_reversals_and_shuffled_frames_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "motion"
    for _ in write_motion_videos(folder, {"train": 320, "val": 128}, seed=0):
        pass
    shuffled = tmp_path / "shuffled"
    for number, path in enumerate(sorted(folder.glob("*/*/*.mp4"))):
        if path.parent.name not in KEPT:
            continue
        frames = read_clip(path, range)
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(number))
        copy = shuffled / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_video(copy, frames[order], fps=8)
    for name in LEFT_OUT:
        for split in ("train", "val"):
            shutil.rmtree(folder / split / name)
    usual = quickstart_recipe(0)
    recipe = dataclasses.replace(
        usual,
        data=DataConfig(directions=True),
        pixels=dataclasses.replace(usual.pixels, flip=0.0, flip_pairs=()),
        train=dataclasses.replace(usual.train, epochs=4, batch_size=8, workers=0, validate_every=4),
    )
    found = {}
    for data in (folder, shuffled):
        dataset = open_dataset(data, recipe.data)
        run = train(recipe, dataset, tmp_path / f"run-{data.name}")
        found[data.name] = evaluate(zeroi2v.load(run.folder), dataset.val)
    motion, mixed = found["motion"], found["shuffled"]
    assert motion.figures["within_pairs"] > 0.9
    assert "time matters in these videos" in motion.direction_answer()["reading"]
    assert 0.3 < mixed.figures["within_pairs"] < 0.7
    for evaluation in (motion, mixed):
        assert 0.3 < evaluation.figures["sharpness"] < 0.7


@pytest.mark.slow
def test_the_blur_hides_what_compression_betrays_of_real_videos(shared_data: Path) -> None:
    """The clips of these signs start at key frames, so their first frame is often the sharpest."""
    videos = open_dataset(shared_data / "signs").for_check
    told = []
    shown: tuple[Direction | None, ...] = (None, "forwards")
    for direction in shown:
        clips = (
            read_views(
                video.path, clip=ClipConfig(), views=ViewsConfig(), size=112, direction=direction
            )
            for video in videos
        )
        forwards = torch.stack([sharpness(clip)[0] for clip in clips])
        both = torch.cat([forwards, forwards.flip(1)])
        directions = torch.arange(2).repeat_interleave(len(videos))
        told.append(direction_by_sharpness(both, directions, [*range(len(videos))] * 2))
    plain, blurry = told
    assert plain is not None
    assert blurry is not None
    assert plain > 0.65
    assert abs(blurry - 0.5) < 0.09
