"""How do channels come from frame t + offset to frame t, in place? By copies, or by an index.

`make_copies` takes two operations for each move. `move_rows` and `move_by_index` take two
operations for all moves of a block together: one gathers what moves, the other puts it back. All
three leave frames t for which frame t + offset lies outside the clip as they are (edge rule), and
give the same numbers. On a CPU `move_rows` is the fastest for little that moves and `make_copies`
for much. On other devices `move_by_index` starts the fewest kernels, and has the smallest table.

Shapes: B clips, T frames, W windows of a frame (1 where attention is global), N tokens, C channels
of the fused projection's output. The output (B*T*W, ..., C) is contiguous.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

# Neighbouring channels with one offset: the number of the run, counted from 0, and the offset in
# frames. All runs of a list have one width, which is given apart.
Run: TypeAlias = tuple[int, int]
# Above so many rows, or so many numbers, `make_copies` is at least as fast as `move_rows` on a CPU.
MOST_ROWS: Final = 2**12
MOST_NUMBERS: Final = 2**15
MOST_SINGLE: Final = 2**11  # up to so many numbers move faster one by one than as rows
WORD: Final = 8  # bytes of the largest element that an index moves at once


class Block(NamedTuple):
    """The channels of the fused projection's output that one move changes, as a strided block."""

    first: int  # channel
    shape: tuple[int, ...]  # parts, heads, channels of a head
    strides: tuple[int, ...]  # from part to part, head to head, channel to channel
    offset: int  # in frames

    def of(self, projected: Tensor, clips: int, frames: int) -> Tensor:
        """The block of `projected` as a view (B, T, W*N, parts, heads, channels)."""
        whole = _copy(self._replace(offset=0), clips, frames, projected.shape)
        first = projected.storage_offset() + whole.target
        return projected.as_strided(whole.shape, whole.strides, first)


class Copy(NamedTuple):
    """One move as a copy from a strided part of the fused projection's output to another part."""

    shape: tuple[int, ...]  # of both parts
    strides: tuple[int, ...]  # of both parts
    target: int  # where the part begins that is written
    source: int  # where the part begins that is read


def copies_of(
    blocks: Iterable[Block], clips: int, frames: int, shape: Sequence[int]
) -> tuple[Copy, ...]:
    """The copies that make the moves of all blocks in an output of this shape."""
    inside = [block for block in blocks if abs(block.offset) < frames]
    return tuple(_copy(block, clips, frames, shape) for block in inside)


