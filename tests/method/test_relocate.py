"""Relocation against loops over frames, heads and channels that follow equation 8 and Table 1a."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.towers_for_tests import new_call
from zeroi2v.method.call import in_call
from zeroi2v.method.heads import HeadLayout, SplitHead
from zeroi2v.method.relocate import (
    ClassTokenShift,
    FusedLayout,
    Move,
    MovedParts,
    channel_moves,
    head_moves,
    relocate,
)

LAYOUTS = {
    "q, k, v, then heads": FusedLayout(6, 4, 4),
    "heads, then q, k, v": FusedLayout(6, 4, 4, head_first=True),
    "heads, then q, k, and a wider v": FusedLayout(6, 4, 10, head_first=True),
    "q, k, and a wider v, then heads": FusedLayout(6, 4, 10),
}

# The parts that move, and their numbers: q 0, k 1, v 2
PARTS: dict[MovedParts, tuple[int, ...]] = {"kv": (1, 2), "v": (2,), "qkv": (0, 1, 2)}


def slow_layout_index(layout: FusedLayout, part: int, head: int, channel: int) -> int:
    """The index, in the projection's output, of a channel of q (part 0), k (1) or v (2)."""
    widths = (layout.key_width, layout.key_width, layout.value_width)
    if layout.head_first:
        return head * sum(widths) + sum(widths[:part]) + channel
    return layout.head_count * sum(widths[:part]) + head * widths[part] + channel


def slow_relocate(
    projected: Tensor,
    frames: int,
    layout: FusedLayout,
    offset_of: Callable[[int, int, int], int],
    parts: tuple[int, ...],
) -> Tensor:
    """Equation 8, channel by channel, into a copy.

    The rows of `projected` are those of two clips, in the order (clip, frame, window).
    """
    result = projected.clone()
    windows = projected.shape[0] // (frames * 2)
    for part in parts:
        width = layout.value_width if part == 2 else layout.key_width
        for head in range(layout.head_count):
            for channel in range(width):
                index, offset = (
                    slow_layout_index(layout, part, head, channel),
                    offset_of(head, channel, width),
                )
                for row in range(len(projected)):
                    clip, rest = divmod(row, frames * windows)
                    frame, window = divmod(rest, windows)
                    source = frame + offset if 0 <= frame + offset < frames else frame
                    result[row, ..., index] = projected[
                        (clip * frames + source) * windows + window, ..., index
                    ]
    return result


def of_heads(heads: HeadLayout) -> Callable[[int, int, int], int]:
    """A function of (head, channel, channels of a head) that returns the offset of the channel."""

    def offset_of(head: int, channel: int, width: int) -> int:
        stop = Fraction(0)
        entry = heads[head]
        pairs: SplitHead = entry if isinstance(entry, tuple) else ((entry, Fraction(1)),)
        for offset, share in pairs:
            stop += share
            if channel < round(stop * width):
                return offset
        return 0

    return offset_of


def random_heads(draw: random.Random, frames: int, count: int) -> HeadLayout:
    half = Fraction(1, 2)

    def random_head() -> int | SplitHead:
        split_head = ((draw.randint(-3, 3), half), (draw.randint(-3, 3), half))
        choices: list[int | SplitHead] = [0, draw.randint(-frames, frames), split_head]
        return draw.choice(choices)

    return tuple(random_head() for _ in range(count))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("frames", [1, 2, 3, 8, 32])
