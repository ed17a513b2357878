"""Several processes give the result of one process, and so does a batch taken in parts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zeroi2v import load
from zeroi2v.config import ClipConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
from zeroi2v.files import read_json_lines
from zeroi2v.recipes import write_recipe

RECIPE = Recipe(
    clip=ClipConfig(frames=4),
    train=TrainConfig(epochs=2, batch_size=9, warmup_epochs=0.5, workers=0, precision="fp32"),
)  # of 48 videos, the last batch has 3 clips, which two processes share unevenly


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def log_of(folder: Path) -> list[dict[str, float]]:
    return [
        {key: entry[key] for key in ("epoch", "loss", "learning_rate", "clips", "top1", "top5")}
        for entry in read_json_lines(folder / "log.jsonl")
    ]


def test_a_batch_taken_in_parts_gives_the_same_losses(motion_videos: Path, tmp_path: Path) -> None:
    dataset = open_dataset(motion_videos)
    whole, parts = (
        log_of(
            train(
                dataclasses.replace(
                    RECIPE, train=dataclasses.replace(RECIPE.train, epochs=1, accumulate=accumulate)
                ),
                dataset,
                tmp_path / f"{accumulate}",
            ).folder
        )
        for accumulate in (1, 3)
    )
    for entry, expected in zip(parts, whole, strict=True):
        assert entry == pytest.approx(expected, abs=1e-5)


def launch(processes: int, *arguments: str) -> list[str]:
    launched = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "-m",
        "zeroi2v",
        *arguments,
    ]
    return [sys.executable, *launched]


def zeroi2v(processes: int, *arguments: str) -> str:
    command = launch(processes, *arguments)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(motion_videos: Path, tmp_path: Path) -> None:
    write_recipe(RECIPE, tmp_path / "recipe.toml")
    logs, scores = [], []
    for processes in (1, 2):
        out = str(tmp_path / f"of-{processes}")
        zeroi2v(
            processes,
            "train",
            str(motion_videos),
            "--out",
            out,
            "--recipe",
            str(tmp_path / "recipe.toml"),
        )
        logs.append(log_of(Path(out)))
        printed = zeroi2v(
            processes,
            "eval",
            str(motion_videos),
            "--model",
            str(tmp_path / "of-1"),
            "--clips",
            "2",
            "--json",
        )
        scores.append(json.loads(printed))  # one value: only the first process prints
    assert logs[0][0]["clips"] == 48
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    assert scores[0] == scores[1]
    assert scores[0]["videos"] == 16


@pytest.mark.slow
def test_processes_that_share_the_weights_leave_what_one_process_leaves(
    motion_videos: Path, tmp_path: Path
) -> None:
    """Also a run that was killed after an epoch and resumed.

    The gradient is clipped, which needs the norm of all shards together. Parts of the model have
    learning rates of their own.
    """
    settings = dataclasses.replace(
        RECIPE.train,
        gradient_clip=0.5,
        sharding="full",
        learning_rate_shares={"adapters": 0.5, "classifier": 2.0},
    )
    write_recipe(dataclasses.replace(RECIPE, train=settings), tmp_path / "recipe.toml")
    words = ["train", str(motion_videos), "--recipe", str(tmp_path / "recipe.toml"), "--out"]
    for processes in (1, 2):  # one process shards nothing
        zeroi2v(processes, *words, str(tmp_path / f"of-{processes}"))
    one, two = (log_of(tmp_path / f"of-{processes}") for processes in (1, 2))
    for whole, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(whole, abs=1e-5)
    for name in ("config.json", "recipe.toml"):
        assert without_results(tmp_path / "of-1" / name) == without_results(
            tmp_path / "of-2" / name
        )
    before, after = (
        load_file(tmp_path / f"of-{processes}" / "model.safetensors") for processes in (1, 2)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    assert load(tmp_path / "of-2").spec.results == pytest.approx(
        load(tmp_path / "of-1").spec.results, abs=1e-5
    )

    killed = subprocess.Popen(
        launch(2, *words, str(tmp_path / "killed")),
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "killed" / "resume.pt").exists():
        assert killed.poll() is None, "the run ended early"
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    zeroi2v(2, "train", str(motion_videos), "--out", str(tmp_path / "killed"), "--resume")
    for name in ("last.safetensors", "model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "of-2" / name).read_bytes()


def without_results(path: Path) -> object:
    """The content of a file; of a JSON file without the figures of the model."""
    return (
        {**json.loads(path.read_text()), "results": None}
        if path.suffix == ".json"
        else path.read_text()
    )
