"""The savings of a training step change no result, except the savings that settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zeroi2v
from benchmarks.training_step import reference
from tests.towers_for_tests import gather_inputs, noisy, random_clip, small_model
from zeroi2v import VideoClassifier, create_model
from zeroi2v.config import TrainConfig
from zeroi2v.engine.spare import check_spared, spared
from zeroi2v.errors import ConfigError
from zeroi2v.measure.memory import LiveBytes
from zeroi2v.method import adapters
from zeroi2v.models.video import interpolated

CLIP = "vit_base_patch16_clip_quickgelu_224"
PLAIN = "vit_tiny_patch16_224"


def gradients_of(model: VideoClassifier, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits.square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("tower", [CLIP, PLAIN])
def test_a_training_step_has_the_gradients_of_the_papers_graph(tower: str) -> None:
    model = noisy(small_model(tower, heads=[-1, 1])).double().train()
    clip = random_clip(model)
    expected = gradients_of(model, reference(model, clip))
    with spared(model, TrainConfig()):
        logits = model(clip)
    torch.testing.assert_close(logits, reference(model, clip))
    assert_same(gradients_of(model, logits), expected)


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("vit_small_plus_patch16_dinov3_qkvb", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_small_patch16_18x2_224", {}),
        (PLAIN, {"strategy": "gelu_adapter"}),
        (PLAIN, {"strategy": "lora", "sites": ["q", "v", "up", "down"]}),
        (PLAIN, {"strategy": "st_adapter"}),
        (PLAIN, {"strategy": "full"}),
        (PLAIN, {"operator": "cls_shift", "ratio": 0.25}),
        (PLAIN, {"sites": ["q", "k", "v", "proj", "up", "down"]}),
    ],
)
def test_savings_change_no_gradient(
    tower: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = noisy(small_model(tower, **settings)).double().train()
    clip = random_clip(model)
    with spared(model, TrainConfig()):
        ours = gradients_of(model, model(clip))

    def plainly(x: Tensor, z: Tensor, linear: nn.Linear, scale: float) -> Tensor:
        total: Tensor = x + scale * linear(z)
        return total

    monkeypatch.setattr(adapters, "add_linear", plainly)
    assert_same(ours, gradients_of(model, model(clip)))


def test_a_feature_that_reads_a_second_token_has_it_worked_out() -> None:
    """The distilled tower's feature is the mean of its class and distillation tokens."""
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 2}
    model = noisy(
        create_model(
            "deit_tiny_distilled_patch16_224", num_classes=3, frames=4, tower_options=options
        )
    )
    clip = random_clip(model)
    evaluated = model(clip)
    with spared(model.train(), TrainConfig()):
        torch.testing.assert_close(model(clip), evaluated)


def test_only_a_training_steps_feature_leaves_tokens_out() -> None:
    model = small_model(CLIP)
    clip, seen = random_clip(model), gather_inputs(model.tower.get_submodule("blocks.2.mlp"))
    model.train()
    with spared(model, TrainConfig()):
        model(clip)
        with torch.no_grad():
            model(clip)
    model(clip)
    model.tokens(clip)
    model.eval()(clip)
    assert [inputs.shape[1] for inputs in seen] == [1, 5, 5, 5, 5]


def installed(model: VideoClassifier) -> list[object]:
    """Everything that is installed on the modules of a tower."""
    return [
        (
            name,
            list(module._forward_hooks.values()),
            list(module._forward_pre_hooks.values()),
            "forward" in vars(module),
        )
        for name, module in model.tower.named_modules()
    ]


def interrupted_training(
    model: VideoClassifier, settings: TrainConfig, before: list[object]
) -> None:
    """Install the savings, compare with the modules `before`, and stop as Ctrl-C does."""
    with spared(model, settings):
        assert installed(model) != before
        raise KeyboardInterrupt


