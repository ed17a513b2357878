"""Keys and values of other frames in one kernel: all moves of an attention block at once.

Equation 8 as a gather along the frames of a clip: channel c of frame t takes frame t + offset[c]. A
table on the device holds the channels that the kernel writes and their offsets. So one kernel makes
every kind of move: of whole heads, of split heads, of a share of the channels of every head, with
or without queries, and of keys and values of different widths. `moved` has a gradient, which is a
gather too: a frame sums the gradients of the frames that read it. No two programs of the kernel
write one number, so the result does not depend on the order of the programs.

Shapes: B clips, T frames, R rows of a frame (tokens, over all windows), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST_RUN: Final = 8  # channels that one thread reads at once: 16 bytes in half precision
TILE: Final = 4096  # the most numbers that one program of the kernel holds


@dataclass(frozen=True)
class MoveTable:
    """Which channels does the kernel write, and which frames do they read? On one device.

    A run is `width` channels side by side that have one offset. Runs count from 0.
    """

    width: int  # channels of a run
    moving: Tensor  # (2, M) int32: the numbers of the runs that move, and their offsets
    every: Tensor  # (2, C / width) int32: the same of all runs, with offset 0 where nothing moves


def move_table(offsets: Sequence[int], device: torch.device) -> MoveTable:
    """The table of the C channels' offsets, on a device."""
    starts = [0, *(c for c in range(1, len(offsets)) if offsets[c] != offsets[c - 1])]
    width = gcd(WIDEST_RUN, len(offsets), *starts)
    every = [*enumerate(offsets[::width])]
    moving = [run for run in every if run[1]]
    on_device = (
        torch.tensor(runs, dtype=torch.int32).reshape(-1, 2).T.contiguous().to(device)
        for runs in (moving, every)
    )
    return MoveTable(width, *on_device)


