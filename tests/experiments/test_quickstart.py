"""The quickstart from end to end: small, and (slow) at full size with the promised figures."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest

import zeroi2v
from zeroi2v.config import Recipe
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.synthetic import PAIRS
from zeroi2v.errors import ConfigError
from zeroi2v.experiments import quickstart
from zeroi2v.inference.evaluate import evaluate

full_recipe = quickstart.recipe


def short_recipe(seed: int) -> Recipe:
    recipe = full_recipe(seed)
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=1))


def test_a_small_quickstart_writes_everything_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "VIDEOS", {"train": 16, "val": 16, "test": 16})
    monkeypatch.setattr(quickstart, "recipe", short_recipe)
    short = functools.partial(quickstart.measure_latency, clips=2, rounds=3)
    monkeypatch.setattr(quickstart, "measure_latency", short)
    out = tmp_path / "quickstart"
    result = quickstart.run(out, seed=3)
    assert json.loads((out / "result.json").read_text()) == {
        **result,
        "seconds": json.loads((out / "result.json").read_text())["seconds"],
    }
    assert "<html" in (out / "report.html").read_text()
    assert result["merge"]["clips"] == result["merge"]["same_answers"] == 16
    assert result["merge"]["largest_logit_difference"] <= 1e-4
    cost = result["cost"]
    beside = cost["classifier_params"] + cost["temporal_embedding_params"]
    assert cost["merged"]["params"] == cost["tower"]["params"] + beside
    assert cost["merged_keys_equal_tower"]
    merged = zeroi2v.load(out / "merged")
    assert zeroi2v.cost(merged).extra_gmacs == 0
    found = evaluate(merged, open_dataset(out / "videos").splits["test"])
    assert quickstart.accuracy(found, merged.labels) == result["adapted"]
    (out / "mine.txt").write_text("kept")
    again = quickstart.run(out, seed=3)
    assert again["adapted"] == result["adapted"], "the same seed gives the same figures"
    assert again["curve"] == result["curve"]
    assert (out / "mine.txt").read_text() == "kept"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not from a quickstart"):
        quickstart.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_quickstart_learns_what_an_order_blind_probe_cannot(tmp_path: Path) -> None:
    result = quickstart.run(tmp_path / "quickstart", seed=11)
    assert result["videos"]["test"] >= 400
    assert result["adapted"]["top1"] >= 0.9
    assert result["probe"]["top1"] <= 0.55
    assert set(result["probe"]["within_pairs"]) == {f"{one}/{other}" for one, other in PAIRS}
    assert all(0.44 <= share <= 0.56 for share in result["probe"]["within_pairs"].values())
