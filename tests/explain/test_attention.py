"""What do attention and Grad-CAM of a block promise?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import window_reverse
from torch import Tensor

import zeroi2v
from tests.towers_for_tests import TOWERS, noisy, random_clip, small_model
from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.explain.attention import Looks, attention_maps, head_looks, patch_map, watch


def attention_of(model: zeroi2v.VideoClassifier, block: int) -> Any:
    return model.tower.get_submodule(model.plan.blocks[block].block.name)


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
    blocks = [plan.block for plan in model.plan.blocks]
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
    block = model.plan.blocks[1].block
    projected: list[Tensor] = []
    hook = model.tower.get_submodule(block.sites["qkv"].linears[0]).register_forward_hook(
        lambda _, inputs, output: projected.append(output.clone())
    )
    clip = random_clip(model)
    model(clip)
    hook.remove()
    query, key, _ = (
        projected[0]
        .unflatten(-1, (3, block.layout.head_count, block.layout.key_width))
        .permute(2, 0, 3, 1, 4)
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
    model = zeroi2v.create_model(
        tower, num_classes=2, frames=2, tower_options={"img_size": 32, "depth": 1}
    )
    with pytest.raises(
        TowerError,
        match=r"DiffAttention of block 1 \(blocks\.0\.attn\) makes no single map per head; choose",
    ):
        attention_maps(model, random_clip(model), 0)
    small = small_model("zeroi2v_tiny")
    attention_of(small, 2).attn_drop = None
    with pytest.raises(
        TowerError, match=r"Attention of block 3 \(.*\.2\.attn\) has no explicit attention map"
    ):
        attention_maps(small, random_clip(small), 2)


@pytest.mark.parametrize("strategy", ["aim", "joint"])
def test_a_strategy_that_attends_over_frames_is_named_as_the_reason(strategy: str) -> None:
    model = small_model("zeroi2v_tiny", strategy=strategy)
    with pytest.raises(
        TowerError,
        match=rf"block 6 \(.*\.5\.attn\) .* per head: strategy {strategy} also attends over",
    ):
        watch(model, random_clip(model), 5)


@pytest.mark.parametrize(
    ("tower", "prefix", "grid"), [("zeroi2v_tiny", 1, 6), ("vit_small_patch14_reg4_dinov2", 5, 2)]
)
def test_a_patch_map_leaves_out_the_tokens_that_are_no_patches(
    tower: str, prefix: int, grid: int
) -> None:
    model = small_model(tower)
    row = torch.arange(prefix + grid * grid)
    assert torch.equal(patch_map(row, model), prefix + torch.arange(grid * grid).view(grid, grid))
    with pytest.raises(ConfigError, match=r"a row must be \(N,\)"):
        patch_map(row[1:], model)


NO_CLASS_TOKEN = ("vit_base_patch16_siglip", "vit_relpos")
WINDOWED = {  # two stages of two blocks, the second of each with shifted windows in the first stage
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 32,
        "depths": (2, 2),
        "num_heads": (4, 8),
        "window_size": 4,
    },
    "swinv2_tiny_window8_256": {
        "img_size": 64,
        "embed_dim": 32,
        "depths": (2, 2),
        "num_heads": (4, 8),
        "window_size": 4,
    },
}


def small(tower: str, heads: str = "-1*1, 1*1") -> zeroi2v.VideoClassifier:
    if tower in TOWERS:
        return noisy(small_model(tower, heads=heads)).double()
    torch.manual_seed(0)
    model = zeroi2v.create_model(
        tower, num_classes=5, frames=4, heads=heads, tower_options=WINDOWED[tower]
    )
    return noisy(model).double()


def looks_of(
    model: zeroi2v.VideoClassifier, clip: Tensor, block: int, label: int = 3
) -> dict[str, Looks]:
    return head_looks(watch(model, clip, block), label)


def plain_order(maps: Tensor, model: zeroi2v.VideoClassifier, block: int) -> Tensor:
    """Values of tokens in windows (B*W, n) as a map (B, N), by the tower's own way back."""
    name = model.plan.blocks[block].block.name
    owner: Any = model.tower.get_submodule(name.rpartition(".")[0])
    size, side = owner.window_size, owner.input_resolution[0]
    on_map = window_reverse(maps.reshape(-1, *size, 1), size, side, side)
    return torch.roll(on_map, shifts=tuple(owner.shift_size), dims=(1, 2)).flatten(1)


