"""Which towers are supported is what their structure says, and every attention implementation keeps the promises."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import zeroi2v
from tests.tower_checks import check_tower
from zeroi2v.errors import TowerError
from zeroi2v.models.towers import TINY_NAME, find_blocks, has_class_token, prefix_tokens, tiny_tower

IMPLEMENTATIONS = [  # one tower per way of writing attention; the slow ones have no small version
    "vit_tiny_patch16_224",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "mvitv2_tiny",
    "hiera_tiny_224",
    "pit_ti_224",
    "tiny_vit_5m_224",
    "efficientformer_l1",
    "fastvit_sa12",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("nest_tiny", "mobilevit_s", "maxvit_tiny_tf_224")),
]


@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_way_of_writing_attention_keeps_the_promises(name: str) -> None:
    assert name in zeroi2v.supported_towers()
    assert check_tower(name)["blocks"] >= 1


def test_the_names_are_sorted_known_to_timm_and_many() -> None:
    names = zeroi2v.supported_towers()
    assert names == sorted(set(names))
    assert {name for name in names if name != TINY_NAME} <= set(timm.list_models())
    assert len(names) >= 420


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_name_is_listed_if_and_only_if_its_structure_says_so() -> None:
    listed = set(zeroi2v.supported_towers())
    for name in timm.list_models():
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
        try:
            blocks = find_blocks(tower, name)
        except TowerError:
            assert name not in listed, name
            continue
        assert name in listed, name
        fused = [path for path, module in tower.named_modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]
        assert len(blocks) == len(fused), name


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("xcit_nano_12_p16_224", {}, "XCA"),
        ("cait_xxs24_224", {}, "Talking"),
        ("crossvit_tiny_240", {}, "no fused qkv"),
        ("resnet18", {}, "no attention with a fused qkv projection"),
        ("coatnet_0_rw_224", {}, "projects with convolutions"),
    ],
)
def test_what_cannot_be_done_right_is_refused_with_the_reason(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(TowerError, match=reason):
        zeroi2v.create_model(name, num_classes=2, tower_options=options)


def test_the_embedded_tower_is_small_and_knows_pictures() -> None:
    tower = tiny_tower(pretrained=True)
    assert 0.5e6 < sum(parameter.numel() for parameter in tower.parameters()) < 3e6
    assert all(block.attn.num_heads == 12 for block in tower.blocks)
    untrained = tiny_tower(pretrained=False)
    assert not torch.equal(tower.blocks[0].attn.qkv.weight, untrained.blocks[0].attn.qkv.weight)
    assert has_class_token(tower)
    assert prefix_tokens(tower) == 1
