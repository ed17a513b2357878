"""Keys and values of other frames in one kernel: all moves of an attention block at once.

Equation 8 as a gather along the frames of a clip: channel c of frame t takes frame t + offset[c]. A
table on the device (`run_tables`) holds the channels that the kernel writes and their offsets. So
one kernel makes every kind of move: of whole heads, of split heads, of a share of the channels of
every head, with or without queries, and of keys and values of different widths. `moved` has a
gradient, which is a gather too: a frame sums the gradients of the frames that read it. No two
programs of the kernel write one number, so the result does not depend on the order of the programs.

Shapes: B clips, T frames, R rows of a frame (tokens, over all windows), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 4096  # the most numbers that one program of the kernel holds


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
        is_own = is_own | (offset == 0)
        own = tl.load(source + place + frame * stride, known & is_own, other=0.0)
        reading = tl.load(source + place + reader * stride, known & is_read, other=0.0)
        if source.dtype.element_ty != tl.float64:
            own, reading = own.to(tl.float32), reading.to(tl.float32)
        values = (own + reading).to(source.dtype.element_ty)
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

    `runs` are `every_run`, of `width` channels each. A CUDA device runs the kernel. Elsewhere
    Triton interprets the kernel, if TRITON_INTERPRET=1 was set when Python started.
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

    `runs` are `moving_runs`. The operator has no gradient.
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
    def forward(
        ctx: Any, projected: Tensor, moving: Tensor, every: Tensor, sizes: tuple[int, int, int]
    ) -> Tensor:
        ctx.save_for_backward(every)
        ctx.sizes = sizes
        relocated = projected.detach()  # autograd would copy the gradient of a view that changes
        move_in_place(relocated, moving, *sizes)
        return relocated

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (every,) = ctx.saved_tensors
        return moved_gradient(gradient, every, *ctx.sizes), None, None, None


def move(
    projected: Tensor, moving_runs: Tensor, every_run: Tensor, *, clips: int, frames: int
) -> Tensor:
    """`projected` (B*T*W, ..., C), the output of a fused projection, after all moves.

    `moving_runs` and `every_run` are `run_tables`. The result lies in the memory of `projected`,
    except in a compiled graph that has a gradient.
    """
    projected = projected.contiguous()
    sizes = (projected.shape[-1] // every_run.shape[1], clips, frames)
    if not (projected.requires_grad and torch.is_grad_enabled()):
        move_in_place(projected, moving_runs, *sizes)
        return projected
    if torch.compiler.is_compiling():
        functional: Tensor = moved(projected, every_run, *sizes)
        return functional
    relocated: Tensor = _MovedInPlace.apply(projected, moving_runs, every_run, sizes)
    return relocated


def moved_slowly(projected: Tensor, offsets: Sequence[int], clips: int, frames: int) -> Tensor:
    """What `moved` computes, as a loop over frames and channels: `offsets` has C numbers."""
    by_frame = projected.reshape(clips, frames, -1, projected.shape[-1])
    columns = []
    for channel, offset in enumerate(offsets):
        read = [t + offset if 0 <= t + offset < frames else t for t in range(frames)]
        columns.append(torch.stack([by_frame[:, t, :, channel] for t in read], 1))
    return torch.stack(columns, -1).reshape(projected.shape)