@pytest.mark.parametrize(
    "tower", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", *WINDOWED]
)
def test_the_map_of_a_temporal_head_responds_to_the_frame_it_reads(tower: str) -> None:
    model = small(tower)
    clip = random_clip(model, clips=1)
    before = looks_of(model, clip, 0)
    class_token = tower.startswith(
        "vit_tiny"
    )  # its query has not seen any frame before the first block
    for changed in range(model.frames):
        other = clip.clone()
        other[:, changed] += torch.randn_like(other[:, changed])
        after = looks_of(model, other, 0)
        for offset in (-1, 1):
            name = f"offset {offset:+d}"
            moved = (after[name].attention - before[name].attention).abs().amax((1, 2)) > 1e-9
            for shown in range(model.frames):
                readers = {
                    t
                    for t in range(model.frames)
                    if shown == (t + offset if 0 <= t + offset < model.frames else t)
                }
                assert set(before[name].readers[shown]) == readers
                responds = {shown} | (set() if class_token else readers) if readers else set()
                assert bool(moved[shown]) == (changed in responds), (name, shown, changed)


@pytest.mark.parametrize("tower", [*TOWERS, *WINDOWED])
def test_grad_cam_is_attention_times_its_gradient_on_the_frame_that_is_read(tower: str) -> None:
    model = small(tower)
    blocks = [plan.block for plan in model.plan.blocks]
    clip = random_clip(model, clips=1)
    for number in (0, 1) if tower in WINDOWED else (1,):
        attention = attention_of(model, number)
        looks = looks_of(model, clip, number)
        seen: list[Tensor] = []
        hook = attention.attn_drop.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        fused, attention.fused_attn = getattr(attention, "fused_attn", False), False
        logit = model(clip)[0, 3]
        hook.remove()
        attention.fused_attn = fused
        (gradient,) = torch.autograd.grad(logit, seen[0])
        evidence = (seen[0] * gradient).sum(2)  # (T*W, H, n): for each key, over all queries
        row = (
            seen[0][:, :, 0]
            if tower in TOWERS and not tower.startswith(NO_CLASS_TOKEN)
            else seen[0].mean(2)
        )
        frames, heads = model.frames, blocks[number].layout.head_count
        offsets = [-1, 1] + [0] * (heads - 2)
        expected: dict[str, list[Tensor]] = {"grad_cam": [], "attention": []}
        for kind, values in (("grad_cam", evidence), ("attention", row.detach())):
            for head in range(heads):
                of_head = values[:, head]
                plain = (
                    plain_order(of_head, model, number)
                    if tower in WINDOWED
                    else of_head[:, model.plan.tower.prefix :]
                )
                expected[kind].append(plain)
        windows = len(row) // frames
        for name, chosen in {
            "spatial heads": [offset == 0 for offset in offsets],
            "temporal heads": [offset != 0 for offset in offsets],
            "all heads": [True] * heads,
            "offset -1": [offset == -1 for offset in offsets],
        }.items():
            if not any(chosen):
                continue
            for shown in range(frames):
                pairs = [
                    (frame, head)
                    for head in range(heads)
                    for frame in range(frames)
                    if chosen[head]
                    and shown
                    == (frame + offsets[head] if 0 <= frame + offsets[head] < frames else frame)
                ]
                zero = torch.zeros_like(expected["attention"][0][0])
                total = sum(
                    (expected["grad_cam"][head][frame] for frame, head in pairs), zero
                ).relu()
                torch.testing.assert_close(
                    looks[name].grad_cam[shown].flatten(), total, msg=f"{name}, block {number}"
                )
                mean = sum(
                    (expected["attention"][head][frame] for frame, head in pairs), zero
                ) / max(1, len(pairs))
                torch.testing.assert_close(looks[name].attention[shown].flatten(), mean / windows)


