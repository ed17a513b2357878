"""TensorBoard's points are the log's figures, once for each epoch, also after a run was resumed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.videos_for_tests import blocks_dataset
from zeroi2v.config import ClipConfig, ModelConfig, Recipe, TrainConfig
from zeroi2v.engine.resume import TrainingState
from zeroi2v.engine.run import train
from zeroi2v.errors import ConfigError
from zeroi2v.files import read_json_lines

RECIPE = Recipe(
    model=ModelConfig(pretrained=False, tower_options={"depth": 2}),
    clip=ClipConfig(frames=2),
    train=TrainConfig(
        epochs=3,
        batch_size=2,
        warmup_epochs=0.5,
        workers=0,
        save_every_minutes=1e-6,
        tensorboard=True,
    ),
)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows: for each name the (step, value) pairs."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_the_points_are_the_log_and_a_resumed_run_has_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops at the end of epoch 2: after the log line, before its state is saved."""
    dataset, run = blocks_dataset(tmp_path, train=4, val=1, frames=4), tmp_path / "run"
    saves = 0
    save = TrainingState.save

    def stops(*arguments: Any, **options: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 6:  # epoch 1: two batches and its end; epoch 2: two batches, and now its end
            raise OSError("killed")
        save(*arguments, **options)

    monkeypatch.setattr(TrainingState, "save", stops)
    with pytest.raises(OSError, match="killed"):
        train(RECIPE, dataset, run)
    monkeypatch.undo()
    assert [step for step, _ in points(run / "tensorboard")["loss"]] == [1, 2]
    train(RECIPE, dataset, run, resume=True)
    log, shown = read_json_lines(run / "log.jsonl"), points(run / "tensorboard")
    names = {"loss", "learning_rate", "clips", "processes", "seconds", "peak_memory"}
    assert {*shown} == names | {"top1", "top5", "clips_per_second"}
    expected = {
        name: [entry[name] for entry in log]
        for name in ("loss", "learning_rate", "top1", "top5", "peak_memory")
    }
    expected["clips_per_second"] = [entry["clips"] / entry["seconds"] for entry in log]
    for name, values in expected.items():
        assert [step for step, _ in shown[name]] == [entry["epoch"] for entry in log], name
        assert [value for _, value in shown[name]] == pytest.approx(values, rel=1e-6), name
    assert [entry["epoch"] for entry in log] == [1, 2, 3]


def test_without_the_package_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    dataset = blocks_dataset(tmp_path, train=4, val=1, frames=4)
    with pytest.raises(ConfigError, match="needs tensorboard: pip install tensorboard"):
        train(RECIPE, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    off = dataclasses.replace(
        RECIPE, train=dataclasses.replace(RECIPE.train, tensorboard=False, epochs=1)
    )
    assert not (train(off, dataset, tmp_path / "run").folder / "tensorboard").exists()
