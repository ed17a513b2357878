"""What keeps a run from harm?

Only one training can use a folder, a state from which a run cannot be resumed is never saved, and
the paths of a recipe mean the same in any working folder.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch

from tests.towers_for_tests import random_clip, small_model
from tests.training_for_tests import interrupted_after
from zeroi2v.config import ClipConfig, DataConfig, ModelConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.engine import run as training
from zeroi2v.engine.interrupt import undivided
from zeroi2v.engine.optim import build_optimizer
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.run import train
from zeroi2v.engine.step import Learner, Step, take_step
from zeroi2v.errors import ConfigError, ZeroI2VError
from zeroi2v.log import Log
from zeroi2v.recipes import absolute_paths, read_recipe

RECIPE = Recipe(
    clip=ClipConfig(frames=2),
    train=TrainConfig(epochs=2, batch_size=8, warmup_epochs=0.5, workers=0),
)


@pytest.fixture(scope="module")
def dataset(motion_videos: Path) -> VideoDataset:
    return open_dataset(motion_videos)


# Claims a folder in another process until the standard input of the process is closed.
HOLD = """
import sys
from pathlib import Path
from zeroi2v.files import claimed
with claimed(Path(sys.argv[1]), "another training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_a_folder_is_refused_from_the_first_moment(
    dataset: VideoDataset, tmp_path: Path, resume: bool
) -> None:
    out = tmp_path / "run"
    if resume:
        train(RECIPE, dataset, out)
    command = [sys.executable, "-c", HOLD, str(out)]
    other = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True)
    try:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(ConfigError, match="another training is running there"):
            train(RECIPE, dataset, out, resume=resume)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    finally:
        other.communicate()
    assert other.returncode == 0
    run = train(RECIPE, dataset, out, resume=resume)
    assert run.epochs == 2, "when the other has ended, the folder is free"


def after(steps: int, change: Callable[[Learner], Step | None]) -> Callable[..., Step]:
    """`take_step` that, after a number of right steps, calls `change` after every step.

    If `change` returns a step, that step is the result.
    """
    taken = 0

    def changed(learner: Learner, clips: Any, labels: Any, rate: float) -> Step:
        nonlocal taken
        taken += 1
        result = take_step(learner, clips, labels, rate)
        return (change(learner) or result) if taken > steps else result

    return changed


def spoil_weights(learner: Learner) -> None:
    weight = next(weight for weight in learner.model.parameters() if weight.requires_grad)
    with torch.no_grad():
        weight.fill_(math.nan)


OFTEN = dataclasses.replace(  # saves after every step
    RECIPE, train=dataclasses.replace(RECIPE.train, save_every_minutes=1e-9)
)


