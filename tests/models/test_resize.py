"""Does a model take other frame counts and image sizes, also after it was saved and loaded?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zeroi2v
from tests.tower_checks import SMALL, randomise
from zeroi2v.errors import ConfigError

TOWERS = {  # options, and another image size that the tower takes
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 64),
    "swin_tiny_patch4_window7_224": ({**SMALL["swin_transformer"][0], "embed_dim": 24}, 96),
    "swinv2_tiny_window8_256": ({**SMALL["swin_transformer_v2"][0], "embed_dim": 24}, 96),
    "maxvit_tiny_tf_224": (SMALL["maxxvit"][0], 128),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 2, "embed_dim": 192}, 64),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
@pytest.mark.parametrize("name", TOWERS)
def test_a_resized_model_saves_and_loads_as_it_is(name: str, tmp_path: Path) -> None:
    options, size = TOWERS[name]
    model = zeroi2v.create_model(name, num_classes=3, frames=8, tower_options=options)
    before = model.image_size
    model = randomise(model.eval(), torch.randn(1, 8, 3, before, before))
    heads = model.heads
    model.resize(frames=16, image_size=size)
    assert (model.frames, model.image_size, model.heads) == (16, size, heads)
    clip = torch.randn(2, 16, 3, size, size)
    for kind in (model, model.merge()):
        kind.save_pretrained(tmp_path / str(kind.spec.merged))
        loaded = zeroi2v.load(tmp_path / str(kind.spec.merged))
        assert (loaded.frames, loaded.image_size, loaded.heads) == (16, size, heads)
        assert torch.equal(loaded(clip), kind(clip))
    counted = zeroi2v.cost(model.merge())
    assert counted.extra_gmacs == 0
    assert counted.new_params == 16 * model.temporal_embedding.shape[1]


def test_heads_of_a_table_stay_those_of_the_clip_they_were_made_for(tmp_path: Path) -> None:
    model = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=3, frames=16, heads="ssv2", pretrained=True
    ).eval()
    model.resize(frames=8)
    model.save_pretrained(tmp_path)
    assert zeroi2v.load(tmp_path).heads == model.heads
    assert (
        model.heads
        != zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=8, heads="ssv2").heads
    )
    split = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=3, frames=8, heads="-1*1/2, 1*1/4, 2", pretrained=True
    )
    split.resize(frames=4)
    split.save_pretrained(tmp_path)
    assert zeroi2v.load(tmp_path).heads == split.heads


@pytest.mark.parametrize(
    "change", [{"frames": 9}, {"frames": 0}, {"image_size": 50}, {"frames": 16, "image_size": 50}]
)
def test_a_resize_that_is_refused_changes_nothing(change: dict[str, int]) -> None:
    model = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=3, frames=8, tubelet=2, pretrained=True
    )
    with pytest.raises(ConfigError):
        model.resize(**change)
    assert (model.frames, model.image_size, model.clip.frames, model.spec.model.pretrained) == (
        8,
        48,
        8,
        True,
    )
    assert len(model.temporal_embedding) == 4
    assert model.spec.model.heads is None


def test_only_square_pictures_and_only_options_of_shape_are_taken() -> None:
    with pytest.raises(ConfigError, match="square"):
        zeroi2v.create_model(
            "vit_tiny_patch16_224", num_classes=2, tower_options={"img_size": (32, 64)}
        )
    for option in ("checkpoint_path", "pretrained_cfg", "cache_dir"):
        with pytest.raises(ConfigError, match=option):
            zeroi2v.create_model("vit_tiny_patch16_224", num_classes=2, tower_options={option: "x"})


@pytest.mark.parametrize(
    "options", [{"act_layer": "nope"}, {"patch_size": 0}, {"num_heads": 0}, {"depth": -1}, {"x": 1}]
)
@pytest.mark.parametrize("name", ["zeroi2v_tiny", "vit_tiny_patch16_224"])
def test_options_that_timm_refuses_are_named(name: str, options: dict[str, object]) -> None:
    with pytest.raises(zeroi2v.ZeroI2VError, match=name) as caught:
        zeroi2v.create_model(name, num_classes=2, tower_options=options)
    assert "\n" not in str(caught.value)
