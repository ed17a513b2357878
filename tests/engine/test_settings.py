"""Does every setting of a recipe reach the training run?

A changed setting changes the weights. Where a formula says how, the weights follow the formula.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zeroi2v
from tests.videos_for_tests import blocks_dataset
from zeroi2v.config import ClipConfig, ModelConfig, PixelsConfig, Recipe, TrainConfig, ViewsConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.loader import train_loader
from zeroi2v.engine import run as training
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.run import Run, train
from zeroi2v.engine.step import Step, take_step
from zeroi2v.files import read_json_lines
from zeroi2v.inference.evaluate import Evaluation, evaluate
from zeroi2v.inference.scores import normalise
from zeroi2v.log import Log
from zeroi2v.models.build import build_model

RECIPE = Recipe(
    model=ModelConfig(pretrained=False, tower_options={"depth": 2}),
    clip=ClipConfig(frames=4),
    pixels=PixelsConfig(flip=0.5),
    train=TrainConfig(
        epochs=1, batch_size=2, warmup_epochs=0.5, workers=0, precision="fp32", save_every_minutes=0
    ),
)
# A setting -> a value with which a run ends with other weights.
CHANGES: dict[str, Any] = {
    "model.heads": (),
    "model.ratio": 0.5,
    "model.operator": "hr_qkv",
    "model.strategy": "gelu_adapter",
    "model.sites": ("qkv",),
    "model.adapted_blocks": 1,
    "model.adapter_ratio": 0.5,
    "model.adapter_scale": 0.5,
    "model.adapter_dropout": 0.5,
    "model.classifier_dropout": 0.5,
    "model.drop_path": 0.9,
    "model.decoder_layers": 1,
    "model.strategy_rules": "0.1.0",
    "model.temporal_embedding": "zero",
    "model.tubelet": 2,
    "model.tower_options": {"depth": 1},
    "clip.frames": 2,
    "clip.sampling": "dense",
    "clip.stride": 1,
    "pixels.crop_area": (0.9, 1.0),
    "pixels.crop_aspect": (1.0, 1.0),
    "pixels.flip": 0.0,
    "pixels.flip_pairs": (("left", "right"),),
    "pixels.augment_operations": 14,
    "pixels.augment_magnitude": 10.0,
    "pixels.augment_jitter": 5.0,
    "pixels.augment_probability": 0.5,
    "pixels.augment_place": "after_flip",
    "pixels.erase": 1.0,
    "pixels.erase_fill": "grey",
    "pixels.erase_area": (0.5, 0.5),
    "pixels.erase_aspect": (1.0, 1.0),
    "train.epochs": 2,
    "train.batch_size": 3,
    "train.learning_rate": 1e-2,
    "train.learning_rate_shares": {"classifier": 0.5},
    "train.weight_decay": 0.5,
    "train.warmup_epochs": 0.0,
    "train.warmup_start": 0.5,
    "train.label_smoothing": 0.1,
    "train.gradient_clip": 1e-6,
    "train.precision": "bf16",
    "train.seed": 1,
    "train.token_share": 0.5,
    "train.few_frames": 2,
    "train.few_frames_epochs": 2,
}
# A setting -> the other settings without which the setting has no effect.
BASES: dict[str, dict[str, Any]] = {
    "clip.stride": {"clip.sampling": "dense", "clip.stride": 2},
    "model.ratio": {"model.ratio": 0.25},
    # The branches of AIM are zero in the first step.
    "model.drop_path": {"model.strategy": "aim", "train.epochs": 2},
    "model.decoder_layers": {"model.strategy": "evl"},
    "model.strategy_rules": {"model.strategy": "full"},
    "train.few_frames": {"train.few_frames": 3, "train.few_frames_epochs": 1},
    "train.few_frames_epochs": {
        "train.epochs": 2,
        "train.few_frames": 2,
        "train.few_frames_epochs": 1,
    },
    **{
        f"pixels.augment_{name}": {
            "pixels.augment_operations": 4,
            "pixels.augment_probability": 1.0,
        }
        for name in ("operations", "magnitude", "jitter", "probability", "place")
    },
    **{f"pixels.erase_{name}": {"pixels.erase": 1.0} for name in ("fill", "area", "aspect")},
}
# Settings that say where weights or videos come from, or that change no weight: for other tests.
ELSEWHERE = {
    *(
        "model.tower",
        "model.pretrained",
        "model.weights",
        "train.start_from",
        "views.clips",
        "views.crops",
    ),
    *(
        "train.validate_every",
        "train.patience",
        "train.accumulate",
        "train.compile",  # changes nothing on a CPU
        "train.workers",
        "train.broken",
    ),
    *(
        "train.save_every_minutes",
        "train.exclude",
        "train.checkpointing",
        "train.sharding",
        "train.tensorboard",
        "clip.decoder",
    ),
    *("data.format", "data.split", "data.videos", "data.classes", "data.multi_label"),
    *("data.leave_out", "data.directions"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    """Four training videos and one validation video, of two classes.

    Each video has twelve frames of coloured blocks, 64 by 48 pixels.
    """
    return blocks_dataset(tmp_path_factory.mktemp("videos"), train=4, val=1, frames=12)


def without_validation(dataset: VideoDataset) -> VideoDataset:
    return dataclasses.replace(dataset, splits={**dataset.splits, "val": ()})


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    parts = {
        table: dataclasses.replace(getattr(recipe, table), **settings)
        for table, settings in tables.items()
    }
    return dataclasses.replace(recipe, **parts)


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "last.safetensors")


@pytest.fixture(scope="module")
def plain(
    dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    return last_weights(
        train(RECIPE, without_validation(dataset), tmp_path_factory.mktemp("plain") / "run")
    )


@pytest.mark.parametrize("setting", CHANGES)
def test_a_changed_setting_changes_the_run(
    setting: str, dataset: VideoDataset, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    videos = without_validation(dataset)
    if setting in BASES:
        plain = last_weights(train(changed(RECIPE, BASES[setting]), videos, tmp_path / "plain"))
    recipe = changed(RECIPE, {**BASES.get(setting, {}), setting: CHANGES[setting]})
    weights = last_weights(train(recipe, videos, tmp_path / "run"))
    assert weights.keys() != plain.keys() or any(
        not torch.equal(weights[key], plain[key]) for key in plain
    )


def test_the_same_settings_give_the_same_run(
    dataset: VideoDataset, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Otherwise `test_a_changed_setting_changes_the_run` would prove nothing."""
    again = last_weights(train(RECIPE, without_validation(dataset), tmp_path / "run"))
    assert all(torch.equal(again[key], plain[key]) for key in plain)


