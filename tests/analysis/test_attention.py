"""What do attention and Grad-CAM of a block promise?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zeroi2v
from tests.towers_for_tests import TOWERS, noisy, random_clip, small_model
from zeroi2v.analysis.attention import attention_maps, patch_map
from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.models.towers import find_blocks


def attention_of(model: zeroi2v.VideoClassifier, block: int) -> Any:
    return model.tower.get_submodule(find_blocks(model.tower, model.config.tower)[block].name)


def test_a_temporal_head_looks_at_the_frame_it_reads_from_its_own_frame() -> None:
    model = noisy(small_model("zeroi2v_tiny", heads="0*1, 1*1")).double()
    clip = random_clip(model, clips=1)
    maps = attention_maps(model, clip, 0)[0]
    for changed in range(model.frames):
        other = clip.clone()
        other[:, changed] += torch.randn_like(other[:, changed])
        moved = (attention_maps(model, other, 0)[0] - maps).abs().amax((-1, -2)) > 1e-9  # (T, H)
        for frame in range(model.frames):
            reads = frame + 1 if frame + 1 < model.frames else frame
            expected = torch.full_like(moved[frame], frame == changed)
            expected[1] = changed in (frame, reads)
            assert torch.equal(moved[frame], expected), (frame, changed)


@pytest.mark.parametrize("tower", TOWERS)
def test_every_row_is_a_distribution_and_merging_does_not_change_it(tower: str) -> None:
    model = noisy(small_model(tower, heads="-1*1, 1*1")).double()
    clip = random_clip(model)
    blocks = find_blocks(model.tower, tower)
    merged = model.merge()
    for block in (0, len(blocks) - 1):
        maps = attention_maps(model, clip, block)
        tokens = model.tokens(clip).shape[2]
        assert maps.shape == (2, model.frames, blocks[block].layout.head_count, tokens, tokens)
        assert maps.min() >= 0
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
        torch.testing.assert_close(attention_maps(merged, clip, block), maps)
        assert not maps.requires_grad


@pytest.mark.parametrize("tower", ["zeroi2v_tiny", "vit_tiny_patch16_224"])
def test_the_map_is_the_softmax_of_the_relocated_projection(tower: str) -> None:
    model = noisy(small_model(tower, heads="-1*1, 1*1")).double()
    block = find_blocks(model.tower, tower)[1]
    projected: list[Tensor] = []
    hook = block.projection.register_forward_hook(lambda _, inputs, output: projected.append(output.clone()))
    clip = random_clip(model)
    model(clip)
    hook.remove()
    query, key, _ = (
        projected[0].unflatten(-1, (3, block.layout.head_count, block.layout.key_width)).permute(2, 0, 3, 1, 4)
    )
    by_hand = (query @ key.mT / block.layout.key_width**0.5).softmax(-1)
    torch.testing.assert_close(attention_maps(model, clip, 1).flatten(0, 1), by_hand)


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = noisy(small_model("vit_tiny_patch16_224")).train()
    attention = attention_of(model, 1)
    attention.fused_attn = True
    clip = random_clip(model)
    attention_maps(model, clip, 1)
    with pytest.raises(ConfigError, match="a clip must be"):
        attention_maps(model, clip[:, 1:], 1)
    attention.proj.register_forward_hook(lambda *_: pytest.fail("inside the block"))
    with pytest.raises(pytest.fail.Exception):
        attention_maps(model, clip, 1)
    assert attention.fused_attn
    assert model.training
    assert not attention.attn_drop._forward_pre_hooks


@pytest.mark.parametrize("block", [-1, 6])
def test_a_block_that_is_not_there_is_refused(block: int) -> None:
    model = small_model("zeroi2v_tiny")
    with pytest.raises(ConfigError, match=rf"block must be 0 to 5 for zeroi2v_tiny, got {block}"):
        attention_maps(model, random_clip(model), block)


def test_an_attention_without_a_single_softmax_is_refused() -> None:
    tower = "vit_dlittle_patch16_reg1_gap_256"  # each head is the difference of two
    model = zeroi2v.create_model(tower, num_classes=2, frames=2, tower_options={"img_size": 32, "depth": 1})
    with pytest.raises(TowerError, match=r"DiffAttention of block 0 makes no single map per head"):
        attention_maps(model, random_clip(model), 0)
    small = small_model("zeroi2v_tiny")
    attention_of(small, 2).attn_drop = None
    with pytest.raises(TowerError, match="Attention of block 2 has no explicit attention map"):
        attention_maps(small, random_clip(small), 2)


@pytest.mark.parametrize(("tower", "prefix", "grid"), [("zeroi2v_tiny", 1, 6), ("vit_small_patch14_reg4_dinov2", 5, 2)])
def test_a_patch_map_leaves_out_the_tokens_that_are_no_patches(tower: str, prefix: int, grid: int) -> None:
    model = small_model(tower)
    row = torch.arange(prefix + grid * grid)
    assert torch.equal(patch_map(row, model), prefix + torch.arange(grid * grid).view(grid, grid))
    with pytest.raises(ConfigError, match=r"a row must be \(N,\)"):
        patch_map(row[1:], model)


@pytest.mark.gpu
def test_maps_are_made_where_the_model_is() -> None:
    model = noisy(small_model("vit_tiny_patch16_224"))
    clip = random_clip(model)
    here = attention_maps(model, clip, 1)
    there = attention_maps(model.cuda(), clip.cuda(), 1)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-5)
