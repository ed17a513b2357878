"""Every command speaks and ends, whatever the environment of a cluster says of other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zeroi2v
from zeroi2v.cli.main import main
from zeroi2v.config import ClipConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
from zeroi2v.machine import GROUP_VARIABLES, announced_group

WITHOUT_GROUP = [
    {"RANK": "1"},
    {"WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "2"},
    {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8"},
    {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"},
    {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
]
# as torchrun sets them for the second of two processes; the first process is not there
GROUP = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=8, frames=2, pretrained=True)
    labels = ["anticlockwise", "clockwise", "down", "farther", "left", "nearer", "right", "up"]
    model.with_labels(labels).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GROUP_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variables", [*WITHOUT_GROUP, GROUP], ids=str)
def test_a_command_that_shares_nothing_works_alone(
    variables: dict[str, str],
    model: Path,
    motion_videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    video = str(next(motion_videos.glob("val/left/*.mp4")))
    assert main(["predict", video, "--model", str(model), "--json", "--quiet"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)[0]["video"] == video
    assert output.err == ""
    assert main(["towers", "zeroi2v_tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["zeroi2v_tiny"]


def test_predict_does_not_wait_for_the_processes_of_a_group(
    model: Path, motion_videos: Path
) -> None:
    """In a process of its own, which would wait for ever if it joined the group."""
    video = str(next(motion_videos.glob("val/left/*.mp4")))
    command = [sys.executable, "-m", "zeroi2v", "predict", video, "--model", str(model), "--json"]
    done = subprocess.run(
        command,
        env={**os.environ, **GROUP, "RANK": "0", "LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["predictions"]


@pytest.mark.parametrize("variables", WITHOUT_GROUP, ids=str)
def test_eval_without_a_group_speaks_writes_and_warns_once(
    variables: dict[str, str],
    model: Path,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = ["eval", str(motion_videos), "--model", str(model), "--workers", "0", "--quiet"]
    assert main([*words, "--scores", str(tmp_path / "scores.csv"), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["videos"] == 16
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 17
    announced = announced_group()
    assert output.err.count("warning: ") == bool(announced)
    assert announced in output.err


def test_train_without_a_group_speaks_and_warns_once(
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    settings = ["clip.frames=2", "train.workers=0", "train.warmup_epochs=0.5", "train.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    assert main(["train", str(motion_videos), "--out", str(out), *words, "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{out}: epoch 1 of 1 is the best")
    assert output.err.count("\n") == 1
    assert output.err.startswith("warning: RANK=1 name")
    assert (out / "model.safetensors").exists()


def test_a_training_that_is_given_no_group_joins_none(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the trainings of `quickstart` and `compare`, which would wait for ever."""
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    recipe = Recipe(
        clip=ClipConfig(frames=2), train=TrainConfig(epochs=1, workers=0, warmup_epochs=0.5)
    )
    run = train(recipe, open_dataset(motion_videos), tmp_path / "run")
    assert run.epochs == 1
    assert (tmp_path / "run" / "log.jsonl").exists()
