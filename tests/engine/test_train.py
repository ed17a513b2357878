"""A training run can be repeated, its folder always loads, and no video is lost in silence."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import zeroi2v
from zeroi2v.config import ClipConfig, ModelConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.engine.run import Run, train
from zeroi2v.errors import ConfigError, VideoError, ZeroI2VError
from zeroi2v.files import read_json_lines
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.recipes import read_recipe

RECIPE = Recipe(
    model=ModelConfig(adapter_dropout=0.1),
    clip=ClipConfig(frames=4),
    train=TrainConfig(epochs=2, batch_size=8, warmup_epochs=0.5, workers=0),
)


@pytest.fixture(scope="module")
def dataset(motion_videos: Path) -> VideoDataset:
    return open_dataset(motion_videos)


@pytest.fixture(scope="module")
def run(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, dataset, tmp_path_factory.mktemp("runs") / "run")


def figures(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if key not in ("seconds", "peak_memory")}
        for entry in read_json_lines(folder / "log.jsonl")
    ]


def test_a_run_learns_and_leaves_a_folder_that_loads(run: Run, dataset: VideoDataset) -> None:
    log = figures(run.folder)
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    assert log[-1]["learning_rate"] < 1e-9
    assert (run.epochs, run.broken) == (2, {})
    model = zeroi2v.load(run.folder)
    assert model.labels == dataset.classes
    assert (
        evaluate(model, dataset.val).top(1)
        == log[run.best_epoch - 1]["top1"]
        == max(entry["top1"] for entry in log)
    )
    assert read_recipe(run.folder / "recipe.toml") == RECIPE


def test_the_same_seed_gives_the_same_run_whatever_the_workers(
    run: Run, dataset: VideoDataset, tmp_path: Path
) -> None:
    other = train(
        dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, workers=1)),
        dataset,
        tmp_path / "run",
    )
    assert figures(other.folder) == figures(run.folder)
    assert (other.folder / "last.safetensors").read_bytes() == (
        run.folder / "last.safetensors"
    ).read_bytes()
    seeded = train(
        dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, seed=1)),
        dataset,
        tmp_path / "seed-1",
    )
    assert figures(seeded.folder) != figures(run.folder)


def test_only_what_the_strategy_names_has_moved(run: Run) -> None:
    before = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=8, frames=4, pretrained=True
    ).tower.state_dict()
    after = zeroi2v.load(run.folder).tower.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "norm.weight",
        "norm.bias",
    }


def test_a_folder_in_use_is_refused(run: Run, dataset: VideoDataset) -> None:
    with pytest.raises(ConfigError, match="already there and not empty"):
        train(RECIPE, dataset, run.folder)


def test_a_folder_that_a_crash_left_before_the_first_step_can_be_started_in(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".model.safetensors.partial").write_bytes(b"half")
    settings = dataclasses.replace(RECIPE.train, epochs=1)
    assert train(dataclasses.replace(RECIPE, train=settings), dataset, tmp_path / "run").epochs == 1


def with_a_broken_video(
    dataset: VideoDataset, tmp_path: Path, split: str
) -> tuple[VideoDataset, Path]:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    videos = dataset.splits[split]
    others = (dataclasses.replace(videos[0], path=broken), *videos[1:])
    return dataclasses.replace(dataset, splits={**dataset.splits, split: others}), broken


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_video_stops_the_run_with_its_path(
    dataset: VideoDataset, tmp_path: Path, split: str
) -> None:
    bad, path = with_a_broken_video(dataset, tmp_path, split)
    with pytest.raises(VideoError) as caught:
        train(RECIPE, bad, tmp_path / "run")
    assert caught.value.path == str(path)
    settings = dataclasses.replace(RECIPE.train, broken="skip", epochs=1)
    again = train(dataclasses.replace(RECIPE, train=settings), bad, tmp_path / "run")
    assert again.epochs == 1, "a run that never finished an epoch may be started anew in its folder"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_video_can_be_left_out_and_is_listed(
    dataset: VideoDataset, tmp_path: Path, split: str
) -> None:
    bad, path = with_a_broken_video(dataset, tmp_path, split)
    settings = dataclasses.replace(RECIPE.train, broken="skip", epochs=1)
    run = train(dataclasses.replace(RECIPE, train=settings), bad, tmp_path / "run")
    assert list(run.broken) == [str(path)]
    assert figures(run.folder)[0]["clips"] == len(bad.train) - (split == "train")


def test_a_clipped_gradient_takes_a_short_step(
    run: Run, dataset: VideoDataset, tmp_path: Path
) -> None:
    """AdamW divides a gradient by its size plus 1e-8: only a much smaller gradient moves less."""
    short = dataclasses.replace(
        RECIPE, train=dataclasses.replace(RECIPE.train, epochs=1, gradient_clip=1e-12)
    )
    train(short, dataset, tmp_path / "run")
    clipped, free = (
        zeroi2v.load(folder).get_parameter("adapters.0.qkv.up.weight").abs().max()
        for folder in (tmp_path / "run", run.folder)
    )
    assert clipped < 1e-2 * free


def test_a_loss_that_is_no_number_ends_the_run(dataset: VideoDataset, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        RECIPE.train, learning_rate=1e30, warmup_epochs=0.0, precision="fp32"
    )
    with pytest.raises(ZeroI2VError, match="learning_rate"):
        train(dataclasses.replace(RECIPE, train=settings), dataset, tmp_path / "run")


def command(motion_videos: Path, out: Path, epochs: int) -> list[str]:
    settings = ["--set", "frames=4", "--set", "workers=0", "--set", "batch_size=8"]
    return [
        sys.executable,
        "-m",
        "zeroi2v",
        "train",
        str(motion_videos),
        "--out",
        str(out),
        "--epochs",
        str(epochs),
        *settings,
    ]


def wait_for(out: Path, epochs: int, process: subprocess.Popen[bytes]) -> None:
    while len(read_json_lines(out / "log.jsonl")) < epochs:
        assert process.poll() is None, "the run ended early"
        time.sleep(0.005)


def test_a_run_killed_at_any_moment_still_loads_with_its_last_epoch(
    motion_videos: Path, tmp_path: Path
) -> None:
    """A run that is paused leaves on the disk what the same run leaves if it is killed then."""
    out = tmp_path / "run"
    process = subprocess.Popen(command(motion_videos, out, 100), stderr=subprocess.DEVNULL)
    try:
        wait_for(out, 1, process)
        for moment in range(5):
            process.send_signal(signal.SIGCONT)
            time.sleep(random.Random(moment).random())
            process.send_signal(signal.SIGKILL if moment == 4 else signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            done = len(read_json_lines(out / "log.jsonl"))
            with safe_open(out / "last.safetensors", "pt") as file:
                assert int(json.loads(file.metadata()["zeroi2v"])["epoch"]) >= done >= 1
            assert zeroi2v.load(out).labels
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_saves_and_says_where(motion_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(motion_videos, out, 100), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_for(out, 1, process)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert f"{out} holds" in said
    assert "Traceback" not in said
    assert "--resume" in said
    assert (out / "resume.pt").exists()
    zeroi2v.load(out)


def test_a_log_line_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"epoch": 1}) + "\n" + '{"epo')
    assert read_json_lines(tmp_path / "log.jsonl") == [{"epoch": 1}]
