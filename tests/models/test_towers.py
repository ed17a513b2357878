"""Which towers are supported is what their structure says, not what a list says."""

from __future__ import annotations

import pytest
import timm
import torch

import zeroi2v
from zeroi2v.errors import TowerError
from zeroi2v.models.towers import FAMILIES, TINY_NAME, WITHOUT_FUSED_QKV, find_blocks, tiny_tower


def test_the_names_are_sorted_and_known_to_timm() -> None:
    names = zeroi2v.supported_towers()
    assert names == sorted(set(names))
    assert TINY_NAME in names
    assert {name for name in names if name != TINY_NAME} <= set(timm.list_models())
    assert "vit_base_patch16_clip_quickgelu_224" in names
    assert "deit3_small_patch16_224" in names


@pytest.mark.slow
def test_every_name_has_blocks_and_every_refused_one_has_none() -> None:
    for name in timm.list_models():
        if not name.startswith(FAMILIES):
            continue
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
        if name in WITHOUT_FUSED_QKV:
            with pytest.raises(TowerError):
                find_blocks(tower, name)
            continue
        blocks = find_blocks(tower, name)
        fused = sum(getattr(module, "qkv", None) is not None for module in tower.modules())
        assert len(blocks) == fused, name
        assert all(block.head_count * block.head_width * 3 == block.projection.out_features for block in blocks), name


def test_the_embedded_tower_is_small_and_knows_pictures() -> None:
    tower = tiny_tower(pretrained=True)
    assert 0.5e6 < sum(parameter.numel() for parameter in tower.parameters()) < 3e6
    assert all(block.attn.num_heads == 12 for block in tower.blocks)
    untrained = tiny_tower(pretrained=False)
    assert not torch.equal(tower.blocks[0].attn.qkv.weight, untrained.blocks[0].attn.qkv.weight)
