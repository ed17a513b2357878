"""Do folders that version 0.1.0 wrote still load, and do runs of 0.1.0 go on?

The expected logits come from version 0.1.0.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import zeroi2v
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
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
