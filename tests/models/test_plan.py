"""A plan follows from its four fields, and stays itself where models are copied and sent."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import Counter
from typing import Any

import pytest

import zeroi2v
from zeroi2v.config import ModelConfig
from zeroi2v.errors import ConfigError, HeadsError
from zeroi2v.method.relocate import Relocation
from zeroi2v.models.plan import Plan
from zeroi2v.models.survey import survey
from zeroi2v.models.towers import TowerSource

SETTINGS: list[dict[str, Any]] = [
    {},
    {"strategy": "lora", "adapted_blocks": 2},
    {"operator": "cls_shift", "ratio": 0.25},
    {"strategy": "temporal_heads"},
    {"strategy": "evl"},
]


def plan_of(**settings: Any) -> Plan:
    return zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=8, **settings).plan


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_copied_plan_is_equal_and_has_the_same_blocks(settings: dict[str, Any]) -> None:
    plan = plan_of(**settings)
    copies = (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), dataclasses.replace(plan))
    for other in copies:
        assert other == plan
        assert other.blocks == plan.blocks
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.num_classes = 4  # type: ignore[misc]  # this is what the test tries


def test_a_replaced_field_is_resolved_as_in_a_new_plan() -> None:
    plan = plan_of()
    config = dataclasses.replace(plan.config, heads=(-1,), strategy="lora", adapted_blocks=1)
    changed = dataclasses.replace(plan, config=config, clip_frames=32)
    expected = zeroi2v.create_model(
        "zeroi2v_tiny",
        num_classes=3,
        frames=32,
        heads=[-1],
        strategy="lora",
        adapted_blocks=1,
    ).plan
    assert changed == expected != plan
    assert (changed.blocks, changed.frames) == (expected.blocks, 32)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"strategy": "none"}, ConfigError),
        ({"sites": ("middle",)}, ConfigError),
        ({"adapted_blocks": 9}, ConfigError),
        ({"tubelet": 3}, ConfigError),
        ({"operator": "cls_shift", "ratio": 1e-5}, ConfigError),
        ({"strategy": "temporal_heads", "heads": ()}, ConfigError),
        ({"strategy": "aim", "heads": (-1,)}, ConfigError),
        ({"heads": (-1,) * 13}, HeadsError),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_when_the_plan_is_made(
    settings: dict[str, Any], error: type[Exception]
) -> None:
    source = TowerSource(name="zeroi2v_tiny", pretrained=False, weights=None, options={}, tubelet=1)
    config = ModelConfig(tower=source.name, **settings)
    anatomy = survey(source.open(), source.name)
    with pytest.raises(error):
        Plan(config, anatomy, 8, num_classes=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operator": "shift_kv", "ratio": 1 / 6}, "shares of a head round to 0 of 8 channels"),
        ({"operator": "shift_qkv", "ratio": 0.05}, "give ratio at least 0.25"),
        ({"operator": "cls_shift", "ratio": 0.02}, "shares of a token round to 0 of 96 channels"),
        ({"heads": "-1*1/50"}, "give larger shares"),
        ({"heads": "-1*1/2, 1*1/10"}, "give larger shares"),
        ({"ratio": 0.01}, "give larger shares"),
    ],
)
def test_shares_that_move_no_channel_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadsError, match=message) as caught:
        zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operator", ["shift_v", "shift_kv", "shift_qkv"])
def test_a_sixth_of_64_channels_is_5_back_and_5_ahead(operator: str) -> None:
    model = zeroi2v.create_model(
        "vit_tiny_patch16_224",
        num_classes=2,
        operator=operator,
        ratio=1 / 6,
        tower_options={"depth": 1},
    )
    (block,) = model.plan.blocks
    offsets = Relocation(block.block.layout, block.moves, model.plan.moved_parts).offsets
    parts = len(operator.removeprefix("shift_"))
    assert Counter(offsets) == {-1: 5 * 3 * parts, 1: 5 * 3 * parts, 0: 576 - 30 * parts}


@pytest.mark.parametrize("operator", ["stdha", "hr_v", "hr_qkv"])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.33, 1 / 3, 0.35, 0.45, 0.66, 1])
def test_a_ratio_over_heads_moves_equally_many_channels_both_ways(
    operator: str, ratio: float
) -> None:
    model = zeroi2v.create_model(
        "vit_small_patch16_224",
        num_classes=2,
        operator=operator,
        ratio=ratio,
        tower_options={"depth": 1, "img_size": 32},
    )
    (block,) = model.plan.blocks
    offsets = Counter(Relocation(block.block.layout, block.moves, model.plan.moved_parts).offsets)
    parts = {"stdha": 2, "hr_v": 1, "hr_qkv": 3}[operator]
    expected = {0.02: 3, 0.1: 19, 0.33: 63, 0.35: 67, 0.45: 86, 0.66: 126, 1: 192}.get(ratio, 64)
    assert offsets[-1] == offsets[1] == parts * expected
