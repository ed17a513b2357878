"""Which frame does a head read? Spatial-temporal dual-head attention (STDHA) and its rivals: equations 7-9 and Table 1a.

A temporal head of frame t takes its keys and values from frame t + offset, and its queries from frame t. Nothing else in
attention changes, so the operator is an index along the frame axis of the fused projection's output. The other zero-cost
operators are the same index with another map from (q | k | v, head, channel) to an offset.

Shapes: B clips, T frames, W windows of a frame (1 where attention is global), N tokens, H heads of D channels each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zeroi2v.method.call import call_in_progress
from zeroi2v.method.heads import HeadLayout, shares


class Move(NamedTuple):
    """Neighbouring heads, and the share of the channels of each head, that read the frame at an offset."""

    first_head: int
    stop_head: int
    start: Fraction
    stop: Fraction
    offset: int

    def slices(self, width: int) -> tuple[slice, slice]:
        """The heads, and the channels of each head, where a head has `width` channels."""
        channels = slice(round(self.start * width), round(self.stop * width))
        return slice(self.first_head, self.stop_head), channels


def head_moves(layout: HeadLayout) -> tuple[Move, ...]:
    """Whole heads, or shares of a split head, that leave their own frame; as few moves as possible."""
    moves: list[Move] = []
    for index, head in enumerate(layout):
        given = Fraction(0)
        for offset, share in shares(head):
            start, given = given, given + share
            last = moves[-1] if moves else None
            if (
                last
                and share == 1
                and last.stop_head == index
                and last[2:] == (Fraction(0), Fraction(1), offset)
            ):
                moves[-1] = moves[-1]._replace(stop_head=index + 1)
            else:
                moves.append(Move(index, index + 1, start, given, offset))
    return tuple(move for move in moves if move.offset != 0)


def channel_moves(ratio: Fraction, head_count: int) -> tuple[Move, ...]:
    """Channel shift (Table 1a): in every head, a share `ratio` of the channels moves, half of it back and half ahead."""
    half = ratio / 2
    return (Move(0, head_count, Fraction(0), half, -1), Move(0, head_count, half, ratio, 1))


@dataclass(frozen=True)
class FusedLayout:
    """How the last axis of a fused projection's output holds q, k and v."""

    head_count: int
    key_width: int  # D of q and k
    value_width: int  # D of v
    head_first: bool = False  # [head, (q, k, v), channel] instead of [(q, k, v), head, channel]

    def views(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Views (..., P, H, D) of `projected` (..., C) that hold q, k and v between them, in order: one where their widths are equal."""
        if self.key_width == self.value_width:
            if self.head_first:
                return (
                    projected.unflatten(-1, (self.head_count, 3, self.key_width)).transpose(-3, -2),
                )
            return (projected.unflatten(-1, (3, self.head_count, self.key_width)),)
        widths = (self.key_width, self.key_width, self.value_width)
        if self.head_first:
            parts = projected.unflatten(-1, (self.head_count, sum(widths))).split(widths, -1)
        else:
            whole = projected.split([self.head_count * width for width in widths], -1)
            parts = tuple(part.unflatten(-1, (self.head_count, -1)) for part in whole)
        return tuple(part.unsqueeze(-3) for part in parts)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """For q, k and v, the projection's output channels (H, D) int64."""
        width = self.head_count * (2 * self.key_width + self.value_width)
        channels = torch.arange(width, device="cpu")  # also where the tower has no storage
        q, k, v = (part for view in self.views(channels) for part in view.unbind(-3))
        return q, k, v

    def fused(self, parts: Iterable[Tensor]) -> Tensor:
        """The projection's output (..., C) whose `views`, taken together, are these parts (..., P, H, D)."""
        if self.head_first:
            by_head = [part.transpose(-3, -2).flatten(-2) for part in parts]  # (..., H, P * D)
            return torch.cat(by_head, -1).flatten(-2)
        return torch.cat([part.flatten(-3) for part in parts], -1)


def relocate(
    projected: Tensor,
    *,
    clips: int,
    frames: int,
    layout: FusedLayout,
    moves: Iterable[Move],
    queries: bool = False,
) -> Tensor:
    """Equation 8 for all heads: the K and V of each move come from frame t + offset, at the edges from frame t itself.

    `projected` is the fused projection's output (B*T*W, ..., C). It is changed in place where it may be: the projection has
    just made it, nobody else holds it, and a linear layer's gradient does not need its output. A compiled or exported graph
    gets a new tensor instead, made of slices. `queries`: Q moves with K and V.
    """
    moves = [
        move for move in moves if abs(move.offset) < frames
    ]  # else every frame would leave the clip
    if not moves:
        return projected
    by_frame = projected.view(clips, frames, -1, *projected.shape[1:])
    if torch.compiler.is_compiling():  # true while a graph is exported, too
        return _relocated(by_frame, layout, moves, queries=queries).flatten(0, 2)
    shape = by_frame.shape  # the gradient keeps `moved_channels`, which must keep no tensor

    def moved_channels(tensor: Tensor) -> Iterator[tuple[Tensor, int]]:
        views = layout.views(tensor.view(shape))
        if not queries:
            views = (views[0][..., 1:, :, :],) if len(views) == 1 else views[1:]
        for view in views:
            for move in moves:
                heads, channels = move.slices(view.shape[-1])
                yield view[..., heads, channels], move.offset

    if projected.requires_grad and not projected._is_view():
        relocated: Tensor = _Relocate.apply(projected, moved_channels)
        return relocated
    for channels, offset in moved_channels(projected):
        _shift(channels, offset)
    return projected


def _relocated(
    by_frame: Tensor, layout: FusedLayout, moves: Sequence[Move], *, queries: bool
) -> Tensor:
    """The same as a new tensor (B, T, W, ..., C), of slices and concatenations alone: a graph writes nothing in place."""
    views = layout.views(by_frame)
    stays = 0 if queries else 1  # Q
    if len(views) == 1:
        views = (views[0][..., :1, :, :], views[0][..., 1:, :, :])
    moved = [_moved_heads(view, moves) for view in views[stays:]]
    return layout.fused([*views[:stays], *moved])


def _moved_heads(view: Tensor, moves: Sequence[Move]) -> Tensor:
    """The parts (B, T, W, ..., P, H, D) with every move made. Neighbouring heads that move alike are one slice."""
    pieces: list[Tensor] = []
    head, width = 0, view.shape[-1]
    for (first, stop), same_heads in itertools.groupby(moves, key=lambda move: move[:2]):
        heads, channel = view[..., first:stop, :], 0
        columns: list[Tensor] = []
        for move in same_heads:
            channels = move.slices(width)[1]
            moved = moved_frames(heads[..., channels], move.offset)
            columns += [heads[..., channel : channels.start], moved]
            channel = channels.stop
        pieces += [view[..., head:first, :], _joined([*columns, heads[..., channel:]], -1)]
        head = stop
    return _joined([*pieces, view[..., head:, :]], -2)


def _joined(pieces: Iterable[Tensor], axis: int) -> Tensor:
    """The pieces as one tensor along an axis; pieces of length 0 are left out."""
    kept = [piece for piece in pieces if piece.shape[axis]]
    return kept[0] if len(kept) == 1 else torch.cat(kept, axis)


def moved_frames(channels: Tensor, offset: int) -> Tensor:
    """A tensor (B, T, ...) whose frame t is what frame t + offset was, at the edges what frame t was."""
    if offset > 0:
        return torch.cat([channels[:, offset:], channels[:, -offset:]], 1)
    return torch.cat([channels[:, :-offset], channels[:, :offset]], 1)


class _Relocate(torch.autograd.Function):
    """All shifts in one step of the graph: autograd by itself would copy the whole gradient once for each."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        moved_channels: Callable[[Tensor], Iterator[tuple[Tensor, int]]],
    ) -> Tensor:
        ctx.mark_dirty(projected)
        ctx.moved_channels = moved_channels
        for channels, offset in moved_channels(projected):
            _shift(channels, offset)
        return projected

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient.clone(memory_format=torch.contiguous_format)
        for channels, offset in ctx.moved_channels(own):
            _shift_back(channels, offset)
        return own, None


def _shift(channels: Tensor, offset: int) -> None:
    """Frame t (axis 1) becomes what frame t + offset was, in place, for every t where that is a frame of the clip."""
    kept = channels.shape[1] - abs(offset)
    ahead, behind = channels[:, -kept:], channels[:, :kept]
    target, source = (behind, ahead) if offset > 0 else (ahead, behind)
    target.copy_(source.clone())  # they overlap


def _shift_back(gradients: Tensor, offset: int) -> None:
    """The gradient of `_shift`, in place: each frame gets those of the frames that read it, at the edges of itself."""
    frames, kept = gradients.shape[1], gradients.shape[1] - abs(offset)
    given = gradients.clone()
    gradients.zero_()
    if offset > 0:
        gradients[:, kept:] = given[:, kept:]
        gradients[:, -kept:] += given[:, :kept]
    else:
        gradients[:, : frames - kept] = given[:, : frames - kept]
        gradients[:, :kept] += given[:, -kept:]


def frames_read(layout: FusedLayout, moves: Iterable[Move], frames: int) -> Tensor:
    """For each frame, head and channel of v, the frame that it is taken from: (T, H, D) int64."""
    rows = layout.rows()
    own = torch.arange(frames)[:, None].repeat(1, sum(part.numel() for part in rows))
    return relocate(own, clips=1, frames=frames, layout=layout, moves=moves)[:, rows[2]]


def channel_offsets(layout: FusedLayout, moves: Sequence[Move]) -> Tensor:
    """The offset of each head's channels of v: (H, D) int64, 0 where they stay. A whole head's are all alike."""
    furthest = max((abs(move.offset) for move in moves), default=0)
    return frames_read(layout, moves, 2 * furthest + 1)[furthest] - furthest


class TemporalHeads:
    """A forward hook of an attention block's fused projection. It has no weights."""

    def __init__(
        self, layout: FusedLayout, moves: Sequence[Move], *, queries: bool = False
    ) -> None:
        self.layout, self.moves, self.queries = layout, tuple(moves), queries

    def __call__(
        self, projection: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor
    ) -> Tensor:
        call = call_in_progress()
        if call is None:
            return projected
        return relocate(
            projected,
            clips=call.clips,
            frames=call.frames,
            layout=self.layout,
            moves=[move._replace(offset=call.scaled(move.offset)) for move in self.moves],
            queries=self.queries,
        )


class ClassTokenShift:
    """[cls] token shift (Table 1a; Zhang et al., 2021): a share of the channels of token 0 moves, half back and half ahead.

    A forward pre-hook of the modules that follow a norm: the fused projection, and the MLP.
    """

    def __init__(self, ratio: Fraction) -> None:
        self.half = ratio / 2

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = inputs  # (B*T, N, C)
        call = call_in_progress()
        if call is None or call.frames == 1:
            return inputs
        class_token = tokens[:, :1].unflatten(0, (-1, call.frames))  # (B, T, 1, C)
        width = tokens.shape[-1]
        back, ahead = round(self.half * width), round(2 * self.half * width)
        parts = [
            moved_frames(class_token[..., :back], -1),
            moved_frames(class_token[..., back:ahead], 1),
            class_token[..., ahead:],
        ]
        return (torch.cat([torch.cat(parts, -1).flatten(0, 1), tokens[:, 1:]], 1), *others)
