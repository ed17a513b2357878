"""Relocation against a loop that says equation 8 one frame, head and channel at a time."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from zeroi2v.method.heads import HeadLayout
from zeroi2v.method.relocate import channel_runs, relocate, source_frames


def slow_relocate(projected: Tensor, frames: int, layout: HeadLayout, head_width: int) -> Tensor:
    """Equation 8, channel by channel, from a copy."""
    width = len(layout) * head_width
    result = projected.clone()
    for row in range(projected.shape[0]):
        clip, frame = divmod(row, frames)
        for index, head in enumerate(layout):
            first = index * head_width
            given = Fraction(0)
            shares = head if isinstance(head, tuple) else ((head, Fraction(1)),)
            for offset, share in shares:
                given += share
                last = index * head_width + round(given * head_width)
                source = frame + offset if 0 <= frame + offset < frames else frame
                for part in (1, 2):  # K and V
                    channels = slice(part * width + first, part * width + last)
                    result[row, :, channels] = projected[clip * frames + source, :, channels]
                first = last
    return result


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_relocation_is_equation_8_for_random_layouts(frames: int, seed: int) -> None:
    draw = random.Random(f"{frames}/{seed}")
    half = Fraction(1, 2)
    layout: HeadLayout = tuple(
        draw.choice([0, draw.randint(-frames, frames), ((draw.randint(-3, 3), half), (draw.randint(-3, 3), half))])
        for _ in range(draw.choice([1, 3, 12]))
    )
    projected = torch.randn(
        draw.choice([1, 2, 3]) * frames, 5, 3 * len(layout) * 4, generator=torch.Generator().manual_seed(seed)
    )
    expected = slow_relocate(projected, frames, layout, 4)
    torch.testing.assert_close(relocate(projected.clone(), frames, channel_runs(layout, 4)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_source_frames_names_what_relocation_reads(frames: int) -> None:
    for offset in range(-frames - 1, frames + 2):
        projected = (
            torch.arange(frames).float().repeat(3, 1).T[:, None, :].contiguous()
        )  # q = k = v = the frame's number
        read = relocate(projected, frames, channel_runs((offset,), 1))[:, 0]
        assert read[:, 0].tolist() == list(range(frames))
        assert read[:, 1].tolist() == read[:, 2].tolist() == source_frames(frames, offset).tolist()


def test_gradients_flow_back_to_the_frame_that_was_read() -> None:
    layout, frames = (-1, 2, ((1, Fraction(1, 2)), (0, Fraction(1, 2)))), 6
    inputs = torch.randn(2 * frames, 3, 36, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * frames, 3, 36, dtype=torch.float64)
    (relocate(inputs * 1, frames, channel_runs(layout, 4)) * weight).sum().backward()
    slow = inputs.detach().clone().requires_grad_()
    (slow_relocate(slow, frames, layout, 4) * weight).sum().backward()
    torch.testing.assert_close(inputs.grad, slow.grad)


def test_a_head_in_thirds_keeps_every_later_head_in_place() -> None:
    third = Fraction(1, 3)
    split = ((-1, third), (1, third), (2, third))
    assert channel_runs((split, -2, 0), 64) == ((0, 21, -1), (21, 43, 1), (43, 64, 2), (64, 128, -2))
    assert channel_runs((split, -2), 8) == ((0, 3, -1), (3, 5, 1), (5, 8, 2), (8, 16, -2))


def test_runs_of_equal_offset_are_moved_at_once() -> None:
    assert channel_runs((-1, -1, 1, 0, 0), 8) == ((0, 16, -1), (16, 24, 1))
    assert channel_runs((0, 0), 8) == ()