@pytest.mark.parametrize("tower", [CLIP, PLAIN, "vit_small_patch14_reg4_dinov2"])
def test_everything_that_training_installs_is_gone_after_an_interrupt_too(tower: str) -> None:
    model = small_model(tower).train()
    before = installed(model)
    norms = [module for module in model.tower.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert not any(norm._forward_hooks for norm in norms), "outside of training there is no hook"
    assert not any("forward" in vars(module) for module in model.modules())
    for settings in (TrainConfig(token_share=0.5), TrainConfig(checkpointing=True)):
        with pytest.raises(KeyboardInterrupt):
            interrupted_training(model, settings, before)
        assert installed(model) == before


def patches_seen(model: VideoClassifier, clip: Tensor) -> Tensor:
    """The number of every token that enters the first block: (B, T, N).

    The position embedding is replaced by the numbers of the tokens, and everything else by zero.
    """
    tower: Any = model.tower
    with torch.no_grad():
        tower.pos_embed.copy_(
            torch.arange(tower.pos_embed.shape[1])[None, :, None].expand_as(tower.pos_embed)
        )
        for parameter in tower.patch_embed.parameters():
            parameter.zero_()
        tower.cls_token.zero_()
    seen = gather_inputs(tower.blocks[0])
    model(clip)
    numbers: Tensor = seen[0][..., 0].unflatten(0, (len(clip), -1))
    return numbers


def test_half_of_the_patches_are_dropped_alike_in_all_frames_of_a_clip() -> None:
    model = create_model(
        PLAIN, num_classes=3, frames=4, tower_options={"img_size": 96, "depth": 1}
    ).train()  # 36 patches
    with spared(model, TrainConfig(token_share=0.5)):
        patches = patches_seen(model, random_clip(model, clips=3))
    assert patches.shape == (3, 4, 1 + 18)
    assert (patches == patches[:, :1]).all(), "the frames of a clip have the same patches"
    assert (patches[..., 0] == 0).all(), "the class token stays"
    assert (patches.diff(dim=-1) > 0).all(), "patches stay in order, and none comes twice"
    assert len({tuple(kept.tolist()) for kept in patches[:, 0]}) == 3, "each clip has its own draw"
    assert patches_seen(model, random_clip(model)).shape == (2, 4, 37), "after training, all enter"


def test_dropping_no_more_than_nothing_changes_nothing() -> None:
    model = noisy(small_model(PLAIN)).train()
    clip = random_clip(model)
    with spared(model, TrainConfig()):
        whole = model(clip)
    with spared(model, TrainConfig(token_share=0.999)):
        assert torch.equal(model(clip), whole)


def test_the_frozen_blocks_below_the_adapters_drop_patches_too() -> None:
    options = {"img_size": 64, "depth": 2}
    model = create_model(PLAIN, num_classes=3, frames=2, adapted_blocks=1, tower_options=options)
    clip = random_clip(model)
    with spared(model.train(), TrainConfig(token_share=0.5)):
        assert patches_seen(model, clip).shape == (2, 2, 1 + 8)


def test_registers_stay_and_a_mean_over_patches_reads_them_all() -> None:
    model = small_model("vit_small_patch14_reg4_dinov2").train()
    with spared(model, TrainConfig(token_share=0.5)):
        assert patches_seen(model, random_clip(model)).shape[-1] == 5 + 2
    options = {"img_size": 32, "depth": 2, "global_pool": "avg"}
    model = noisy(create_model(PLAIN, num_classes=3, frames=4, tower_options=options))
    clip = random_clip(model)
    evaluated = model(clip)
    with spared(model.train(), TrainConfig()):
        torch.testing.assert_close(model(clip), evaluated)


def test_a_tower_that_counts_on_its_patches_says_so() -> None:
    model = create_model("swin_tiny_patch4_window7_224", num_classes=3, frames=2)
    with pytest.raises(ConfigError, match=r"token_share: swin_tiny.* needs all of its patches"):
        check_spared(model.plan, TrainConfig(token_share=0.5))


def test_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    model = noisy(small_model(CLIP)).double().train()
    clip = random_clip(model)
    plain = gradients_of(model, model(clip))
    with spared(model, TrainConfig(checkpointing=True)):
        assert_same(gradients_of(model, model(clip)), plain)
        with LiveBytes() as counted:
            logits = model(clip)
    assert logits.requires_grad
    block_input = model.tower_input(clip).shape[0] * 5 * 96 * 8  # bytes
    assert counted.live < (3 + 3) * block_input + 2 * model.tower_input(clip).nbytes, (
        "the inputs of the three blocks, and the tensors outside of the blocks"
    )


def test_checkpointed_calls_are_worked_out_again_as_they_were() -> None:
    """A call with two clips, one with one clip and an evaluation come before the gradients."""
    model = noisy(small_model(CLIP)).double().train()
    two, one = random_clip(model), random_clip(model, clips=1, seed=2)
    plain = gradients_of(model, model(two).sum() + model(one).sum())
    with spared(model, TrainConfig(checkpointing=True)):
        total = model(two).sum() + model(one).sum()
        with torch.no_grad():
            model(random_clip(model, clips=3))
        assert_same(gradients_of(model, total), plain)


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("pit_ti_224", {"img_size": 64, "depth": (1, 1, 2)}),  # timm itself cannot checkpoint it
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "depths": (2, 1, 1, 1), "embed_dim": 24},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # timm warns of small versions
def test_every_kind_of_block_can_be_checkpointed(tower: str, options: dict[str, Any]) -> None:
    model = create_model(tower, num_classes=3, frames=4, heads=[-1, 1], tower_options=options)
    model = noisy(model).double().train()
    clip = random_clip(model)
    plain = gradients_of(model, model(clip))
    with spared(model, TrainConfig(checkpointing=True)):
        assert_same(gradients_of(model, model(clip)), plain)


