"""What is a trial, and what does it measure? A training: one row of settings with one seed.

The measurements of a trial are its entry: one JSON object.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.engine.folder import LOG_FILE, RESUME_FILE
from zeroi2v.engine.resume import data_key
from zeroi2v.engine.run import Run, train
from zeroi2v.files import read_json_lines
from zeroi2v.log import Log
from zeroi2v.machine import best_device, provenance
from zeroi2v.measure.latency import measure_latency
from zeroi2v.models.loading import load
from zeroi2v.recipes import RECIPE_FILE, to_dict


@dataclass(frozen=True)
class Trial:
    """One row with one seed: one training."""

    row: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The run folder of the training, inside the folder of all trials."""
        return Path("runs", self.row, f"seed-{self.seed}")

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"


def run_trial(
    trial: Trial, dataset: VideoDataset, folder: Path, *, latency: bool, log: Log
) -> dict[str, Any]:
    """Train in a run folder, or go on with the training there. Returns the entry.

    The entry holds the measurements of the trained model.
    """
    log.say(f"[{trial}]")
    resume = (folder / RESUME_FILE).is_file()
    if not resume and (folder / RECIPE_FILE).is_file():
        shutil.rmtree(folder)  # the training ended before its first state was saved
    run = train(trial.recipe, dataset, folder, resume=resume, log=log)
    model = load(folder).to(best_device())
    left_out = _left_out(run, trial.recipe)
    parameters = list(model.parameters())
    entry = {
        "row": trial.row,
        "seed": trial.seed,
        "figure": "mAP" if model.spec.multi_label else "top1",
        "score": run.best,
        "trainable_params": sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
        "params": sum(parameter.numel() for parameter in parameters),
        **_training_figures(folder),
        "left_out": left_out,
        "judged": sum(str(video.path) not in left_out for video in dataset.val),
        "data": data_facts(dataset),
        "recipe": to_dict(trial.recipe),
        **provenance(),
    }
    if latency:
        log.say("measuring latency")
        entry["latency"] = measure_latency(model)
    return entry


def data_facts(dataset: VideoDataset) -> dict[str, Any]:
    """What an entry says of the videos: how many, and a key that changes with the videos."""
    videos = [*dataset.train, *dataset.val]
    return {
        "train": len(dataset.train),
        "val": len(dataset.val),
        "key": data_key(dataset.classes, videos),
    }


def _left_out(run: Run, recipe: Recipe) -> Mapping[str, str]:
    """Path of a video that the training left out -> the reason."""
    listed = f"listed in {recipe.train.exclude}"
    return {**run.broken, **dict.fromkeys(run.excluded, listed)}


def _training_figures(folder: Path) -> dict[str, Any]:
    """The figures of a training that its log tells: time, memory, precision and the last loss."""
    epochs = read_json_lines(folder / LOG_FILE)
    return {
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "peak_memory": max(epoch["peak_memory"] for epoch in epochs),
        "precision": epochs[-1]["precision"],
        "loss": epochs[-1]["loss"],
    }
