"""Which frame does a head read? Spatial-temporal dual-head attention (STDHA), and other operators.

STDHA is equations 7-9 of the paper. A temporal head of frame t takes its keys and values from frame
t + offset, and its queries from frame t. Nothing else in attention changes. So STDHA is an index
along the frame axis of the output of the fused projection, the linear layer that makes q, k and v
at once. The other zero-cost operators of Table 1a are the same index with another map from
(q | k | v, head, channel) to an offset. So are operators that move the values alone.

Shapes: B clips, T frames, W windows of a frame (1 where attention is global), N tokens, H heads of
D channels each, C channels of the fused projection's output.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from zeroi2v.method import kernels
from zeroi2v.method.call import Call, call_in_progress
from zeroi2v.method.gradients import exports, follows_operations
from zeroi2v.method.heads import HeadLayout, shares
from zeroi2v.method.moving import (
    Block,
    Copy,
    Rows,
    Run,
    copies_of,
    equal_runs,
    make_copies,
    move_by_index,
    move_rows,
    rows_of,
    shift_gradient,
)

# The parts of the fused projection's output that move with a temporal head.
MovedParts: TypeAlias = Literal["kv", "v", "qkv"]
MOST_SHAPES: Final = 64  # shapes of calls for which a relocation keeps what it worked out


class Move(NamedTuple):
    """A share of the channels of some neighbouring heads. These channels read frame t + offset."""

    first_head: int
    stop_head: int  # one past the last head
    start: Fraction  # where the share begins, as a part of a head's channels: 0 to 1
    stop: Fraction  # where the share ends, as a part of a head's channels: 0 to 1
    offset: int  # in frames

    def slices(self, width: int) -> tuple[slice, slice]:
        """The slice of heads, and the slice of each head's `width` channels.

        A share that is no whole number of channels is rounded down, as in the authors' code. So
        equal shares have equally many channels, and the channels that remain read their own frame.
        """
        # Not int(): torch.compile of PyTorch 2.10 cannot follow int() of a fraction.
        first = self.start * width // 1
        stop = first + (self.stop - self.start) * width // 1
        return slice(self.first_head, self.stop_head), slice(first, stop)


def head_moves(layout: HeadLayout) -> tuple[Move, ...]:
    """The moves of all temporal heads of a layout.

    Neighbouring heads that are not split and have the same offset share one move.
    """
    moves: list[Move] = []
    for index, head in enumerate(layout):
        stop = Fraction(0)
        for offset, share in shares(head):
            start, stop = stop, stop + share
            last = moves[-1] if moves else None
            if (
                last
                and share == 1
                and last.stop_head == index
                and last[2:] == (Fraction(0), Fraction(1), offset)
            ):
                moves[-1] = last._replace(stop_head=index + 1)
            else:
                moves.append(Move(index, index + 1, start, stop, offset))
    return tuple(move for move in moves if move.offset != 0)


def channel_moves(ratio: Fraction, head_count: int) -> tuple[Move, ...]:
    """The moves of the channel shift (Table 1a): a share `ratio` of the channels of every head.

    Half of these channels read frame t - 1, the other half frame t + 1.
    """
    half = ratio / 2
    return (Move(0, head_count, Fraction(0), half, -1), Move(0, head_count, half, ratio, 1))


@dataclass(frozen=True)
class FusedLayout:
    """In which order does the last axis of the fused projection's output hold q, k and v?"""

    head_count: int  # H
    key_width: int  # D of q and k
    value_width: int  # D of v
    head_first: bool = False  # [head, (q, k, v), channel] instead of [(q, k, v), head, channel]

    @property
    def narrowest(self) -> int:
        """The channels of a head of k or of v, whichever has fewer."""
        return min(self.key_width, self.value_width)

    def views(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Views (..., P, H, D) of `projected` (..., C). Each view holds P of the parts q, k and v.

        Where q, k and v are equally wide, one view holds all three, P = 3. Otherwise three views
        hold q, k and v in this order, P = 1.
        """
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
            all_heads = projected.split([self.head_count * width for width in widths], -1)
            parts = tuple(part.unflatten(-1, (self.head_count, -1)) for part in all_heads)
        return tuple(part.unsqueeze(-3) for part in parts)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """The output channels of the fused projection that are q, k and v: each (H, D) int64."""
        width = self.head_count * (2 * self.key_width + self.value_width)
        channels = torch.arange(width, device="cpu")  # also inside torch.device("meta")
        q, k, v = (part for view in self.views(channels) for part in view.unbind(-3))
        return q, k, v

    def fused(self, parts: Iterable[Tensor]) -> Tensor:
        """The fused projection's output (..., C) from the views (..., P, H, D) of `views`."""
        if self.head_first:
            by_head = [part.transpose(-3, -2).flatten(-2) for part in parts]  # (..., H, P * D)
            return torch.cat(by_head, -1).flatten(-2)
        return torch.cat([part.flatten(-3) for part in parts], -1)


@dataclass(frozen=True)
class Relocation:
    """Equation 8 for one attention block: which channels read which frames, worked out once."""

    layout: FusedLayout
    moves: tuple[Move, ...]
    parts: MovedParts = "kv"

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The channels that the moves change: a block for each move and each view of q, k and v."""
        layout = self.layout
        width = layout.head_count * (2 * layout.key_width + layout.value_width)
        views = layout.views(torch.arange(width, device="cpu"))  # also inside torch.device("meta")
        unmoved = 3 - len(self.parts)
        views = (views[0][unmoved:],) if len(views) == 1 else views[unmoved:]
        blocks = []
        for view in views:
            for move in self.moves:
                heads, channels = move.slices(view.shape[-1])
                moved = view[:, heads, channels]
                if moved.numel():
                    shape, strides = tuple(map(int, moved.shape)), moved.stride()
                    blocks.append(Block(int(moved.storage_offset()), shape, strides, move.offset))
        return tuple(blocks)

    @cached_property
    def moving_runs(self) -> tuple[int, tuple[Run, ...]]:
        """The channels that move, as runs of one width: the width, and the runs."""
        width, runs = equal_runs(self.offsets)
        return width, tuple(run for run in runs if run[1])

    @cached_property
    def _kept(self) -> dict[tuple[int, int, torch.Size, bool], Rows | tuple[Copy, ...]]:
        """How a call moves, for the clips, frames and shapes of earlier calls."""
        return {}

    def work_out(self) -> None:
        """Compute the runs now; otherwise the first call computes them."""
        self.moving_runs  # noqa: B018  a property that is kept

    def __getstate__(self) -> dict[str, Any]:
        """The fields without `_kept`: a copy fills its own."""
        # a copy of the dict, because a call in another thread may add to it
        return {name: value for name, value in dict(vars(self)).items() if name != "_kept"}

    def __call__(
        self, projected: Tensor, *, clips: int, frames: int, by_index: bool = False
    ) -> Tensor:
        """`relocate` with the layout and the moves of this relocation."""
        if follows_operations():
            changes = by_index and torch.compiler.is_compiling() and not projected.requires_grad
            if not changes or exports():
                return self._copied(projected, clips, frames)
        projected = projected.contiguous()
        if projected.requires_grad:
            relocated: Tensor = _Relocate.apply(projected, self, clips, frames, by_index)
            return relocated
        self.move(projected, clips, frames, by_index=by_index)
        return projected

    def move(self, projected: Tensor, clips: int, frames: int, *, by_index: bool = False) -> None:
        """Make all moves in place, in a contiguous tensor that needs no gradient."""
        if by_index:
            width, runs = self.moving_runs
            move_by_index(projected, runs, width, clips=clips, frames=frames)
            return
        # A tensor without memory, such as a FakeTensor, takes no tables.
        in_memory = type(projected) is Tensor
        key = clips, frames, projected.shape, in_memory and projected.is_cpu
        how = self._kept.get(key) if in_memory else None
        if how is None:
            how = self._way(*key)
            if len(self._kept) >= MOST_SHAPES:
                self._kept.clear()
            if in_memory:
                self._kept[key] = how
        if isinstance(how, Rows):
            move_rows(projected, how)
        else:
            make_copies(projected, how)

    def _way(
        self, clips: int, frames: int, shape: torch.Size, on_cpu: bool
    ) -> Rows | tuple[Copy, ...]:
        """Whether calls of this shape move by rows or by copies, with the tables."""
        width, runs = self.moving_runs
        rows = rows_of(runs, width, clips, frames, shape) if on_cpu else None
        return rows or copies_of(self.blocks, clips, frames, shape)

    def _copied(self, projected: Tensor, clips: int, frames: int) -> Tensor:
        """The result as a new tensor, by operations that PyTorch follows."""
        # An offset of T frames or more leads out of the clip from every frame: nothing moves.
        moves = [move for move in self.moves if abs(move.offset) < frames]
        if not moves:
            return projected
        by_frame = projected.view(clips, frames, -1, *projected.shape[1:])
        return _relocated_copy(by_frame, self.layout, moves, self.parts).flatten(0, 2)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The offset of each of the C channels; 0 where a channel does not move."""
        layout = self.layout
        offsets = [0] * (layout.head_count * (2 * layout.key_width + layout.value_width))
        for block in self.blocks:
            for place in itertools.product(*map(range, block.shape)):
                channel = block.first + sum(map(operator.mul, place, block.strides))
                offsets[channel] = block.offset
        return tuple(offsets)


def relocate(
    projected: Tensor,
    *,
    clips: int,
    frames: int,
    layout: FusedLayout,
    moves: Iterable[Move],
    parts: MovedParts = "kv",
) -> Tensor:
    """Equation 8: the keys and values of each move in frame t become those of frame t + offset.

    Where frame t + offset lies outside the clip, frame t keeps its own keys and values (edge rule).
    With `parts` "qkv" the queries move too; with "v" only the values move.

    `projected` is the fused projection's output (B*T*W, ..., C), and is changed in place and
    returned. This is safe: the projection has just made the tensor, no other code holds it, and the
    gradient of a linear layer does not need the layer's output. While torch compiles or exports a
    graph, the result is a new tensor instead.
    """
    relocation = Relocation(layout, tuple(moves), parts)
    return relocation(projected, clips=clips, frames=frames)


def _relocated_copy(
    by_frame: Tensor, layout: FusedLayout, moves: Sequence[Move], parts: MovedParts
) -> Tensor:
    """`relocate` as a new tensor (B, T, W, ..., C), made only by slices and concatenations.

    A graph of these operations writes nothing in place.
    """
    views = layout.views(by_frame)
    unmoved = 3 - len(parts)
    if len(views) > 1:
        moved = [_moved_heads(view, moves) for view in views[unmoved:]]
        return layout.fused([*views[:unmoved], *moved])
    moved_parts = _moved_heads(views[0][..., unmoved:, :, :], moves)
    return layout.fused([views[0][..., :unmoved, :, :], moved_parts] if unmoved else [moved_parts])


def _moved_heads(view: Tensor, moves: Sequence[Move]) -> Tensor:
    """A view (B, T, W, ..., P, H, D) as a new tensor in which every move is made."""
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
        pieces += [view[..., head:first, :], _concatenated([*columns, heads[..., channel:]], -1)]
        head = stop
    return _concatenated([*pieces, view[..., head:, :]], -2)


def _concatenated(pieces: Iterable[Tensor], axis: int) -> Tensor:
    """The pieces concatenated along an axis. Pieces of length 0 stay out of the graph."""
    pieces = [piece for piece in pieces if piece.shape[axis]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def moved_frames(channels: Tensor, offset: int) -> Tensor:
    """A copy of `channels` (B, T, ...) whose frame t is frame t + offset of `channels`.

    Where frame t + offset lies outside the clip, frame t stays frame t (edge rule).
    """
    if offset > 0:
        return torch.cat([channels[:, offset:], channels[:, -offset:]], 1)
    return torch.cat([channels[:, :-offset], channels[:, :offset]], 1)


class _Relocate(torch.autograd.Function):
    """All moves of a `Relocation` as one operation of autograd's graph.

    With one operation for each move, autograd would copy the whole gradient once for each move.
    """

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, relocation: Relocation, clips: int, frames: int, by_index: bool
    ) -> Tensor:
        ctx.moved = relocation.blocks, clips, frames
        # The output of a linear layer is a view. Autograd would copy the gradient for an operation
        # that changes a view; so this operation returns another tensor of the same memory.
        relocated = projected.detach()
        relocation.move(relocated, clips, frames, by_index=by_index)
        return relocated

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        blocks, clips, frames = ctx.moved
        gradient = gradient.contiguous()
        input_gradient = gradient.clone()
        for block in blocks:
            of_output, of_input = (
                block.of(tensor, clips, frames) for tensor in (gradient, input_gradient)
            )
            shift_gradient(of_output, of_input, block.offset)
        return input_gradient, None, None, None, None


def frames_read(layout: FusedLayout, moves: Iterable[Move], frames: int) -> Tensor:
    """The frame from which each channel of v is taken, by frame and head: (T, H, D) int64."""
    rows = layout.rows()
    own_frames = torch.arange(frames)[:, None].repeat(1, sum(part.numel() for part in rows))
    return relocate(own_frames, clips=1, frames=frames, layout=layout, moves=moves)[:, rows[2]]


def channel_offsets(layout: FusedLayout, moves: Sequence[Move]) -> Tensor:
    """The offset of each channel of v: (H, D) int64. A channel that does not move has offset 0."""
    furthest = max((abs(move.offset) for move in moves), default=0)
    # From the middle frame of a clip of 2 * furthest + 1 frames, no offset leads out of the clip.
    middle = furthest
    return frames_read(layout, moves, 2 * furthest + 1)[middle] - middle


class TemporalHeads:
    """A forward hook that makes heads temporal. The hook has no weights.

    The hook belongs to the fused projection of an attention block. With `exchanged`, the attention
    can read other frames by itself, and the hook does nothing in a call where the attention does.
    """

    def __init__(
        self,
        layout: FusedLayout,
        moves: Sequence[Move],
        *,
        parts: MovedParts = "kv",
        exchanged: bool = False,
    ) -> None:
        self.relocation, self.exchanged = Relocation(layout, tuple(moves), parts), exchanged
        # For clips of fewer frames: by their frames, and the frames of a whole clip.
        self._shorter: dict[tuple[int, int], Relocation] = {}

    def install(self, projection: nn.Module) -> None:
        """Make this the hook of a fused projection.

        The projection gets the tables of the kernel that makes all moves, if that kernel is in use:
        buffers, which go where the projection goes and which are not saved.
        """
        if kernels.MOVES:
            for name, table in kernels.run_tables(self.relocation.offsets).items():
                projection.register_buffer(name, table, persistent=False)
        self.relocation.work_out()
        projection.register_forward_hook(self)

    def __call__(
        self, projection: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor
    ) -> Tensor:
        call = call_in_progress()
        if call is None or (self.exchanged and call.attention_reads):
            return projected
        clips, frames = call.clips, call.frames
        relocation = self.relocation if frames == call.whole_frames else self._shortened(call)
        if call.changes_in_place and not projected.requires_grad:
            projected = projected.contiguous()
            relocation.move(projected, clips, frames)
            return projected
        if kernels.MOVES and frames == call.whole_frames and kernels.moves(projection, projected):
            from zeroi2v.method.kernels.move import move  # Triton is not everywhere

            tables: Any = projection
            runs = (tables.moving_runs, tables.every_run)
            return move(projected, *runs, clips=clips, frames=frames)
        return relocation(projected, clips=clips, frames=frames, by_index=call.moves_by_index)

    def _shortened(self, call: Call) -> Relocation:
        """The relocation of a call whose clips have fewer frames than a whole clip."""
        key = call.frames, call.whole_frames
        relocation = self._shorter.get(key)
        if relocation is None:
            whole = self.relocation
            moves = tuple(move._replace(offset=call.scaled(move.offset)) for move in whole.moves)
            relocation = self._shorter[key] = Relocation(whole.layout, moves, whole.parts)
        return relocation


class ClassTokenShift:
    """[cls] token shift (Table 1a; Zhang et al., 2021): a share of the channels of token 0 moves.

    Half of the share reads frame t - 1, the other half frame t + 1. This is a forward pre-hook of
    the two modules of a block that follow a norm: the fused projection and the MLP.
    """

    def __init__(self, ratio: Fraction) -> None:
        self.half = ratio / 2

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = inputs  # (B*T, N, C)
        call = call_in_progress()
        if call is None or call.frames == 1:
            return inputs
        class_token = tokens[:, :1].unflatten(0, (-1, call.frames))  # (B, T, 1, C)
        half = self.half * tokens.shape[-1] // 1  # rounded down, as in `Move.slices`
        parts = [
            moved_frames(class_token[..., :half], -1),
            moved_frames(class_token[..., half : 2 * half], 1),
            class_token[..., 2 * half :],
        ]
        return (torch.cat([torch.cat(parts, -1).flatten(0, 1), tokens[:, 1:]], 1), *others)