def _copy(block: Block, clips: int, frames: int, shape: Sequence[int]) -> Copy:
    """The copy that makes the move of a block."""
    frame, distance = math.prod(shape) // (clips * frames), abs(block.offset)
    earlier, later = block.first, block.first + distance * frame
    return Copy(
        (clips, frames - distance, frame // shape[-1], *block.shape),
        (frames * frame, frame, shape[-1], *block.strides),
        *((earlier, later) if block.offset > 0 else (later, earlier)),
    )


def make_copies(projected: Tensor, copies: Iterable[Copy]) -> None:
    """Make all copies in place."""
    start = projected.storage_offset()
    for shape, strides, target, source in copies:
        # a copy, because the frames that are read and the frames that are written overlap
        moved = projected.as_strided(shape, strides, start + source).clone()
        projected.as_strided(shape, strides, start + target).copy_(moved)


class Rows(NamedTuple):
    """All moves of a block, where the output is seen as rows (..., width)."""

    width: int
    target: Tensor  # (M) int64: the rows that are written
    source: Tensor  # (M) int64: the rows that are read


def rows_of(
    runs: Iterable[Run], width: int, clips: int, frames: int, shape: Sequence[int]
) -> Rows | None:
    """The moves as rows in an output of this shape.

    None where nothing moves, or where copies are at least as fast.
    """
    runs = [run for run in runs if abs(run[1]) < frames]
    runs_of_token, tokens = shape[-1] // width, math.prod(shape[:-1]) // (clips * frames)
    count = clips * tokens * sum(frames - abs(offset) for _, offset in runs)
    if not count or count > MOST_ROWS or count * width > MOST_NUMBERS:
        return None
    frame = tokens * runs_of_token  # rows of a frame
    target = [
        (clip * frames + t) * frame + token * runs_of_token + run
        for run, offset in runs
        for clip in range(clips)
        for t in range(max(0, -offset), min(frames, frames - offset))
        for token in range(tokens)
    ]
    distances = [
        offset * frame for _, offset in runs for _ in range(clips * (frames - abs(offset)) * tokens)
    ]
    source = list(map(operator.add, target, distances))
    if count * width <= MOST_SINGLE:
        target, source = (
            [row * width + number for row in rows for number in range(width)]
            for rows in (target, source)
        )
        width = 1
    with torch.inference_mode(False):  # a training may use the tables later
        return Rows(width, *(torch.tensor(rows, device="cpu") for rows in (target, source)))


def move_rows(projected: Tensor, rows: Rows) -> None:
    """Make all moves in place: gather the rows that move, and put them back."""
    width, target, source = rows
    if width == 1:
        projected.put_(target, projected.take(source))
        return
    by_row = projected.view(-1, width)
    by_row.index_copy_(0, target, by_row.index_select(0, source))


def shift_gradient(of_output: Tensor, of_input: Tensor, offset: int) -> None:
    """Write the gradient of the input of a move, from the gradient of its output.

    Both are blocks (B, T, ...), and equal before the call. The gradient of a frame of the input is
    the sum of the gradients of all frames of the output that hold this frame, zero if none does.
    """
    frames, distance = of_input.shape[1], abs(offset)
    if distance >= frames:
        return
    changed = frames - distance
    if offset > 0:
        of_input[:, distance:] = of_output[:, :changed]
        of_input[:, :distance].zero_()
        of_input[:, changed:] += of_output[:, changed:]  # edge rule: these frames hold themselves
    else:
        of_input[:, :changed] = of_output[:, distance:]
        of_input[:, changed:].zero_()
        of_input[:, :distance] += of_output[:, :distance]


def equal_runs(offsets: Sequence[int], *, widest: int = 0) -> tuple[int, tuple[Run, ...]]:
    """All channels as runs of one width: the width, and the runs.

    `offsets` are those of the C channels. The runs are as wide as possible. If `widest` is not
    0, the width also divides `widest`.
    """
    starts = (c for c in range(1, len(offsets)) if offsets[c] != offsets[c - 1])
    width = math.gcd(widest, len(offsets), *starts)
    return width, tuple(enumerate(offsets[::width]))


def move_by_index(
    projected: Tensor, runs: tuple[Run, ...], width: int, *, clips: int, frames: int
) -> None:
    """Make all moves in place: one operation gathers what moves, another operation puts it back.

    `runs`, of `width` channels, are the runs that move.
    """
    compiles = torch.compiler.is_compiling()
    if compiles or type(projected) is Tensor:
        table = _kept_table(runs, frames, projected.device)
    else:  # a tensor without memory, such as a FakeTensor, takes a table on any device
        table = _table(runs, frames)
    if not table.shape[1]:
        return
    if not compiles and _has_words(projected, width):
        width = width * projected.element_size() // WORD
        projected = projected.view(torch.int64)
    target, source, run = table.unbind()
    by_run = projected.view(clips, frames, -1, projected.shape[-1] // width, width)
    by_run[:, target, :, run] = by_run[:, source, :, run]


def _has_words(projected: Tensor, width: int) -> bool:
    """Whether each run is whole words of 8 bytes.

    An index moves one element at a time, so larger elements are fewer moves.
    """
    size = projected.element_size()
    return size < WORD and not (width * size % WORD or projected.storage_offset() * size % WORD)


def _table(runs: tuple[Run, ...], frames: int) -> Tensor:
    """The frame that is written, the frame that is read, and the run, for all moves: (3, M) int64.

    Frames that stay as they are are left out.
    """
    entries = [
        (frame, frame + offset, run)
        for run, offset in runs
        for frame in range(frames)
        if 0 <= frame + offset < frames
    ]
    columns = list(zip(*entries, strict=True)) or [()] * 3
    return torch.tensor(columns, dtype=torch.int64, device="cpu")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # PyTorch's
def _kept_table(runs: tuple[Run, ...], frames: int, device: torch.device) -> Tensor:
    """`_table` on a device, made once. A copy in every call would make the host wait for a GPU."""
    return _made_once(runs, frames, device)


@functools.cache  # kept for ever: a captured CUDA graph holds the address of a table
def _made_once(runs: tuple[Run, ...], frames: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a training may use the table later
        return _table(runs, frames).to(device)