def test_every_setting_is_listed() -> None:
    assert {*CHANGES} | ELSEWHERE == {
        f"{table}.{setting}"
        for table, settings in dataclasses.asdict(RECIPE).items()
        for setting in settings
    }


def test_checkpointing_changes_no_weight(
    dataset: VideoDataset, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    recipe = changed(RECIPE, {"train.checkpointing": True})
    weights = last_weights(train(recipe, without_validation(dataset), tmp_path / "run"))
    for name, weight in plain.items():
        torch.testing.assert_close(weights[name], weight, msg=name)


def test_a_run_that_begins_with_few_frames_ends_with_all(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    seen: list[int] = []

    def noted(learner: Any, clips: torch.Tensor, labels: torch.Tensor, rate: float) -> Step:
        seen.append(clips.shape[1])
        return take_step(learner, clips, labels, rate)

    settings = {
        "train.epochs": 3,
        "train.few_frames": 2,
        "train.few_frames_epochs": 1,
        "train.batch_size": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "take_step", noted)
        # The run validates after each epoch, on all frames.
        run = train(changed(RECIPE, settings), dataset, tmp_path / "run")
    assert seen == [2, 4, 4]
    assert zeroi2v.load(run.folder).frames == 4


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"train.warmup_epochs": 0.0}, 1.0),
        ({"train.warmup_epochs": 1.0}, 0.1),
        ({"train.warmup_epochs": 1.0, "train.warmup_start": 0.25}, 0.25),
        ({"train.warmup_epochs": 0.0, "train.learning_rate_shares": {"adapters": 0.5}}, 1.0),
        (
            {
                "train.warmup_epochs": 1.0,
                "train.learning_rate_shares": {"temporal_embedding": 0.5},
            },
            0.05,
        ),
        ({"train.warmup_epochs": 0.0, "model.strategy": "full"}, 0.1),
        ({"train.warmup_epochs": 1.0, "model.strategy": "full"}, 0.01),
    ],
)
def test_the_first_step_is_as_long_as_its_learning_rate(
    settings: dict[str, Any], share: float, dataset: VideoDataset, tmp_path: Path
) -> None:
    """AdamW's first step moves a weight by learning_rate * g / (|g| + 1e-8).

    The temporal embedding has no weight decay, so nothing else moves it.
    """
    recipe = changed(RECIPE, {"train.batch_size": 4, "train.learning_rate": 2e-3, **settings})
    run = train(recipe, without_validation(dataset), tmp_path / "run")
    moved = last_weights(run)["temporal_embedding"].abs().max()
    torch.testing.assert_close(moved, torch.tensor(2e-3 * share), rtol=1e-2, atol=0)


