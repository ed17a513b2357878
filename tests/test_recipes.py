"""Every recipe describes its row of the paper, and can train a small tower in place of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch

import zeroi2v
from tests.videos_for_tests import blocks_dataset
from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.engine.run import train
from zeroi2v.files import read_json_lines
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.method.strategies import STRATEGIES
from zeroi2v.recipes import read_recipe

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
every_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    """Two training videos and one validation video, of two classes; six frames each."""
    return blocks_dataset(tmp_path_factory.mktemp("videos"), train=2, val=1, frames=6)


def small(recipe: Recipe) -> Recipe:
    """The recipe with the embedded tower, for one epoch."""
    model = dataclasses.replace(recipe.model, tower="zeroi2v_tiny", pretrained=False)
    return dataclasses.replace(
        recipe,
        model=model,
        train=dataclasses.replace(recipe.train, epochs=1, workers=0, warmup_epochs=0.5),
    )


@every_recipe
def test_a_recipe_takes_a_training_and_an_evaluation_step(
    path: Path, dataset: VideoDataset, tmp_path: Path
) -> None:
    recipe = small(read_recipe(path))
    run = train(recipe, dataset, tmp_path / "run")
    (entry,) = read_json_lines(run.folder / "log.jsonl")
    assert entry["clips"] == 2
    assert 0 < entry["loss"] < 2
    model = zeroi2v.load(run.folder)
    adapted = evaluate(model, dataset.val)
    assert adapted.logits.shape == (1, recipe.views.clips * recipe.views.crops, 2)
    merged = evaluate(model.merge(), dataset.val)
    torch.testing.assert_close(merged.logits, adapted.logits, rtol=1e-3, atol=1e-4)


@every_recipe
def test_a_recipe_is_short_and_its_tower_is_there(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25
    recipe = read_recipe(path)
    name, _, tag = recipe.model.tower.partition(".")
    assert name in zeroi2v.supported_towers()
    assert tag in [known.partition(".")[2] for known in timm.list_pretrained(name)]
    data, tower, *_ = path.stem.split("-")
    assert recipe.data.format == {"k400": "kinetics"}.get(data, data)
    assert {"vit": "vit", "swin": "swin"}[tower] in name
    assert f"-{recipe.clip.frames}f" in path.stem


@every_recipe
def test_a_recipe_is_what_table_7_says(path: Path) -> None:
    recipe, data = read_recipe(path), path.stem.partition("-")[0]
    settings, pixels = recipe.train, recipe.pixels
    assert (settings.batch_size, settings.weight_decay, pixels.flip) == (64, 0.05, 0.5)
    assert pixels.crop_area == (0.08, 1.0), "as in the official configurations"
    full = recipe.model.strategy == "full"  # Video Swin's rule: 3e-5 for the tower, 3e-4 else
    share = STRATEGIES[recipe.model.strategy].learning_rate_shares.get("tower")
    assert share == (0.1 if full else None)
    assert (settings.learning_rate, settings.learning_rate_shares) == (3e-4, {})
    assert settings.epochs == (60 if full else 50 if data == "ssv2" else 40)
    assert (pixels.augment_operations, pixels.augment_magnitude) == (4, 7)
    assert (pixels.erase, settings.label_smoothing) == ((0.25, 0.1) if data == "ssv2" else (0, 0))
    assert (recipe.views.clips, recipe.views.crops) == ((3, 1) if data == "k400" else (1, 3))
    if data == "k400":
        assert (recipe.clip.sampling, recipe.clip.stride) == (
            "dense",
            {8: 16, 16: 8, 32: 4}[recipe.clip.frames],
        )
    else:
        assert recipe.clip.sampling == "segment"