@pytest.mark.parametrize("heads", ["-1*1, 1*1", "-1*1/2, 1*1/4, 2*3"])
def test_grad_cam_is_what_the_logit_gains_when_a_patch_is_read_a_little_more(heads: str) -> None:
    model = small("zeroi2v_tiny", heads).merge()
    block = model.plan.blocks[2].block
    clip, step = random_clip(model, clips=1), 1e-5
    looks = looks_of(model, clip, 2)
    width = block.layout.value_width
    given = {
        "-1*1, 1*1": [-1] * width + [1] * width,
        "-1*1/2, 1*1/4, 2*3": [-1] * 4 + [1] * 2 + [2] * 24,
    }[heads]
    groups = {"offset -1": [-1], "offset +1": [1], "spatial heads": [0], "all heads": [-1, 0, 1, 2]}
    offsets = given + [0] * (96 - len(given))
    for name, wanted in groups.items():
        channels = 192 + torch.tensor(
            [index for index, offset in enumerate(offsets) if offset in wanted]
        )
        for frame, patch in ((0, 4), (2, 7), (3, 35)):
            logits = []
            for factor in (1 + step, 1 - step):

                def scale(
                    module: Any, inputs: Any, projected: Tensor, factor: float = factor
                ) -> Tensor:
                    projected[frame, 1 + patch, channels] *= factor  # noqa: B023  removed before the next round
                    return projected

                hook = model.tower.get_submodule(
                    block.sites["qkv"].linears[0]
                ).register_forward_hook(scale, prepend=True)  # before any head has moved
                with torch.no_grad():
                    logits.append(model(clip)[0, 3].item())
                hook.remove()
            gain = max(0.0, (logits[0] - logits[1]) / (2 * step))
            assert looks[name].grad_cam[frame].flatten()[patch].item() == pytest.approx(
                gain, abs=1e-8, rel=1e-4
            )


@pytest.mark.parametrize(
    "tower", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", *WINDOWED]
)
def test_adapted_and_merged_models_look_alike(tower: str) -> None:
    model = small(tower)
    clip = random_clip(model, clips=1)
    for block in (0, len(model.heads) - 1):
        adapted, merged = looks_of(model, clip, block), looks_of(model.merge(), clip, block)
        assert adapted.keys() == merged.keys()
        assert any(look.grad_cam.any() for look in adapted.values())
        for name, look in adapted.items():
            torch.testing.assert_close(merged[name].grad_cam, look.grad_cam)
            torch.testing.assert_close(merged[name].attention, look.attention)


@pytest.mark.parametrize("tower", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_looking_leaves_no_hook_gradient_or_mode_behind(tower: str) -> None:
    model = small(tower).train()

    def state() -> list[Any]:
        hooks = [
            (len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()
        ]
        return [hooks, [(p.requires_grad, p.grad) for p in model.parameters()]]

    before, clip = state(), random_clip(model, clips=1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model.eval()(clip)
    model.train()
    with torch.no_grad():  # of the caller
        seen = watch(model, clip, 1)
        head_looks(seen, 0)
    torch.testing.assert_close(seen.logits, logits)
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_windows_make_no_map_of_a_whole_frame() -> None:
    model = small("swin_tiny_patch4_window7_224")
    with pytest.raises(TowerError, match="block 1 attends within windows"):
        attention_maps(model, random_clip(model), 0)


@pytest.mark.gpu
def test_maps_are_made_where_the_model_is() -> None:
    model = noisy(small_model("vit_tiny_patch16_224"))
    clip = random_clip(model)
    here = attention_maps(model, clip, 1)
    there = attention_maps(model.cuda(), clip.cuda(), 1)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-5)
