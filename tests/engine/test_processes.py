"""Several processes, or a batch taken in parts, give what one process gives."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeroi2v.config import ClipConfig, Recipe, TrainConfig, write_recipe
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.log import read_json_lines
from zeroi2v.engine.train import train

RECIPE = Recipe(
    clip=ClipConfig(frames=4),
    train=TrainConfig(epochs=2, batch_size=9, warmup_epochs=0.5, workers=0, precision="fp32"),
)  # 48 videos: the last batch of 3 is shared unevenly


def log_of(folder: Path) -> list[dict[str, float]]:
    return [
        {key: entry[key] for key in ("epoch", "loss", "learning_rate", "clips", "top1", "top5")}
        for entry in read_json_lines(folder / "log.jsonl")
    ]


def test_a_batch_taken_in_parts_gives_the_same_losses(motion_videos: Path, tmp_path: Path) -> None:
    dataset = open_dataset(motion_videos)
    in_parts = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, accumulate=3))
    one, other = (
        train(recipe, dataset, tmp_path / name).folder for name, recipe in {"one": RECIPE, "parts": in_parts}.items()
    )
    for whole, parts in zip(log_of(one), log_of(other), strict=True):
        assert parts == pytest.approx(whole, abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(motion_videos: Path, tmp_path: Path) -> None:
    write_recipe(RECIPE, tmp_path / "recipe.toml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def zeroi2v(processes: int, *arguments: str) -> str:
        launched = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "zeroi2v", *arguments]
        done = subprocess.run([sys.executable, *launched], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    logs, scores = [], []
    for processes in (1, 2):
        out = str(tmp_path / f"of-{processes}")
        zeroi2v(processes, "train", str(motion_videos), "--out", out, "--recipe", str(tmp_path / "recipe.toml"))
        logs.append(log_of(Path(out)))
        found = zeroi2v(
            processes, "eval", str(motion_videos), "--model", str(tmp_path / "of-1"), "--clips", "2", "--json"
        )
        scores.append(json.loads(found))  # one value, printed once
    assert logs[0][0]["clips"] == 48
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    assert scores[0] == scores[1]
    assert scores[0]["videos"] == 16