FIRST_STEP = {
    "train.batch_size": 4,
    "train.learning_rate": 2e-3,
    "train.warmup_epochs": 0.0,
    "train.weight_decay": 0.0,
}


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, {"tower": 1.0, "adapters": 1.0, "temporal_embedding": 1.0, "classifier": 1.0}),
        # The rule of the authors' configurations for ViT-L.
        (
            {
                "train.learning_rate_shares": {
                    "tower": 0.1,
                    "adapters": 0.1,
                    "temporal_embedding": 0.1,
                }
            },
            {"tower": 0.1, "adapters": 0.1, "temporal_embedding": 0.1, "classifier": 1.0},
        ),
        (
            {"model.strategy": "full"},
            {"tower": 0.1, "temporal_embedding": 0.1, "classifier": 1.0},
        ),
        (
            {"model.strategy": "joint", "train.learning_rate_shares": {"tower": 0.5}},
            {"tower": 0.5, "temporal_embedding": 0.1, "classifier": 1.0},
        ),
        (
            {"model.strategy": "full", "model.strategy_rules": "0.1.0"},
            {"tower": 0.1, "temporal_embedding": 0.1, "classifier": 0.1},
        ),
    ],
    ids=str,
)
def test_each_part_of_a_model_moves_by_its_share_of_the_learning_rate(
    settings: dict[str, Any],
    shares: dict[str, float],
    dataset: VideoDataset,
    tmp_path: Path,
) -> None:
    recipe = changed(RECIPE, {**FIRST_STEP, **settings})
    torch.manual_seed(recipe.train.seed)
    clip = recipe.clip
    before = build_model(recipe.model, labels=dataset.classes, clip=clip).state_dict()
    after = last_weights(train(recipe, without_validation(dataset), tmp_path / "run"))
    moved: dict[str, float] = dict.fromkeys(shares, 0.0)
    for name, weight in after.items():
        part = name.partition(".")[0]
        if part in moved:
            length = (weight - before[name]).abs().max().item()
            moved[part] = max(moved[part], length)
    assert moved == pytest.approx({part: 2e-3 * share for part, share in shares.items()}, rel=0.02)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_smoothed_cross_entropy(
    smoothing: float, dataset: VideoDataset, tmp_path: Path
) -> None:
    """(1 - s) * -log p(label) + s * the mean of -log p over all classes, with smoothing s.

    The model of this test hardly moves.
    """
    settings = {
        "train.batch_size": 4,
        "train.learning_rate": 1e-12,
        "train.label_smoothing": smoothing,
    }
    recipe = changed(RECIPE, settings)
    run = train(recipe, without_validation(dataset), tmp_path / "run")
    model = zeroi2v.load(run.folder)
    loader = train_loader(
        dataset.train,
        clip=recipe.clip,
        pixels=recipe.pixels,
        size=model.image_size,
        labels=dataset.classes,
        batch_size=4,
        seed=0,
        workers=0,
        broken="stop",
    )
    ((clips, labels),) = loader.epoch(1)
    with torch.no_grad():
        surprise = -model(normalise(clips, *model.normalisation)).double().log_softmax(-1)  # (B, K)
    own = surprise[torch.arange(4), labels]
    by_hand = ((1 - smoothing) * own + smoothing * surprise.mean(1)).mean().item()
    assert abs(own.mean().item() - surprise.mean().item()) > 1e-4, (
        "with equal losses, smoothing would change nothing"
    )
    assert read_json_lines(run.folder / "log.jsonl")[0]["loss"] == pytest.approx(by_hand, rel=1e-6)


