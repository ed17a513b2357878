"""Do folders of format 1 still load, and do runs of that time go on?

The expected logits come from the code that wrote format 1.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v.config import CHANGED_STRATEGIES, ModelConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
from zeroi2v.errors import CheckpointError
from zeroi2v.method.strategies import RULES_0_1_0, STRATEGIES
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import model_recipe, start_from
from zeroi2v.models.older import as_trained
from zeroi2v.recipes import RECIPE_FILE, changed, override, read_recipe, read_run_recipe

SAVED = Path(__file__).with_name("saved")
TOWER = "vit_base_patch16_clip_quickgelu_224"  # of the saved peers
OLD: dict[str, Any] = {
    "tower_options": {
        "img_size": 16,
        "patch_size": 8,
        "depth": 1,
        "embed_dim": 8,
        "num_heads": 2,
    }
}
PEERS = ["evl", "aim", "st_adapter", "st_adapter_published", "joint"]


@pytest.mark.parametrize("name", ["run", "merged", "six-heads", "shift", *PEERS])
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


def test_heads_that_0_1_0_chose_by_its_rule_stay_as_they_were_trained(tmp_path: Path) -> None:
    one_sided = ((-1, 0, 0, 0, 0, 0),) * 2
    folder = SAVED / "six-heads-0.1.0"
    assert json.loads((folder / "config.json").read_text())["model"]["heads"] is None
    model = zeroi2v.load(folder)
    assert model.heads == model.merge().heads == one_sided
    assert build_model(model_recipe(folder).model, labels="ab", clip=model.clip).heads == one_sided
    new = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=3, frames=4, tower_options=model.spec.model.tower_options
    )
    assert new.heads == ((-1, 1, 0, 0, 0, 0),) * 2
    new.save_pretrained(tmp_path)
    loaded = zeroi2v.load(tmp_path)
    assert (loaded.heads, loaded.spec.model.heads) == (new.heads, None)


def test_a_channel_shift_of_0_1_0_moves_the_channels_that_it_moved() -> None:
    model = zeroi2v.load(SAVED / "shift-0.1.0")
    (split, *_), *_ = model.heads
    assert split == ((-1, Fraction(2, 10)), (1, Fraction(1, 10)), (0, Fraction(7, 10)))


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"tower": "vit_base_patch16_224"}, True),
        ({"tower": "vit_base_patch16_224", "heads": "ssv2"}, True),
        ({"tower": "vit_base_patch16_224", "operator": "shift_kv", "ratio": 0.25}, True),
        ({"tower": "vit_base_patch16_224", "operator": "cls_shift", "ratio": 0.25}, True),
        ({"tower": "vit_small_patch16_224", "ratio": 1 / 6}, True),
        ({"tower": "vit_small_patch16_224", "strategy": "aim"}, True),
        ({"tower": "vit_small_patch16_224", "heads": (-1, 1)}, True),
        ({"tower": "vit_small_patch16_224", "heads": ("ssv2",) * 12}, False),
        ({"tower": "vit_tiny_patch16_224"}, False),
        ({"tower": "swin_tiny_patch4_window7_224"}, False),
        ({"tower": "vit_base_patch16_224", "operator": "shift_qkv", "ratio": 1 / 6}, False),
        ({"tower": "vit_base_patch16_224", "heads": "-1*1/3, 1*1/3, 2*1/3"}, False),
    ],
)
def test_settings_of_0_1_0_change_only_where_they_would_mean_something_else(
    settings: dict[str, Any], same: bool
) -> None:
    config = ModelConfig(**settings)
    assert (as_trained(config, 8) == config) == same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"operator": "cls_shift", "ratio": 0.1},
            "5 that read the frame after; this version moves 4",
        ),
        (
            {"tower": "efficientformer_l1", "operator": "shift_kv", "ratio": 1 / 6},
            "32 channels of keys and 128 of values",
        ),
    ],
)
def test_channels_of_0_1_0_that_this_version_cannot_move_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        as_trained(ModelConfig(**settings), 8)


def test_a_run_begun_by_0_1_0_goes_on(motion_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(SAVED / "run-0.1.0", tmp_path / "run")
    recipe = override(read_recipe(tmp_path / "run" / RECIPE_FILE), ["train.epochs=2"])
    run = train(recipe, open_dataset(motion_videos), tmp_path / "run", resume=True)
    assert run.epochs == 2
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("name", PEERS)
def test_a_strategy_of_0_1_0_keeps_its_rules_and_a_new_model_has_the_rules_of_today(
    name: str, tmp_path: Path
) -> None:
    old = zeroi2v.load(SAVED / f"{name}-0.1.0")
    assert old.spec.model.strategy_rules == "0.1.0"
    assert old.plan.strategy == RULES_0_1_0[name] != STRATEGIES[name]
    assert not old.dropout.p
    new = zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4, strategy=name)
    assert new.plan.strategy == STRATEGIES[name]
    new.save_pretrained(tmp_path)
    assert zeroi2v.load(tmp_path).plan.strategy == STRATEGIES[name]


def test_the_strategies_with_other_rules_are_those_that_a_saved_folder_is_asked_for() -> None:
    assert {*CHANGED_STRATEGIES} == {*RULES_0_1_0}


def test_a_run_of_full_fine_tuning_begun_by_0_1_0_goes_on_with_its_learning_rates(
    motion_videos: Path, tmp_path: Path
) -> None:
    """The whole model took a tenth of the learning rate, the classifier too."""
    shutil.copytree(SAVED / "run-full-0.1.0", tmp_path / "run")
    weights = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["weights"]
    recipe = changed(read_run_recipe(tmp_path / "run"), {"train.epochs": 2})
    assert recipe.model.strategy_rules == "0.1.0"
    run = train(recipe, open_dataset(motion_videos), tmp_path / "run", resume=True)
    assert run.epochs == 2
    after = load_file(tmp_path / "run" / "last.safetensors")
    # The rates of the three steps of the second epoch are 1.5 times the highest rate together.
    moved = (after["classifier.weight"] - weights["classifier.weight"]).abs().max()
    assert 0 < moved < 2 * 1.5 * 0.1 * recipe.train.learning_rate


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


def test_a_peer_of_0_1_0_is_not_trained_on_under_other_rules(tmp_path: Path) -> None:
    settings = {**OLD, "strategy": "evl", "num_classes": 3, "frames": 4}
    with pytest.raises(CheckpointError, match=r"strategy_rules 0\.1\.0, not authors"):
        start_from(zeroi2v.create_model(TOWER, **settings), SAVED / "evl-0.1.0")
    start_from(zeroi2v.create_model(TOWER, **settings, strategy_rules="0.1.0"), SAVED / "evl-0.1.0")


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