def test_relocation_is_equation_8_for_random_layouts(frames: int, name: str) -> None:
    draw, layout = random.Random(f"{frames}/{name}"), LAYOUTS[name]
    for windows in (1, 3):
        heads = random_heads(draw, frames, layout.head_count)
        channels = layout.head_count * (2 * layout.key_width + layout.value_width)
        projected = torch.randn(
            2 * frames * windows, 2, channels, generator=torch.Generator().manual_seed(frames)
        )
        for parts, moving in PARTS.items():
            expected = slow_relocate(projected, frames, layout, of_heads(heads), moving)
            moved = relocate(
                projected.clone(),
                clips=2,
                frames=frames,
                layout=layout,
                moves=head_moves(heads),
                parts=parts,
            )
            torch.testing.assert_close(moved, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ratio", [Fraction(1, 6), Fraction(1, 4), Fraction(1, 2), Fraction(1)])
def test_channel_shift_moves_a_share_of_every_head(ratio: Fraction, name: str) -> None:
    layout, frames = LAYOUTS[name], 5

    def offset_of(head: int, channel: int, width: int) -> int:
        if channel < round(ratio / 2 * width):
            return -1
        return 1 if channel < round(ratio * width) else 0

    channels = layout.head_count * (2 * layout.key_width + layout.value_width)
    projected = torch.randn(2 * frames, 3, channels, generator=torch.Generator().manual_seed(0))
    moves = channel_moves(ratio, layout.head_count)
    for parts, moving in PARTS.items():
        expected = slow_relocate(projected, frames, layout, offset_of, moving)
        moved = relocate(
            projected.clone(), clips=2, frames=frames, layout=layout, moves=moves, parts=parts
        )
        torch.testing.assert_close(moved, expected, rtol=0, atol=0)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_class_token_shift_moves_token_0_alone(frames: int) -> None:
    clips, tokens, channels, ratio = 2, 3, 12, Fraction(1, 2)
    x = torch.randn(clips * frames, tokens, channels, generator=torch.Generator().manual_seed(0))
    expected = x.clone()
    for clip in range(clips):
        for frame in range(frames):
            for channel in range(6):
                source = frame - 1 if channel < 3 else frame + 1
                source = source if 0 <= source < frames else frame
                expected[clip * frames + frame, 0, channel] = x[clip * frames + source, 0, channel]
    before = x.clone()
    with in_call(new_call(clips, frames)):
        (shifted,) = ClassTokenShift(ratio)(nn.Identity(), (x,))
    torch.testing.assert_close(shifted, expected, rtol=0, atol=0)
    assert torch.equal(x, before), "the norm's output stays as it was, for its gradient"


def test_gradients_flow_back_to_the_frame_that_was_read() -> None:
    heads: HeadLayout = (-1, 2, ((1, Fraction(1, 2)), (0, Fraction(1, 2))))
    layout, frames = FusedLayout(3, 4, 4), 6
    inputs = torch.randn(2 * frames, 3, 36, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * frames, 3, 36, dtype=torch.float64)
    settings: dict[str, Any] = {"frames": frames, "layout": layout}
    (relocate(inputs * 1, clips=2, moves=head_moves(heads), **settings) * weight).sum().backward()
    slow = inputs.detach().clone().requires_grad_()
    (slow_relocate(slow, frames, layout, of_heads(heads), (1, 2)) * weight).sum().backward()
    torch.testing.assert_close(inputs.grad, slow.grad)


def test_a_head_in_thirds_keeps_every_later_head_in_place() -> None:
    third = Fraction(1, 3)
    split = ((-1, third), (1, third), (2, third))
    moves = head_moves((split, -2, -2, 0, 3))
    zero, whole = Fraction(0), Fraction(1)
    assert moves == (
        Move(0, 1, zero, third, -1),
        Move(0, 1, third, 2 * third, 1),
        Move(0, 1, 2 * third, whole, 2),
        Move(1, 3, zero, whole, -2),
        Move(4, 5, zero, whole, 3),
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_name_every_channel_of_q_k_and_v_once(name: str) -> None:
    layout = LAYOUTS[name]
    q, k, v = layout.rows()
    for part, rows in enumerate((q, k, v)):
        expected = [
            [slow_layout_index(layout, part, head, channel) for channel in range(rows.shape[1])]
            for head in range(layout.head_count)
        ]
        assert rows.tolist() == expected
    assert sorted(torch.cat([q.flatten(), k.flatten(), v.flatten()]).tolist()) == list(
        range(q.numel() * 2 + v.numel())
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_gradients_go_back_to_the_frames_that_were_read(
    layout: FusedLayout, parts: MovedParts, frames: int
) -> None:
    """Against the gradients of the slow loops.

    The layout has offsets of both signs, an offset longer than the clip, and a split head.
    """
    heads: HeadLayout = (-1, 1, ((2, Fraction(1, 2)), (0, Fraction(1, 2))), -3, 7, 0)
    torch.manual_seed(0)
    channels = layout.head_count * (2 * layout.key_width + layout.value_width)
    inputs, weights = torch.randn(2, 2 * frames * 2, 3, channels, dtype=torch.float64)
    results = []
    for route in ("fast", "slow"):
        leaf = inputs.clone().requires_grad_()
        projected = leaf * 1.5  # like a projection's output: no leaf, and no other code holds it
        if route == "fast":
            moves = head_moves(heads)
            relocated = relocate(
                projected, clips=2, frames=frames, layout=layout, moves=moves, parts=parts
            )
        else:
            relocated = slow_relocate(projected, frames, layout, of_heads(heads), PARTS[parts])
        (relocated * weights).sum().backward()
        results.append((relocated.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])