def test_nothing_below_the_adapted_blocks_takes_part_in_the_gradient() -> None:
    model = noisy(small_model(CLIP, adapted_blocks=2)).train()
    assert [len([*of_block.children()]) for of_block in model.adapters] == [0, 4, 4]
    tower: Any = model.tower
    wants: list[bool] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda _, inputs, output: wants.append(output.requires_grad))
    clip = random_clip(model)
    gradients_of(model, model(clip))
    assert wants == [False, True, True]
    assert model.temporal_embedding.grad is not None
    assert model.temporal_embedding.grad.any(), "the embedding joins where the adapters begin"


def test_adapters_in_the_upper_blocks_merge_and_are_saved(tmp_path: Path) -> None:
    model = noisy(small_model(PLAIN, adapted_blocks=1))
    clip = random_clip(model)
    torch.testing.assert_close(model.merge()(clip), model(clip), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(zeroi2v.load(tmp_path / "saved")(clip), model(clip))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapted_blocks": 4}, "has only 3 attention blocks, got 4"),
        ({"adapted_blocks": 0}, "at least 1, or none for all, got 0"),
        (
            {"adapted_blocks": 1, "strategy": "linear_probe"},
            "adapted_blocks has no meaning for strategy linear_probe",
        ),
    ],
)
def test_adapted_blocks_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model(PLAIN, **settings)


def test_fewer_frames_reach_as_far_in_time() -> None:
    """Offsets -3, -2, 1 of 8 frames become -2, -1, 1 of 4 frames that lie twice as far apart."""
    model = small_model(PLAIN, frames=8, heads=[[-3, -2, 1], [], []]).train()
    with torch.no_grad():
        model.temporal_embedding.normal_()
    few = random_clip(model, clips=1)[:, :4]
    projection = model.tower.get_submodule("blocks.0.attn.qkv")
    outputs: dict[str, Tensor] = {}  # before and after the hook of the temporal heads
    projection.register_forward_hook(
        lambda _, inputs, output: outputs.update(before=output.clone()), prepend=True
    )
    projection.register_forward_hook(lambda _, inputs, output: outputs.update(after=output.clone()))
    assert model(few, fewer_frames=True).shape == (1, 5)
    before, after = (
        outputs[name].unflatten(-1, (3, 3, 64))[:, :, 1] for name in ("before", "after")
    )  # keys (T, N, H, D)
    read = [[0, 1, 0, 1], [0, 0, 1, 2], [1, 2, 3, 3]]
    for head, frames in enumerate(read):
        assert torch.equal(after[:, :, head], before[frames][:, :, head])
    entering = gather_inputs(projection)
    by_hand = nn.functional.interpolate(model.temporal_embedding.T[None], 4, mode="linear")[0].T
    torch.testing.assert_close(interpolated(model.temporal_embedding, 4), by_hand)
    with pytest.raises(ConfigError, match="a clip must be"):
        model(few)
    assert model(random_clip(model, clips=1)).shape == (1, 5)
    assert entering[0].shape[0] == 8
