"""Does a video model keep its promises on every kind of plain tower?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zeroi2v
from tests.towers_for_tests import TOWERS, gather_inputs, noisy, random_clip, small_model
from zeroi2v.errors import ConfigError, HeadsError, TowerError
from zeroi2v.measure.cost import plain_tower
from zeroi2v.models.towers import build_tower

every_tower = pytest.mark.parametrize("tower", TOWERS)


@every_tower
def test_offsets_of_zero_give_the_image_tower_frame_by_frame(tower: str) -> None:
    model = noisy(small_model(tower, heads=[])).double()
    for parameter in model.adapters.parameters():
        nn.init.zeros_(parameter)
    nn.init.zeros_(model.temporal_embedding)
    clip = random_clip(model)
    image_tower: Any = plain_tower(model)
    one_by_one = torch.stack(
        [torch.stack([image_tower(frame[None])[0] for frame in frames]) for frames in clip]
    )
    torch.testing.assert_close(model.features(clip), one_by_one, rtol=1e-10, atol=1e-10)
    tokens = torch.stack([image_tower.forward_features(frames) for frames in clip])
    torch.testing.assert_close(model.tokens(clip), tokens, rtol=1e-10, atol=1e-10)


@every_tower
def test_attaching_adapters_and_spatial_heads_changes_nothing_exactly(tower: str) -> None:
    model = small_model(tower, heads=[]).eval()
    clip = random_clip(model)
    assert torch.equal(model.features(clip).flatten(0, 1), plain_tower(model)(clip.flatten(0, 1)))


@every_tower
def test_a_temporal_head_reads_the_frame_it_names_and_only_that(tower: str) -> None:
    model = noisy(small_model(tower, heads="0*1, 1*1")).double()
    blocks = [plan.block for plan in model.plan.blocks]
    attention: Any = model.tower.get_submodule(blocks[0].name)
    seen = gather_inputs(attention.proj)
    width = blocks[0].layout.value_width
    clip = random_clip(model, clips=1)
    model(clip)
    for changed in range(model.frames):
        other = clip.clone()
        other[:, changed] += torch.randn_like(other[:, changed])
        model(other)
        moved = (seen[-1] - seen[0]).abs().flatten(1, -2).amax(1) > 1e-9  # (T, channels)
        for frame in range(model.frames):
            head_1 = torch.zeros(moved.shape[1], dtype=torch.bool)
            head_1[width : 2 * width] = True
            if frame == changed:
                assert moved[frame].all(), "queries, and all other heads, react to their own frame"
            elif frame + 1 == changed:
                assert torch.equal(moved[frame], head_1), (
                    "exactly the temporal head reacts to the frame it reads"
                )
            else:
                assert not moved[frame].any(), "no other frame matters in the first block"


@every_tower
def test_merging_changes_no_output_and_leaves_a_plain_tower(tower: str) -> None:
    model = noisy(small_model(tower, adapter_scale=0.5, heads="-1*1, 1*1/2")).double()
    clip = random_clip(model)
    before = model(clip)
    merged = model.merge()
    torch.testing.assert_close(merged(clip), before, rtol=1e-8, atol=1e-10)
    assert torch.equal(model(clip), before), "the adapted model is left as it was"
    image_tower = zeroi2v.create_model(
        tower, num_classes=5, frames=4, heads=[], tower_options=TOWERS[tower]
    ).tower
    assert [(name, type(module)) for name, module in merged.tower.named_modules()] == [
        (name, type(module)) for name, module in image_tower.named_modules()
    ]
    keys = {f"tower.{key}" for key in image_tower.state_dict()} | {
        "temporal_embedding",
        "classifier.weight",
        "classifier.bias",
    }
    assert set(merged.state_dict()) == keys
    assert (
        merged(clip) - noisy(small_model(tower, heads=[]))(clip.float()).double()
    ).abs().max() > 1e-3, "the temporal heads and adapters matter"


@every_tower
def test_merging_costs_nothing(tower: str) -> None:
    model = noisy(small_model(tower))
    with torch.device("meta"):
        image_tower = build_tower(tower, pretrained=False, options=TOWERS[tower])
    shapes = {f"tower.{key}": tensor.shape for key, tensor in image_tower.state_dict().items()}
    merged_model = model.merge()
    merged = zeroi2v.cost(merged_model)
    merged_shapes = {
        key: tensor.shape
        for key, tensor in merged_model.state_dict().items()
        if key.startswith("tower.")
    }
    assert merged_shapes == shapes
    tower_params = sum(parameter.numel() for parameter in image_tower.parameters())
    assert merged.extra_gmacs == 0
    assert (
        merged.params
        == tower_params
        + sum(p.numel() for p in model.classifier.parameters())
        + model.temporal_embedding.numel()
    )
    assert zeroi2v.cost(model).extra_gmacs > 0


@every_tower
def test_one_step_moves_what_trains_and_nothing_else(tower: str) -> None:
    model = noisy(small_model(tower)).train()
    before = copy.deepcopy(model.state_dict())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(random_clip(model)).square().sum().backward()
    optimizer.step()
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    assert moved - shared == trained
    allowed = ("adapters.", "classifier.", "temporal_embedding", "tower.norm.", "tower.fc_norm.")
    assert all(name.startswith(allowed) for name in trained)
    assert any(name.startswith("adapters.") for name in trained)


def test_an_extra_layer_is_not_free() -> None:
    merged = small_model("zeroi2v_tiny").merge()
    mlp: Any = merged.tower.get_submodule("blocks.0.mlp")
    mlp.fc2 = nn.Sequential(mlp.fc2, nn.Linear(96, 96))
    cost = zeroi2v.cost(merged)
    assert cost.extra_gmacs == pytest.approx(4 * 37 * 96 * 96 / 1e9)
    assert cost.new_params == 96 * 97 + merged.temporal_embedding.numel()


@pytest.mark.parametrize(
    ("tower", "gmacs"), [("vit_base_patch16_224", 17.56), ("vit_large_patch14_224", 81.01)]
)
def test_multiply_adds_per_frame_are_the_papers(tower: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = zeroi2v.create_model(tower, num_classes=400)
    per_frame = (zeroi2v.cost(model.merge()).gmacs - 400 * model.classifier.in_features / 1e9) / 8
    assert per_frame == pytest.approx(gmacs, abs=0.005)


def test_strategies_train_what_they_say() -> None:
    probe = small_model("vit_tiny_patch16_224", strategy="linear_probe")
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert not list(probe.adapters.parameters())
    full = small_model("vit_tiny_patch16_224", strategy="full")
    assert all(p.requires_grad for p in full.parameters())
    assert full.train().tower.training
    assert not probe.train().tower.training


def test_a_copy_of_a_model_uses_its_own_weights() -> None:
    model = noisy(small_model("zeroi2v_tiny"))
    clip = random_clip(model)
    other = copy.deepcopy(model)
    expected = model(clip)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(clip), expected)
    assert other(clip).abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tower": "vit_tiny_patch16_225"}, TowerError, "did you mean 'vit_tiny_patch16_224'"),
        (
            {"tower": "vit_base_patch16_xp_224", "tower_options": {"depth": 1}},
            TowerError,
            "vit_base_patch16_xp_224: no attention with a fused qkv projection",
        ),
        (
            {"tower": "xcit_nano_12_p16_224"},
            TowerError,
            "xcit_nano_12_p16_224: XCA attends over channels",
        ),
        ({"tower": "vit_tiny_patch16_224.nope"}, TowerError, "nope"),
        ({"tower_options": {"num_heads": 5}}, ConfigError, "tower_options of zeroi2v_tiny"),
        ({"strategy": "zeroi2w"}, ConfigError, "did you mean 'zeroi2v'"),
        ({"operator": "stda"}, ConfigError, "operator must be one of 'stdha'"),
        ({"adapter_ration": 0.5}, ConfigError, "did you mean 'adapter_ratio'"),
        ({"heads": [-1] * 13}, HeadsError, "asks for 13 temporal heads"),
        ({"num_classes": 0}, ConfigError, "num_classes must be at least 1"),
        ({"frames": 0}, ConfigError, "frames must be at least 1"),
        ({"tower_options": {"dept": 2}}, ConfigError, "dept"),
        (
            {"pretrained": True, "tower_options": {"depth": 2}},
            ConfigError,
            "its weights fit no other shape",
        ),
    ],
)
def test_a_wrong_setting_is_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        zeroi2v.create_model(**{"tower": "zeroi2v_tiny", "num_classes": 3, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 3, 48, 48), (4, 3, 48, 48)])
def test_a_clip_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"a clip must be \(B, 4, 3, S, S\)"):
        small_model("zeroi2v_tiny")(torch.zeros(shape))


@pytest.mark.parametrize(
    "tower", ["zeroi2v_tiny", "vit_small_patch16_dinov3"]
)  # position embedding; RoPE
def test_another_length_and_another_size_of_frame(tower: str, tmp_path: Path) -> None:
    model = noisy(small_model(tower, heads="-1*1, 1*1"))
    old = model.temporal_embedding.detach().clone()
    size = 2 * model.image_size
    model.resize(frames=8, image_size=size)
    # Linear between the middles of the segments: the new frame i lies at the position
    # (i + 1/2) / 2 - 1/2 among the old frames.
    for new in range(8):
        position = min(max((new + 0.5) / 2 - 0.5, 0), 3)
        low = min(int(position), 2)
        expected = old[low] + (position - low) * (old[low + 1] - old[low])
        torch.testing.assert_close(model.temporal_embedding[new], expected)
    assert (model.frames, model.image_size, model.clip.frames) == (8, size, 8)
    clip = random_clip(model)
    torch.testing.assert_close(model.merge()(clip), model(clip), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(zeroi2v.load(tmp_path)(clip), model(clip))


def test_a_size_that_no_patch_divides_is_refused() -> None:
    model = small_model("zeroi2v_tiny")
    with pytest.raises(ConfigError, match="does not take frames of 50 pixels"):
        model.resize(image_size=50)
    assert model.image_size == 48
