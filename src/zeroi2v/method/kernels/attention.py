"""Attention whose heads read other frames: the kernel takes K and V of frame t + offset by itself.

Equations 7-9 of the paper as one kernel. Softmax attention of frame t starts from the address of
frame t + offset, so temporal heads add neither a kernel nor a byte to attention. The softmax is a
streaming softmax: no map of attention weights is stored.

There is no gradient. Heads move whole: a split head or a channel shift has another form.

Shapes: B clips, T frames, H heads, N tokens, D channels of a head in q and k, E in v.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

LOG2_E: Final = 1.4426950408889634


class Tiles(NamedTuple):
    """How the kernel cuts attention into pieces, and how many threads compute a piece."""

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    out,
    offsets,  # (H) int32: the offset of each head, in frames
    scale,  # of the products of queries and keys, times log2(e)
    q_frame,
    q_head,
    q_token,
    k_frame,
    k_head,
    k_token,
    v_frame,
    v_head,
    v_token,
    heads,
    frames,
    tokens: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    padded_key_width: tl.constexpr,
    padded_value_width: tl.constexpr,
    query_tile: tl.constexpr,
    key_tile: tl.constexpr,
    precision: tl.constexpr,
):
    """One tile of queries of one head in one frame, against all tokens of the frame it reads."""
    tiles: tl.constexpr = (tokens + query_tile - 1) // query_tile
    piece = tl.program_id(0)  # a grid of one axis has no limit that a long batch would reach
    tile = piece % tiles
    head = piece // tiles % heads
    row = piece // tiles // heads  # the frame, counted over all clips
    frame = row % frames
    read = frame + tl.load(offsets + head)
    # Edge rule: a frame outside the clip is replaced by the head's own frame.
    read = tl.where((read < 0) | (read >= frames), frame, read)
    read_row = (row - frame + read).to(tl.int64)
    row = row.to(tl.int64)

    query = tile * query_tile + tl.arange(0, query_tile)
    key = tl.arange(0, key_tile)
    channel = tl.arange(0, padded_key_width)
    value_channel = tl.arange(0, padded_value_width)
    q_in = q + row * q_frame + head * q_head + query[:, None] * q_token + channel[None, :]
    k_in = k + read_row * k_frame + head * k_head + key[None, :] * k_token + channel[:, None]
    v_in = v + read_row * v_frame + head * v_head + key[:, None] * v_token + value_channel[None, :]

    queries = tl.load(q_in, (query[:, None] < tokens) & (channel[None, :] < key_width), other=0.0)
    largest = tl.full([query_tile], float("-inf"), tl.float32)
    total = tl.zeros([query_tile], tl.float32)
    sums = tl.zeros([query_tile, padded_value_width], tl.float32)
    for start in range(0, tokens, key_tile):
        known = start + key < tokens
        keys = tl.load(
            k_in + start * k_token, known[None, :] & (channel[:, None] < key_width), other=0.0
        )
        products = tl.dot(queries, keys, input_precision=precision) * scale
        if tokens % key_tile != 0:
            products = tl.where(known[None, :], products, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(products, 1))
        weights = tl.exp2(products - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(
            v_in + start * v_token,
            known[:, None] & (value_channel[None, :] < value_width),
            other=0.0,
        )
        sums = tl.dot(
            weights.to(values.dtype), values, sums * shrink[:, None], input_precision=precision
        )
        largest = new_largest
    result = sums / total[:, None]
    # The output is contiguous as (B*T, N, H, E).
    start = (row * tokens + query[:, None]) * heads + head
    out_to = out + start * value_width + value_channel[None, :]
    tl.store(
        out_to,
        result.to(out.dtype.element_ty),
        (query[:, None] < tokens) & (value_channel[None, :] < value_width),
    )


def tiles_for(tokens: int, width: int, dtype: torch.dtype) -> Tiles:
    """The tiles for N tokens and heads of a width.

    fp32 products are exact and need no tensor core, so their tiles are small.
    """
    if dtype == torch.float32:
        return Tiles(queries=32, keys=32, warps=4, stages=2)
    if tokens <= 32:
        return Tiles(queries=32, keys=32, warps=2, stages=2)
    if width > 64:
        return Tiles(queries=64, keys=64, warps=4, stages=2)
    return Tiles(queries=64, keys=64, warps=4, stages=3)


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, frames: int, scale: float
) -> Tensor:
    """Softmax attention in which head h of frame t reads k and v of frame t + offsets[h].

    `q` and `k` are (B*T, H, N, D), `v` is (B*T, H, N, E); a tensor whose channels do not lie side
    by side is copied first. `offsets` is (H) int32 on the same device. The result is
    (B*T, H, N, E), a view of a contiguous (B*T, N, H, E). Where frame t + offset lies outside the
    clip, the head reads its own frame (edge rule).

    The result has no gradient.
    """
    if torch.compiler.is_compiling() or type(q) is not Tensor:  # a tensor without memory
        result: Tensor = attend_op(q, k, v, offsets, frames, scale)
        return result
    out = _new_output(q, v)
    _launch(_attend_kernel, q, k, v, out, offsets, frames, scale)
    return out.transpose(1, 2)


@triton_op("zeroi2v::attend", mutates_args={})
def attend_op(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, frames: int, scale: float
) -> Tensor:
    """`attend` as an operator of PyTorch, which torch.compile and counting can follow."""
    out = _new_output(q, v)
    _launch(wrap_triton(_attend_kernel), q, k, v, out, offsets, frames, scale)
    return out.transpose(1, 2)


def _new_output(q: Tensor, v: Tensor) -> Tensor:
    """An empty output (B*T, N, H, E)."""
    rows, heads, tokens, _ = q.shape
    return q.new_empty(rows, tokens, heads, v.shape[-1])


def _launch(
    kernel: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    offsets: Tensor,
    frames: int,
    scale: float,
    tiles: Tiles | None = None,
) -> None:
    """Start the kernel, one program for each tile of queries of each head in each frame."""
    q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
    rows, heads, tokens, key_width = q.shape
    value_width = v.shape[-1]
    tiles = tiles or tiles_for(tokens, max(key_width, value_width), q.dtype)
    kernel[(rows * heads * -(-tokens // tiles.queries),)](
        q,
        k,
        v,
        out,
        offsets,
        scale * LOG2_E,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        heads,
        frames,
        tokens,
        key_width,
        value_width,
        max(16, triton.next_power_of_2(key_width)),
        max(16, triton.next_power_of_2(value_width)),
        tiles.queries,
        tiles.keys,
        "ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