@pytest.fixture(scope="module")
def saved_often(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `OFTEN` that nothing disturbed."""
    return train(OFTEN, dataset, tmp_path_factory.mktemp("runs") / "run").folder


@pytest.mark.parametrize(
    "change", [spoil_weights, lambda learner: Step(math.nan, 8), lambda learner: Step(math.inf, 8)]
)
@pytest.mark.parametrize("steps", [1, 7])  # six to an epoch
def test_what_is_not_finite_is_noticed_where_it_would_be_saved_and_the_state_before_stays(
    change: Callable[[Learner], Step | None],
    steps: int,
    dataset: VideoDataset,
    saved_often: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "take_step", after(steps, change))
    with pytest.raises(ZeroI2VError, match=r"train\.learning_rate") as raised:
        train(OFTEN, dataset, tmp_path / "run")
    assert f"step {steps % 6 + 1}" in str(raised.value)
    monkeypatch.undo()
    run = train(OFTEN, dataset, tmp_path / "run", resume=True)
    for name in ("last.safetensors", "model.safetensors"):
        assert (run.folder / name).read_bytes() == (saved_often / name).read_bytes()


def test_an_interrupt_does_not_save_what_cannot_be_gone_on_from(
    dataset: VideoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(learner: Learner) -> None:
        spoil_weights(learner)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "take_step", after(7, stop))
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, dataset, tmp_path / "run")
    monkeypatch.undo()
    assert train(RECIPE, dataset, tmp_path / "run", resume=True).epochs == 2


@pytest.mark.parametrize("skipped", [1, 6])
def test_steps_that_fp16_skips_are_counted_and_a_run_of_nothing_else_is_no_success(
    skipped: int,
    dataset: VideoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = 0

    def skips(*arguments: Any) -> Step:
        nonlocal taken
        taken += 1
        result = take_step(*arguments)
        return Step(math.nan, result.clips, skipped=True) if taken <= skipped else result

    monkeypatch.setattr(training, "take_step", skips)
    if skipped == 6:
        with pytest.raises(ZeroI2VError, match=r"fp16 skipped all steps \(6\)"):
            train(RECIPE, dataset, tmp_path / "run")
        return
    run = train(RECIPE, dataset, tmp_path / "run", log=Log())
    entry = (run.folder / "log.jsonl").read_text().splitlines()[0]
    assert '"skipped_steps": 1' in entry
    assert '"clips": 40' in entry
    assert "1 of 6 steps skipped (fp16 overflow)" in capsys.readouterr().err


def test_a_step_of_fp16_that_overflows_moves_no_weight_and_says_so() -> None:
    """Warnings are errors here: PyTorch warns of a scheduler that moves before the optimiser."""
    model = small_model("zeroi2v_tiny").train()
    settings = TrainConfig(precision="fp16")
    learner = Learner(
        Processes(torch.device("cpu")),
        model,
        model.spec,
        build_optimizer(model, learning_rate=1e-3, weight_decay=0.0),
        torch.amp.GradScaler("cpu", init_scale=2.0**30),
        settings,
    )
    before = model.classifier.weight.clone()
    clip = (random_clip(model) * 64 + 128).clamp(0, 255).to(torch.uint8)
    step = take_step(learner, clip, torch.tensor([0, 1]), 1e-3)
    assert step.skipped
    assert torch.equal(model.classifier.weight, before)


def test_the_paths_of_a_run_are_absolute(
    dataset: VideoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("")
    first = train(RECIPE, dataset, Path("first"))
    settings = dataclasses.replace(RECIPE.train, start_from="first", exclude="list.txt")
    begun = dataclasses.replace(RECIPE, train=settings)
    undisturbed = train(begun, dataset, tmp_path / "whole")
    with interrupted_after(8):
        train(begun, dataset, Path("run"))
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    assert recipe.train.start_from == str(tmp_path / "first")
    assert recipe.train.exclude == str(tmp_path / "list.txt")
    shutil.rmtree(first.folder)  # the weights that the run started from are in resume.pt
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = train(recipe, dataset, tmp_path / "run", resume=True)
    weights = [
        (folder / "last.safetensors").read_bytes() for folder in (run.folder, undisturbed.folder)
    ]
    assert weights[0] == weights[1]


def test_names_on_the_hub_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(
        model=ModelConfig(weights="weights.pth"),
        data=DataConfig(videos="videos", classes="classes.txt"),
        train=TrainConfig(start_from="user/model", exclude="list.txt"),
    )
    (tmp_path / "weights.pth").touch()
    moved = absolute_paths(recipe)
    assert moved.model.weights == str(tmp_path / "weights.pth")
    assert moved.data.videos == str(tmp_path / "videos")
    assert moved.data.classes == str(tmp_path / "classes.txt")
    assert moved.train.exclude == str(tmp_path / "list.txt")
    assert moved.train.start_from == "user/model"
    assert absolute_paths(Recipe()) == Recipe()
    assert absolute_paths(moved) == moved


DROPPING = dataclasses.replace(RECIPE, model=ModelConfig(adapter_dropout=0.1))


@pytest.fixture(scope="module")
def whole(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `DROPPING` that nothing disturbed."""
    return train(DROPPING, dataset, tmp_path_factory.mktemp("runs") / "run").folder


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_in_the_middle_of_a_step_waits_for_the_end_of_the_step(
    moment: str,
    dataset: VideoDataset,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, step = 0, take_step

    def interrupted(*arguments: Any) -> Step:
        nonlocal taken
        taken += 1
        if taken == 8 and moment == "before":
            signal.raise_signal(signal.SIGINT)
        result = step(*arguments)
        if taken == 8 and moment == "after":
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(training, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(DROPPING, dataset, tmp_path / "run")
    assert taken == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = train(DROPPING, dataset, tmp_path / "run", resume=True)
    for name in ("last.safetensors", "model.safetensors"):
        assert (run.folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_second_ctrl_c_comes_at_once() -> None:
    came = []

    def press_twice() -> None:
        with undivided():
            signal.raise_signal(signal.SIGINT)
            came.append("after the first")
            signal.raise_signal(signal.SIGINT)
            came.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert came == ["after the first"]
