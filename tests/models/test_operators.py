"""Do the operators of Table 1a move the right channels in a whole model?

The tests compare the first block of the embedded tower with a slow block, which computes channel by
channel.

Shapes: B clips, T frames, N tokens, H = 12 heads of D = 8 channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.towers_for_tests import noisy, random_clip, small_model

HEADS, WIDTH, FRAMES, CLIPS = 12, 8, 4, 2
OffsetOf = Callable[[int, int], int]  # (head, channel of the head) -> offset


def of_heads(*offsets: int) -> OffsetOf:
    """The first heads have these offsets; the others have offset 0."""
    return lambda head, channel: offsets[head] if head < len(offsets) else 0


def of_all_channels(ratio: float) -> OffsetOf:
    """A share of all channels, counted through the heads, reads the neighbouring frames.

    Half of the share reads the frame before, half the frame after.
    """
    return lambda head, channel: back_or_ahead(head * WIDTH + channel, ratio * HEADS * WIDTH)


def of_every_head(ratio: float) -> OffsetOf:
    """The same share of the channels of every head reads the neighbouring frames."""
    return lambda head, channel: back_or_ahead(channel, ratio * WIDTH)


def back_or_ahead(channel: int, moved: float) -> int:
    """The offset of a channel where the first `moved` channels move, half of them each way."""
    return -1 if channel < moved / 2 else 1 if channel < moved else 0


def source(frame: int, offset: int) -> int:
    """The frame that a head of this frame reads: its own where the offset leaves the clip."""
    return frame + offset if 0 <= frame + offset < FRAMES else frame


def moved_tokens(normed: Tensor, ratio: float) -> Tensor:
    """Tokens (B, T, N, C); a share of the class token's channels comes from neighbouring frames."""
    result = normed.clone()
    for channel in range(normed.shape[-1]):
        for frame in range(FRAMES):
            offset = back_or_ahead(channel, ratio * normed.shape[-1])
            result[:, frame, 0, channel] = normed[:, source(frame, offset), 0, channel]
    return result


def slow_block(
    block: Any, x: Tensor, parts: str, offset_of: OffsetOf, class_token: float
) -> Tensor:
    """The output (B, T, N, C) of a pre-norm block for tokens x (B, T, N, C).

    `parts` names which of q, k and v move.
    """
    normed = moved_tokens(block.norm1(x), class_token)
    projected = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).unflatten(
        -1, (3, HEADS, WIDTH)
    )
    moved = projected.clone()
    for part, name in enumerate("qkv"):
        for head in range(HEADS if name in parts else 0):
            for channel in range(WIDTH):
                for frame in range(FRAMES):
                    read = source(frame, offset_of(head, channel))
                    moved[:, frame, :, part, head, channel] = projected[
                        :, read, :, part, head, channel
                    ]
    attended = torch.empty_like(x)
    for head in range(HEADS):
        q, k, v = (moved[:, :, :, part, head] for part in range(3))  # (B, T, N, D)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(-1)
        attended[..., head * WIDTH : (head + 1) * WIDTH] = weights @ v
    x = x + attended @ block.attn.proj.weight.T + block.attn.proj.bias
    return x + block.mlp(moved_tokens(block.norm2(x), class_token))  # type: ignore[no-any-return]  # of an Any


CASES: list[tuple[dict[str, Any], str, OffsetOf]] = [
    ({"heads": []}, "", of_heads()),
    ({"heads": [-1, 1, 2, -3]}, "kv", of_heads(-1, 1, 2, -3)),
    ({"operator": "hr_qkv", "heads": [-1, 1, 2, -3]}, "qkv", of_heads(-1, 1, 2, -3)),
    ({"operator": "hr_v", "heads": [-1, 1, 2, -3]}, "v", of_heads(-1, 1, 2, -3)),
    ({"operator": "hr_v", "ratio": 1 / 6}, "v", of_all_channels(1 / 6)),
    *[({"ratio": ratio}, "kv", of_all_channels(ratio)) for ratio in (1 / 6, 1 / 4, 1 / 2, 1.0)],
    *[
        ({"operator": "hr_qkv", "ratio": ratio}, "qkv", of_all_channels(ratio))
        for ratio in (1 / 6, 1 / 4, 1.0)
    ],
    *[
        ({"operator": "shift_kv", "ratio": ratio}, "kv", of_every_head(ratio))
        for ratio in (1 / 4, 1 / 2, 1.0)
    ],
    *[
        ({"operator": "shift_qkv", "ratio": ratio}, "qkv", of_every_head(ratio))
        for ratio in (1 / 4, 1 / 2, 1.0)
    ],
    ({"operator": "shift_v", "ratio": 1 / 4}, "v", of_every_head(1 / 4)),
    *[({"operator": "cls_shift", "ratio": ratio}, "", of_heads()) for ratio in (1 / 4, 1 / 2, 1.0)],
]


@pytest.mark.parametrize(
    ("settings", "parts", "offset_of"), CASES, ids=[str(settings) for settings, *_ in CASES]
)
@torch.no_grad()
def test_the_first_block_does_what_table_1a_says(
    settings: dict[str, Any], parts: str, offset_of: OffsetOf
) -> None:
    model = noisy(
        small_model("zeroi2v_tiny", frames=FRAMES, strategy="linear_probe", **settings)
    ).double()
    block: Any = model.tower.get_submodule("blocks.0")
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())),
        block.register_forward_hook(lambda _, __, output: seen.append(output.clone())),
    ]
    model(random_clip(model, clips=CLIPS))
    for hook in hooks:
        hook.remove()
    for inner in block.modules():  # the slow block calls the norms and the MLP without hooks
        inner._forward_pre_hooks.clear()
        inner._forward_hooks.clear()
    x, output = (tensor.unflatten(0, (CLIPS, FRAMES)) for tensor in seen)
    class_token = settings["ratio"] if settings.get("operator") == "cls_shift" else 0.0
    torch.testing.assert_close(output, slow_block(block, x, parts, offset_of, class_token))
    if parts or class_token:
        unmoved = slow_block(block, x, "", of_heads(), 0.0)
        assert (output - unmoved).abs().max() > 1e-3, "moved channels change the output"