@triton.jit
def _move_kernel(
    source,
    target,
    numbers,  # of the runs
    offsets,  # of the runs, in frames
    runs,  # how many there are
    rows,
    channels,
    frames: tl.constexpr,
    padded_frames: tl.constexpr,
    run_tile: tl.constexpr,
    width: tl.constexpr,
    gradient: tl.constexpr,
    in_place: tl.constexpr,
):
    """Some runs of one row of all frames of one clip: (frames, run_tile, width) numbers."""
    tiles = (runs + run_tile - 1) // run_tile
    piece = tl.program_id(0)
    entry = piece % tiles * run_tile + tl.arange(0, run_tile)
    row = piece // tiles % rows
    clip = (piece // tiles // rows).to(tl.int64)
    frame = tl.arange(0, padded_frames)[:, None, None]
    run = tl.load(numbers + entry, entry < runs, other=0)[None, :, None]
    offset = tl.load(offsets + entry, entry < runs, other=0)[None, :, None]
    known = (frame < frames) & (entry < runs)[None, :, None]
    stride = rows.to(tl.int64) * channels  # from frame to frame
    channel = run * width + tl.arange(0, width)[None, None, :]
    place = clip * frames * stride + row.to(tl.int64) * channels + channel
    # Where frame t + offset lies outside the clip, frame t is read (edge rule).
    ahead = frame + offset
    is_own = (ahead < 0) | (ahead >= frames)
    if gradient:
        reader = frame - offset
        is_read = (reader >= 0) & (reader < frames) & (offset != 0)
        own = tl.load(source + place + frame * stride, known & (is_own | (offset == 0)), other=0.0)
        values = own + tl.load(source + place + reader * stride, known & is_read, other=0.0)
    else:
        read = tl.where(is_own, frame, ahead)
        values = tl.load(source + place + read * stride, known)
    if in_place:
        tl.debug_barrier()  # every value is read before one is written
    tl.store(target + place + frame * stride, values, known)


def _start(
    source: Tensor,
    target: Tensor,
    runs: Tensor,
    width: int,
    clips: int,
    frames: int,
    *,
    gradient: bool = False,
) -> None:
    """Start the kernel on contiguous tensors (B*T*W, ..., C)."""
    channels, count = source.shape[-1], runs.shape[1]
    if not count or not source.numel():
        return
    rows = source.numel() // (clips * frames * channels)
    padded_frames = triton.next_power_of_2(frames)
    run_tile = min(triton.next_power_of_2(count), max(1, TILE // (padded_frames * width)))
    with torch.cuda.device_of(source):  # Triton starts kernels on the current device
        _move_kernel[(clips * rows * triton.cdiv(count, run_tile),)](
            source,
            target,
            *runs.unbind(),
            count,
            rows,
            channels,
            frames=frames,
            padded_frames=padded_frames,
            run_tile=run_tile,
            width=width,
            gradient=gradient,
            in_place=source is target,
        )


@torch.library.custom_op("zeroi2v::move", mutates_args=())
def moved(projected: Tensor, runs: Tensor, width: int, clips: int, frames: int) -> Tensor:
    """A copy of a fused projection's output (B*T*W, ..., C) in which all moves are made.

    `runs` are `MoveTable.every`. Only a CUDA device runs the kernel. On a CPU, Triton interprets
    the kernel if TRITON_INTERPRET=1 was set before Python started.
    """
    target = torch.empty_like(projected, memory_format=torch.contiguous_format)
    _start(projected.contiguous(), target, runs, width, clips, frames)
    return target


@torch.library.custom_op("zeroi2v::move_gradient", mutates_args=())
def moved_gradient(gradient: Tensor, runs: Tensor, width: int, clips: int, frames: int) -> Tensor:
    """The gradient of the input of `moved`, from the gradient of its output."""
    target = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    _start(gradient.contiguous(), target, runs, width, clips, frames, gradient=True)
    return target


@torch.library.custom_op("zeroi2v::move_", mutates_args={"projected"})
def move_in_place(projected: Tensor, runs: Tensor, width: int, clips: int, frames: int) -> None:
    """Make all moves in a contiguous output of a fused projection (B*T*W, ..., C).

    `runs` are `MoveTable.moving`. The operator has no gradient.
    """
    _start(projected, projected, runs, width, clips, frames)


@moved.register_fake
@moved_gradient.register_fake
def _(tensor: Tensor, runs: Tensor, width: int, clips: int, frames: int) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, runs, *ctx.sizes = inputs
    ctx.save_for_backward(runs)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (runs,) = ctx.saved_tensors
    return moved_gradient(gradient, runs, *ctx.sizes), None, None, None, None


moved.register_autograd(_gradient, setup_context=_keep)


class _MovedInPlace(torch.autograd.Function):
    """`moved`, in the memory of its input: no other code reads what a fused projection made."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, table: MoveTable, clips: int, frames: int) -> Tensor:
        ctx.sizes = table, clips, frames
        relocated = projected.detach()  # autograd would copy the gradient of a view that changes
        move_in_place(relocated, table.moving, table.width, clips, frames)
        return relocated

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        table, clips, frames = ctx.sizes
        return moved_gradient(gradient, table.every, table.width, clips, frames), None, None, None


def move(projected: Tensor, table: MoveTable, clips: int, frames: int) -> Tensor:
    """`projected` (B*T*W, ..., C), the output of a fused projection, after all moves.

    The result lies in the memory of `projected`, except in a compiled graph that has a gradient.
    """
    projected = projected.contiguous()
    if not (projected.requires_grad and torch.is_grad_enabled()):
        move_in_place(projected, table.moving, table.width, clips, frames)
        return projected
    if torch.compiler.is_compiling():
        functional: Tensor = moved(projected, table.every, table.width, clips, frames)
        return functional
    relocated: Tensor = _MovedInPlace.apply(projected, table, clips, frames)
    return relocated


def moved_slowly(projected: Tensor, offsets: Sequence[int], clips: int, frames: int) -> Tensor:
    """What `moved` computes, as a loop over frames and channels: `offsets` has C numbers."""
    by_frame = projected.reshape(clips, frames, -1, projected.shape[-1])
    columns = []
    for channel, offset in enumerate(offsets):
        read = [t + offset if 0 <= t + offset < frames else t for t in range(frames)]
        columns.append(torch.stack([by_frame[:, t, :, channel] for t in read], 1))
    return torch.stack(columns, -1).reshape(projected.shape)
