"""What must hold for a tower to be called supported?

The checks ask a small version of a tower. Tests and the sweep over all names share the checks.

Shapes: B clips, T frames, C channels.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final

import timm
import torch
from timm.models import is_model_in_modules, mvitv2
from timm.models.crossvit import CrossVit
from torch import Tensor, nn

import zeroi2v
from tests.towers_for_tests import gather_inputs
from zeroi2v import VideoClassifier
from zeroi2v.measure.cost import plain_tower
from zeroi2v.method.relocate import TemporalHeads, head_moves
from zeroi2v.models.survey import Block, survey
from zeroi2v.models.towers import build_tower

CLIPS: Final = 2
FRAMES: Final = 3
SEED: Final = 0
FOUR: Final = {"depths": (2, 1, 1, 1)}
# timm's module -> options that make the towers of the module small, and pixels along a side
SMALL: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "convit": ({"img_size": 32, "depth": 2, "local_up_to_layer": 1}, 32),
    "crossvit": (
        {"img_size": 120, "depth": ((1, 1, 0),)},
        120,
    ),  # two branches of 120 and 112 pixels
    "davit": (
        {"depths": (1, 1, 1, 1), "embed_dims": (32, 64, 64, 128), "num_heads": (2, 2, 4, 4)},
        64,
    ),
    "efficientformer": ({"depths": (1, 1, 1, 4), "embed_dims": (8, 16, 16, 64)}, 224),
    "fastvit": ({"layers": (1, 1, 1, 2), "embed_dims": (32, 32, 32, 64)}, 64),
    "gcvit": ({"img_size": 64}, 64),
    "hiera": ({"img_size": 64, "stages": (1, 1, 1, 1), "embed_dim": 16, "num_heads": 2}, 64),
    "hieradet_sam2": (
        {"stages": (1, 1, 2, 1), "embed_dim": 16, "num_heads": 2, "global_att_blocks": (3,)},
        64,
    ),
    "maxxvit": (
        {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (32, 64, 64, 64), "stem_width": 16},
        64,
    ),
    "metaformer": ({}, 64),
    "mobilevit": ({}, 128),
    "mvitv2": ({"img_size": 64}, 64),
    "nest": ({"img_size": 64}, 64),
    "pit": ({"img_size": 64, "depth": (1, 1, 2)}, 64),
    "swin_transformer": ({"img_size": 64, "window_size": 4, **FOUR}, 64),
    "swin_transformer_v2": ({"img_size": 64, "window_size": 4, **FOUR}, 64),
    "swin_transformer_v2_cr": ({"img_size": 64, "window_size": 4, **FOUR}, 64),
    "tiny_vit": (
        {"depths": (1, 2, 1, 1), "embed_dims": (16, 32, 64, 64), "num_heads": (2, 2, 4, 4)},
        64,
    ),
    "volo": ({"img_size": 64}, 64),
}
IMPLEMENTATIONS: Final = (  # a tower for each way in which timm writes attention
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
)
SLOW_IMPLEMENTATIONS: Final = (  # towers without a small version
    "nest_tiny",
    "mobilevit_s",
    "maxvit_tiny_tf_224",
)


def first_heads(name: str) -> int:
    """The number of heads of the first attention block of a tower."""
    with torch.device("meta"):
        return survey(timm.create_model(name, num_classes=0), name).head_counts[0]


def plain_options(name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Options, and pixels along a side, for a small version of a tower whose blocks are alike.

    The first options ask for two blocks, heads of 16 channels and pictures of two by two patches.
    The later options ask for less, for towers that refuse the first.
    """
    stated = re.search(r"(?:patch|_p)(\d+)", name)
    size = 2 * int(stated[1]) if stated else 64
    if is_model_in_modules(name, ["deepseek_vit", "qwen3_vit"]):
        size = 6 * (14 if "deepseek" in name else 16)  # they merge 3 by 3 or 2 by 2 patches
    width = 16 * first_heads(name)
    for pixels in (size, 64, 128):
        options = {"img_size": pixels, "depth": 2}
        yield {**options, "embed_dim": width}, pixels
        yield options, pixels
        yield {"depth": 2}, pixels
        yield {}, pixels


