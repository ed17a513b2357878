"""Is Swin adapted as in Tables 6b and 11?

A 3-D patch embedding makes 16 pictures of 32 frames, and every stage has temporal heads and
adapters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import zeroi2v
from tests.towers_for_tests import noisy, random_clip
from zeroi2v import VideoClassifier, create_model
from zeroi2v.errors import ConfigError
from zeroi2v.measure.cost import cost, new_tower
from zeroi2v.models.towers import build_tower

SMALL = {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (4, 8), "window_size": 4}


def swin(**settings: Any) -> VideoClassifier:
    torch.manual_seed(0)
    return create_model(
        "swin_base_patch4_window7_224",
        num_classes=5,
        frames=8,
        tubelet=2,
        **{"heads": "ssv2", "tower_options": SMALL, **settings},
    ).eval()


def swin_b(**settings: Any) -> VideoClassifier:
    """Swin-B at 32 frames, without storage."""
    with torch.device("meta"):
        return create_model(
            "swin_base_patch4_window7_224",
            num_classes=174,
            frames=32,
            heads="ssv2",
            tubelet=2,
            **settings,
        )


@torch.no_grad()
def test_the_patch_embedding_is_the_inflated_3d_convolution() -> None:
    model = swin(strategy="linear_probe").double()
    image_weights = next(model.tower.get_submodule("patch_embed.proj").parameters())[:, :3] * 2
    inflated = (image_weights / 2).unsqueeze(2).repeat(1, 1, 2, 1, 1)  # (D, 3, 2, 4, 4)
    clip = random_clip(model, clips=2)
    projection: Any = model.tower.get_submodule("patch_embed.proj")
    expected = F.conv3d(
        clip.transpose(1, 2), inflated, projection.bias, stride=(2, 4, 4)
    )  # (B, D, T, H, W)
    tokens = projection(model.tower_input(clip))
    torch.testing.assert_close(
        tokens.unflatten(0, (2, 4)), expected.transpose(1, 2), rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
def test_a_still_clip_gives_what_the_image_tower_gives() -> None:
    model = swin(strategy="linear_probe").double()
    picture = random_clip(model, clips=1)[:, :1]
    image_tower = build_tower(
        "swin_base_patch4_window7_224", pretrained=False, options=SMALL
    ).double()
    state = model.tower.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :3] * 2
    image_tower.load_state_dict(state)
    features = model.features(picture.repeat(1, 8, 1, 1, 1))
    torch.testing.assert_close(
        features, image_tower(picture[0]).expand(1, 4, -1), rtol=1e-10, atol=1e-10
    )


@torch.no_grad()
def test_a_temporal_head_reads_the_neighbouring_pair_of_frames() -> None:
    model = noisy(swin(heads="1*1")).double()
    clip = random_clip(model, clips=1)
    other = clip.clone()
    other[:, 5] += 1  # of the third pair
    first = model.tower.get_submodule("layers.0.blocks.0.attn.proj")
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(clip), model(other)
    change = (seen[0] - seen[1]).abs().unflatten(0, (4, -1)).amax((1, 2))  # (T, channels)
    moved = change.unflatten(-1, (4, -1)).amax(-1) > 1e-9  # (T, heads)
    spatial, temporal, own = [False] * 4, [True, False, False, False], [True] * 4
    assert moved.tolist() == [spatial, temporal, own, spatial]


def test_merged_saved_and_loaded(tmp_path: Path) -> None:
    model = noisy(swin())
    clip = random_clip(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model.double().merge()(clip.double()), model(clip.double()), rtol=1e-8, atol=1e-8
        )
        model.float()
        for kind, saved in (("adapted", model), ("merged", model.merge())):
            saved.save_pretrained(tmp_path / kind)
            again = zeroi2v.load(tmp_path / kind)
            assert again.frames == 8
            assert torch.equal(again(clip), saved(clip))
    tower = {f"tower.{key}" for key in new_tower(model).state_dict()}
    assert set(model.merge().state_dict()) == tower | {
        "temporal_embedding",
        "classifier.weight",
        "classifier.bias",
    }


def test_full_fine_tuning_reaches_every_weight() -> None:
    model = swin(strategy="full").train()
    model(random_clip(model)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_lengths(tmp_path: Path) -> None:
    model = swin()
    model.resize(frames=12)
    assert (model.frames, model.features(random_clip(model)).shape[1]) == (12, 6)
    with pytest.raises(ConfigError, match="frames must be a multiple of tubelet"):
        model.resize(frames=9)
    with pytest.raises(ConfigError, match="frames must be a multiple of tubelet"):
        create_model("zeroi2v_tiny", num_classes=2, frames=7, tubelet=2)


def test_table_11() -> None:
    """Swin-B with 32 x 3 x 1 views.

    Table 11 prints 741 GFLOPs, 89 M parameters (the image model has 86.9 M), and 14 M parameters
    that ZeroI2V trains.
    """
    adapted, full = swin_b(), swin_b(strategy="full")
    assert 3 * cost(full).gmacs == pytest.approx(741, rel=0.005)
    assert cost(full).params == pytest.approx(86.9e6, abs=0.1e6)
    assert cost(full).trainable_params == cost(full).params
    assert sum(parameter.numel() for parameter in adapted.adapters.parameters()) == pytest.approx(
        14e6, abs=1e6
    )
    assert [len(list(block.children())) for block in adapted.adapters] == [4] * 24
