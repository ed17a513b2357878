"""Do folders that version 0.1.0 wrote still load, and do runs of 0.1.0 go on?

The expected logits come from version 0.1.0.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
from zeroi2v.errors import CheckpointError
from zeroi2v.models.loading import start_from
from zeroi2v.recipes import RECIPE_FILE, override, read_recipe

SAVED = Path(__file__).with_name("saved")


@pytest.mark.parametrize("name", ["run", "merged"])
def test_a_model_saved_by_0_1_0_gives_the_logits_it_gave(name: str, tmp_path: Path) -> None:
    model = zeroi2v.load(SAVED / f"{name}-0.1.0")
    size = model.image_size
    clip = torch.randn(2, 4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(json.loads((SAVED / "logits.json").read_text())[name])
    torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-6)
    assert model.spec.merged == (name == "merged")
    model.save_pretrained(tmp_path / "again")
    again = zeroi2v.load(tmp_path / "again")
    assert again.spec == model.spec
    assert torch.equal(again(clip), model(clip))


def test_a_run_begun_by_0_1_0_goes_on(motion_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(SAVED / "run-0.1.0", tmp_path / "run")
    recipe = override(read_recipe(tmp_path / "run" / RECIPE_FILE), ["train.epochs=2"])
    run = train(recipe, open_dataset(motion_videos), tmp_path / "run", resume=True)
    assert run.epochs == 2
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_scale": 0.5}, "adapter_scale 1.0, not 0.5"),
        ({"operator": "hr_qkv"}, "operator stdha, not hr_qkv"),
        ({"strategy": "gelu_adapter"}, "strategy zeroi2v, not gelu_adapter"),
    ],
)
def test_weights_are_not_started_from_where_they_would_mean_something_else(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = small_model("zeroi2v_tiny")
    source.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        start_from(small_model("zeroi2v_tiny", **settings), tmp_path)
    start_from(small_model("zeroi2v_tiny"), tmp_path)


def test_weights_are_not_started_from_on_another_frozen_tower(tmp_path: Path) -> None:
    model, other = (
        zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4, pretrained=True)
        for _ in range(2)
    )
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        other.tower.get_parameter("blocks.0.attn.qkv.weight").mul_(1.5)
    with pytest.raises(CheckpointError, match="has other weights than"):
        start_from(other, tmp_path)