def test_a_temporal_embedding_that_is_to_be_zero_stays_zero(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    run = train(
        changed(RECIPE, {"model.temporal_embedding": "zero"}),
        without_validation(dataset),
        tmp_path / "run",
    )
    assert not zeroi2v.load(run.folder).temporal_embedding.any()


@pytest.mark.parametrize(
    ("settings", "validated", "best"),
    [
        ({"train.epochs": 3}, [1, 2, 3], 3),  # as good as the epochs before it: the later one wins
        ({"train.epochs": 4, "train.validate_every": 3}, [3, 4], 4),
        ({"train.epochs": 3, "train.validate_every": 5}, [3], 3),
        ({"train.epochs": 5, "train.patience": 1}, [1, 2], 2),
        ({"train.epochs": 5, "train.patience": 2}, [1, 2, 3], 3),
        ({"train.epochs": 6, "train.validate_every": 2, "train.patience": 1}, [2, 4], 4),
    ],
)
def test_the_epochs_that_are_validated_and_the_best_of_equal_ones(
    settings: dict[str, Any], validated: list[int], best: int, dataset: VideoDataset, tmp_path: Path
) -> None:
    """The model hardly moves, so every validation gives the same figure."""
    recipe = changed(RECIPE, {"train.learning_rate": 1e-12, "train.batch_size": 4, **settings})
    run = train(recipe, dataset, tmp_path / "run")
    log = read_json_lines(run.folder / "log.jsonl")
    assert [entry["epoch"] for entry in log if "top1" in entry] == validated
    assert len({entry["top1"] for entry in log if "top1" in entry}) == 1
    assert (run.best_epoch, run.epochs) == (best, validated[-1])
    assert zeroi2v.load(run.folder).spec.results["epoch"] == best


def test_validation_and_the_saved_model_have_the_views_and_clips_of_the_recipe(
    dataset: VideoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations: list[Evaluation] = []

    def noting(*arguments: Any, **options: Any) -> Evaluation:
        evaluations.append(evaluate(*arguments, **options))
        return evaluations[-1]

    monkeypatch.setattr(training, "evaluate", noting)
    views, clip = ViewsConfig(clips=2, crops=3), ClipConfig(frames=2, sampling="dense", stride=3)
    run = train(dataclasses.replace(RECIPE, views=views, clip=clip), dataset, tmp_path / "run")
    assert [evaluation.logits.shape for evaluation in evaluations] == [(1, 6, 2)]
    model = zeroi2v.load(run.folder)
    assert (model.views, model.clip, model.frames) == (views, clip, 2)
    torch.testing.assert_close(evaluate(model, dataset.val).logits, evaluations[0].logits)


@pytest.mark.parametrize(
    ("model", "far"),
    [
        ({"heads": (100,)}, "offset 100"),
        ({"heads": (-1, 4, -4)}, "offsets -4, 4"),
        ({"heads": ((-9, 1), None)}, "offset -9"),
        ({"heads": "-1*1, 3*1/2"}, None),
        ({"heads": None}, None),
        ({"operator": "shift_kv", "ratio": 0.5}, None),
    ],
    ids=str,
)
def test_an_offset_that_no_frame_of_a_clip_can_follow_is_warned_of(
    model: dict[str, Any],
    far: str | None,
    dataset: VideoDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A clip has 4 frames, so the farthest frame is 3 away."""
    config = dataclasses.replace(RECIPE.model, **model)
    train(dataclasses.replace(RECIPE, model=config), dataset, tmp_path / "run", log=Log())
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: heads" in line]
    expected = f"warning: heads: the {far} would leave a clip of 4 frames from every frame, so "
    assert len(lines) == (far is not None)
    assert all(line.startswith(expected) for line in lines)


def test_without_a_gpu_the_log_says_that_compile_has_no_effect(
    dataset: VideoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(RECIPE.train, compile=True)
    processes = Processes(torch.device("cpu"))
    recipe = dataclasses.replace(RECIPE, train=settings)
    train(recipe, dataset, tmp_path / "run", processes=processes, log=Log())
    assert (
        "train.compile: steps are computed operation by operation: only a GPU has CUDA graphs\n"
    ) in capsys.readouterr().err
