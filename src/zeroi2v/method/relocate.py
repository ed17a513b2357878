"""Which frame does a head read? Spatial-temporal dual-head attention (STDHA): equations 7-9 of the paper.

A temporal head of frame t takes its keys and values from frame t + offset, and its queries from frame t. Nothing else in
attention changes, so the operator is an index along the frame axis of the fused projection's output.

Shapes: B clips, T frames, N tokens per frame, H heads of D channels each, C = H * D.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zeroi2v.method.heads import HeadLayout


def source_frames(frames: int, offset: int) -> Tensor:
    """For each frame, the frame that a head of this offset reads: (T,) int64. One that would leave the clip reads its own."""
    own = torch.arange(frames)
    wanted = own + offset
    return torch.where((wanted >= 0) & (wanted < frames), wanted, own)


class Run(NamedTuple):
    """Neighbouring channels, counted within each of K and V, that share an offset."""

    start: int
    stop: int
    offset: int


def channel_runs(layout: HeadLayout, head_width: int) -> tuple[Run, ...]:
    """The channels that leave their own frame, as few runs as possible. `head_width` is D."""
    runs: list[Run] = []
    for index, head in enumerate(layout):
        start, given = index * head_width, Fraction(0)
        for offset, share in head if isinstance(head, tuple) else ((head, Fraction(1)),):
            given += share
            stop = index * head_width + round(given * head_width)
            if runs and runs[-1].stop == start and runs[-1].offset == offset:
                runs[-1] = runs[-1]._replace(stop=stop)
            elif stop > start:
                runs.append(Run(start, stop, offset))
            start = stop
    return tuple(run for run in runs if run.offset != 0)


def relocate(projected: Tensor, frames: int, runs: Iterable[Run]) -> Tensor:
    """Equation 8 for all heads at once: K and V of every run come from frame t + offset, edges from their own frame.

    `projected` is the fused projection's output (B*T, N, 3C), its last axis ordered [q, k, v]. It is changed in place: the
    projection has just made it and nobody else holds it, and a linear layer's gradient does not need its output.
    """
    runs = [run for run in runs if abs(run.offset) < frames]  # else every frame would leave the clip
    if not runs:
        return projected
    clips = projected.view(-1, frames, *projected.shape[1:-1], 3, projected.shape[-1] // 3)  # (B, T, N, 3, C)
    first = min(run.start for run in runs)
    moved = clips[..., 1:, first : max(run.stop for run in runs)]  # temporal heads lie side by side
    before = moved.clone()
    for start, stop, offset in runs:
        source, target = (part[..., start - first : stop - first] for part in (before, moved))
        reach = frames - abs(offset)
        if offset > 0:
            target[:, :reach].copy_(source[:, -reach:])
        else:
            target[:, -reach:].copy_(source[:, :reach])
    return projected


class TemporalHeads:
    """A forward hook for an attention block's fused projection. It has no weights."""

    def __init__(self, layout: HeadLayout, head_width: int, frames: int) -> None:
        self.runs = channel_runs(layout, head_width)
        self.frames = frames

    def hook(self, projection: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> Tensor:
        return relocate(projected, self.frames, self.runs)