@contextlib.contextmanager
def small_tower(name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Options that make a small version of a tower, and the pixels along a side of its pictures.

    The options are valid as long as the context lasts.
    """
    family = next((module for module in SMALL if is_model_in_modules(name, [module])), None)
    if family == "mvitv2":  # takes no options, so timm's table is changed for a time
        kept = mvitv2.model_cfgs[name]
        heads = [kept.num_heads] if isinstance(kept.num_heads, int) else kept.num_heads
        mvitv2.model_cfgs[name] = dataclasses.replace(
            kept, depths=(1, 1, 2, 1), embed_dim=tuple(16 * count for count in heads)
        )
        try:
            yield SMALL[family]
        finally:
            mvitv2.model_cfgs[name] = kept
    elif family is not None and family.startswith("swin"):
        options, size = SMALL[family]
        yield {**options, "embed_dim": 8 * first_heads(name)}, size
    elif name == "crossvit_18_240":  # alone among CrossViTs, it takes no depth
        yield {"img_size": 120}, 120
    elif name in ("fastvit_mci3", "fastvit_mci4"):  # five stages, the last two with attention
        yield {"embed_dims": (32, 32, 32, 64, 64)}, 128
    elif family is not None:
        yield SMALL[family]
    else:
        yield next(
            (options, size) for options, size in plain_options(name) if fits(name, options, size)
        )


def fits(name: str, options: dict[str, Any], size: int) -> bool:
    """Whether timm accepts the options, and the tower pictures of this size."""
    try:
        with torch.device("meta"), torch.no_grad():
            timm.create_model(name, num_classes=0, **options).eval()(torch.empty(1, 3, size, size))
    except (TypeError, ValueError, AssertionError, RuntimeError):
        return False
    return True


def randomise(model: VideoClassifier, clip: Tensor) -> VideoClassifier:
    """The model in eval mode, with random norms, biases, scales and tables.

    A weight that is an identity or a zero would prove nothing.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in (*model.tower.modules(), *model.adapters.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                # Keeps the part of an activation that depends on the picture from vanishing, and
                # from growing until rounding decides.
                spread = module.weight[0].numel() ** -0.5
                module.weight.copy_(spread * torch.randn(module.weight.shape, generator=generator))
        for parameter in model.parameters():
            if (
                parameter.ndim < 2
                or parameter.numel() <= 4 * max(parameter.shape)
                or parameter.std() < 0.01
            ):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        for parameter in model.classifier.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            # The norm takes the clip's own averages. With other averages the activations grow
            # until a softmax is all or nothing.
            norm.train()
            norm.momentum = 1.0
        if norms:
            model.features(clip.to(model.classifier.weight))
    return model.eval()


def random_frames(size: int) -> Tensor:
    """Clips (B, T, 3, size, size) in float64."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(CLIPS, FRAMES, 3, size, size, generator=generator, dtype=torch.float64)


@torch.no_grad()
def check_tower(name: str) -> dict[str, Any]:
    """Check all promises on a small version of a tower; the result describes this version.

    AssertionError names a promise that the tower breaks.
    """
    with small_tower(name) as (options, size):
        torch.manual_seed(SEED)
        clip = random_frames(size)
        spatial = zeroi2v.create_model(
            name, num_classes=3, frames=FRAMES, heads=[], tower_options=options
        )
        spatial = randomise(spatial.eval(), clip).double()
        blocks = [plan.block for plan in spatial.plan.blocks]
        nn.init.zeros_(spatial.temporal_embedding)
        for parameter in spatial.adapters.parameters():
            nn.init.zeros_(parameter)
        check_frame_by_frame(spatial, clip)
        check_prefix(spatial, blocks, clip)
        for index in sorted({0, len(blocks) - 1, *range(0, len(blocks), max(1, len(blocks) // 4))}):
            block = blocks[index]
            check_one_head(
                spatial,
                block,
                clip,
                head=index % block.layout.head_count,
                offset=(-1, 1)[index % 2],
            )
        temporal = zeroi2v.create_model(
            name, num_classes=3, frames=FRAMES, heads="-1*1/2, 1*1/2", tower_options=options
        )
        check_merging(randomise(temporal.eval(), clip), clip, options)
        return {
            "blocks": len(blocks),
            "spatial": list(spatial.plan.tower.spatial_blocks),
            "without_mlp_adapters": sum("up" not in block.sites for block in blocks),
            "options": options,
            "pixels": size,
            "million_parameters": round(
                sum(parameter.numel() for parameter in temporal.tower.parameters()) / 1e6, 2
            ),
        }


def check_frame_by_frame(model: VideoClassifier, clip: Tensor) -> None:
    """Offsets of 0 give the image tower's features, frame by frame.

    And the tower calls every attention block once, in order.
    """
    blocks = [plan.block for plan in model.plan.blocks]
    called: list[str] = []
    hooks = [
        projection_of(model, block).register_forward_hook(
            lambda *_, name=block.name: called.append(name)
        )
        for block in blocks
    ]
    features = model.features(clip)
    for hook in hooks:
        hook.remove()
    assert called == [block.name for block in blocks], (
        "every attention block is called once, in order"
    )
    tower = plain_tower(model)
    one_by_one = torch.stack(
        [torch.stack([tower(frame[None])[0] for frame in frames]) for frames in clip]
    )
    torch.testing.assert_close(
        features, one_by_one, rtol=1e-8, atol=1e-8 * float(one_by_one.abs().max())
    )
    assert features.shape == (CLIPS, FRAMES, model.classifier.in_features)
    if not isinstance(model.tower, CrossVit):  # a CrossViT keeps two sets of tokens
        tokens = model.tokens(clip)
        assert tokens.ndim == 4
        assert tokens.shape[:2] == (CLIPS, FRAMES)
    assert float((one_by_one[:, 0] - one_by_one[:, 1]).abs().max()) > 1e-6, "the picture matters"
    assert all(len(values) == 3 for values in model.normalisation)


def projection_of(model: VideoClassifier, block: Block) -> nn.Module:
    """The fused projection of a block."""
    return model.tower.get_submodule(block.sites["qkv"].linears[0])


def check_prefix(model: VideoClassifier, blocks: Sequence[Block], clip: Tensor) -> None:
    """The first tokens, as many as the survey's `prefix`, do not depend on the picture.

    They are the class and register tokens, before the first block.
    """
    projection, anatomy = projection_of(model, blocks[0]), model.plan.tower
    seen = gather_inputs(projection)
    model.features(clip)
    model.features(torch.randn_like(clip))
    if seen[0].ndim == 3 and len(seen[0]) == CLIPS * FRAMES:
        same = (seen[0] - seen[1]).abs().amax((0, 2)) == 0  # (N)
        leading = int(same.int().cumprod(0).sum())
        assert leading == anatomy.prefix
    else:
        assert anatomy.prefix == 0
    assert not anatomy.has_class_token or anatomy.prefix >= 1
    projection._forward_pre_hooks.popitem()


def check_one_head(
    model: VideoClassifier, block: Block, clip: Tensor, *, head: int, offset: int
) -> None:
    """A temporal head takes keys and values from the frame at its offset, queries from its own.

    No other channel of this block's attention moves.
    """
    layout = tuple(offset if index == head else 0 for index in range(block.layout.head_count))
    temporal = TemporalHeads(block.layout, head_moves(layout))
    attention: Any = model.tower.get_submodule(block.name)
    children = [child for child, _ in attention.named_children()]
    normed = "norm" in children[children.index("qkv") :] and not isinstance(
        attention.norm, nn.Identity
    )
    # A norm over all heads mixes the heads, so the input of the norm is watched.
    watched = attention.norm if normed else attention.proj
    seen: list[Tensor] = []
    hooks = [
        projection_of(model, block).register_forward_hook(temporal),
        watched.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].view(CLIPS, FRAMES, -1, inputs[0].shape[-1]))
        ),
    ]
    reader, read = 1 - offset, 1
    for changed in (None, read, reader):
        other = clip.clone()
        if changed is not None:
            other[0, changed] = torch.randn_like(other[0, changed])
        model.features(other)
    for hook in hooks:
        hook.remove()
    before, *after = (inputs.clone() for inputs in seen)
    own_channels = torch.zeros(before.shape[-1], dtype=torch.bool)
    own_channels[block.head_channels.columns[head]] = True
    for changed, now in zip((read, reader), after, strict=True):
        moved = (now - before).abs().amax(2) > 1e-12 * float(before.abs().max())  # (B, T, C)
        expected = torch.zeros_like(moved)
        expected[0, changed] = True
        if changed == read:
            expected[0, reader] = own_channels
        elif 0 <= reader - offset < FRAMES and reader - offset != read:
            expected[0, reader - offset] = own_channels
        wrong = (moved != expected).nonzero().tolist()
        assert not wrong, (
            f"{block.name}, head {head}, offset {offset}, frame {changed} changed: "
            f"(clip, frame, channel) {wrong[:4]}"
        )


def check_merging(model: VideoClassifier, clip: Tensor, options: dict[str, Any]) -> None:
    """Merging changes no output, also after saving and loading.

    And a merged model has the tower's own keys and shapes.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = zeroi2v.load(folder)
    expected = copy.deepcopy(model).double()(clip)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-6, "the clip matters"
    for other in (model.double().merge(), loaded.double().merge(), loaded):
        difference = float((other(clip) - expected).abs().max() / expected.abs().max())
        assert difference < 1e-8, (
            f"merged or loaded, the logits differ by {difference:.1e} of the largest"
        )
    with torch.device("meta"):
        tower = build_tower(model.spec.model.tower, pretrained=False, options=options)
    own = {f"tower.{key}": tensor.shape for key, tensor in tower.state_dict().items()}
    merged = {key: tensor.shape for key, tensor in model.merge().state_dict().items()}
    extra = {key for key in merged if key not in own}
    assert extra == {"temporal_embedding", "classifier.weight", "classifier.bias"}
    assert {key: merged[key] for key in own} == own
