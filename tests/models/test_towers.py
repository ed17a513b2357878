"""Does the structure of a tower decide whether the tower is supported?

And does every supported way of writing attention keep the promises?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import zeroi2v
from tests.tower_checks import IMPLEMENTATIONS, SLOW_IMPLEMENTATIONS, check_tower
from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.models.survey import survey
from zeroi2v.models.towers import TINY_NAME, tiny_tower

PARTLY_COVERED = {  # name -> number of attention blocks of a small version that stay spatial
    "convit_tiny": 1,
    "crossvit_tiny_240": 2,
    "davit_tiny": 4,
    "gcvit_xxtiny": 6,
    "twins_svt_small": 9,
    "volo_d1_224": 6,
}


@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
@pytest.mark.parametrize(
    "name",
    [
        *IMPLEMENTATIONS,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_IMPLEMENTATIONS),
    ],
)
def test_every_way_of_writing_attention_keeps_the_promises(name: str) -> None:
    assert name in zeroi2v.supported_towers()
    assert check_tower(name)["blocks"] >= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "convit_tiny",
        *(pytest.param(name, marks=pytest.mark.slow) for name in [*PARTLY_COVERED][1:]),
    ],
)
def test_a_partly_covered_tower_keeps_the_promises_where_it_is_covered(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert name in zeroi2v.partly_covered_towers()
    assert name not in zeroi2v.supported_towers()
    spatial = check_tower(name)["spatial"]
    assert len(spatial) == PARTLY_COVERED[name]
    assert all(block in caplog.messages[0] for block in spatial)


def test_a_partly_covered_tower_is_said_to_be_in_one_warning_and_in_its_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"img_size": 32, "depth": 3, "local_up_to_layer": 1}
    model = zeroi2v.create_model("convit_tiny", num_classes=2, heads=[-1, 1], tower_options=options)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 of its 3 attention blocks" in caplog.text
    assert "blocks.0.attn" in caplog.text
    assert "blocks.1.attn" not in caplog.text
    assert len(model.heads) == 2
    model.save_pretrained(tmp_path)
    assert "| attention that stays spatial | `blocks.0.attn` |" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")
    clip = torch.randn(2, 8, 3, 32, 32)
    assert torch.equal(zeroi2v.load(tmp_path)(clip), model.eval()(clip))


def test_the_names_are_sorted_known_to_timm_and_many() -> None:
    names = zeroi2v.supported_towers()
    assert names == sorted(set(names))
    assert {name for name in names if name != TINY_NAME} <= set(timm.list_models())
    assert len(names) >= 420
    partly = zeroi2v.partly_covered_towers()
    assert partly == sorted(set(partly))
    assert {"volo_d1_224", "davit_tiny", *PARTLY_COVERED} <= set(partly)
    assert set(names).isdisjoint(partly)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_name_is_listed_if_and_only_if_its_structure_says_so() -> None:
    supported, partly = set(zeroi2v.supported_towers()), set(zeroi2v.partly_covered_towers())
    for name in timm.list_models():
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
        try:
            anatomy = survey(tower, name)
        except TowerError:
            assert name not in supported | partly, name
            continue
        spatial = anatomy.spatial_blocks
        assert name in (partly if spatial else supported), name
        fused = {
            path
            for path, module in tower.named_modules()
            if isinstance(getattr(module, "qkv", None), nn.Linear)
        }
        assert {block.name for block in anatomy.blocks} == fused - set(spatial), name


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("xcit_nano_12_p16_224", {}, "XCA"),
        ("cait_xxs24_224", {}, "Talking"),
        ("tnt_s_patch16_224", {}, "no fused qkv"),
        ("csatv2", {}, "multiplies the pictures of a batch"),
        ("resnet18", {}, "no attention with a fused qkv projection"),
        ("coatnet_0_rw_224", {}, "is no linear layer"),
    ],
)
def test_what_cannot_be_done_right_is_refused_with_the_reason(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TowerError, match=reason):
        zeroi2v.create_model(name, num_classes=2, tower_options=options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, options, f"tower_options: {name} has no option {end}")
            for name in (TINY_NAME, "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
            for options, end in (
                ({"nonsense": 1}, "'nonsense'"),
                ({"img_siz": 32}, "'img_siz', did you mean 'img_size'?"),
            )
        ),
        *(
            (
                name,
                {"depth": "two"},
                f"tower_options of {name}: a value has the wrong type, got {{'depth': 'two'}}",
            )
            for name in (TINY_NAME, "vit_tiny_patch16_224")
        ),
    ],
)
def test_an_option_that_timm_does_not_take_is_named_without_words_of_python(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        zeroi2v.create_model(name, num_classes=2, tower_options=options)
    assert str(caught.value) == message


def test_the_embedded_tower_is_small_and_knows_pictures() -> None:
    tower = tiny_tower(pretrained=True)
    assert 0.5e6 < sum(parameter.numel() for parameter in tower.parameters()) < 3e6
    attentions: list[Any] = [tower.get_submodule(f"blocks.{number}.attn") for number in range(6)]
    assert all(attention.num_heads == 12 for attention in attentions)
    untrained: Any = tiny_tower(pretrained=False).get_submodule("blocks.0.attn")
    assert not torch.equal(attentions[0].qkv.weight, untrained.qkv.weight)
    anatomy = survey(tower, TINY_NAME)
    assert anatomy.has_class_token
    assert anatomy.prefix == 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_pictures_smaller_than_a_patch_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"15 pixels are smaller than a patch .*at least 16"):
        zeroi2v.create_model(name, num_classes=2, tower_options={"img_size": 15})


def test_pictures_smaller_than_a_patch_of_the_embedded_tower_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 pixels are smaller than a patch .*at least 8"):
        zeroi2v.create_model(
            "zeroi2v_tiny", num_classes=2, pretrained=False, tower_options={"img_size": 7}
        )
