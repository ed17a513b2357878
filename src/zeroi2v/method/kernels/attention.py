"""Attention whose heads read other frames: the kernel takes K and V of frame t + offset by itself.

Equations 7-9 of the paper as one kernel. Softmax attention of frame t starts from the address of
frame t + offset, so temporal heads add neither a kernel nor a byte to attention. The softmax is a
streaming softmax: no map of attention weights is stored.

The kernel has no gradient, and it moves only whole heads. Where a head is split or channels are
shifted, hooks move keys and values instead (method/relocate.py).

Shapes: B clips, T frames, H heads, N tokens, D channels of a head in q and k, E in v.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

LOG2_E: Final = 1.4426950408889634


class Tiles(NamedTuple):
    """How the kernel cuts attention into pieces, and how many threads compute a piece."""

    queries: int  # tokens whose queries one program takes
    keys: int  # tokens whose keys and values one step of the program reads
    warps: int  # groups of 32 threads in a program
    stages: int  # steps whose reads are in progress at once


# Long: half of the lines are arguments, since a kernel knows its tensors by address and strides.
@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    out,
    offsets,  # (H) int32: the offset of each head, in frames
    scale,  # of the products of queries and keys, times log2(e); above 0
    q_frame,
    q_token,
    q_head,
    k_frame,
    k_token,
    k_head,
    v_frame,
    v_token,
    v_head,
    heads,
    frames,
    tokens: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    padded_key_width: tl.constexpr,
    padded_value_width: tl.constexpr,
    query_tile: tl.constexpr,
    key_tile: tl.constexpr,
    last_key_tile: tl.constexpr,  # tile for the last tokens, which fill no whole tile
    precision: tl.constexpr,
):
    """A tile of queries of a head in a frame, with all tokens of the frame that the head reads."""
    tiles: tl.constexpr = (tokens + query_tile - 1) // query_tile
    piece = tl.program_id(0)  # one axis, because the limit of this axis is beyond any batch
    tile = piece % tiles
    head = piece // tiles % heads
    row = piece // tiles // heads  # the frame, counted over all clips
    frame = row % frames
    read = frame + tl.load(offsets + head)
    # Edge rule: a frame outside the clip is replaced by the head's own frame.
    read = tl.where((read < 0) | (read >= frames), frame, read)
    read_row = (row - frame + read).to(tl.int64)
    row = row.to(tl.int64)
    scale = tl.cast(scale, tl.float32)  # torch.compile passes a number in double precision

    query = tile * query_tile + tl.arange(0, query_tile)
    channel = tl.arange(0, padded_key_width)
    q_in = q + row * q_frame + head * q_head + query[:, None] * q_token + channel[None, :]
    queries = tl.load(q_in, (query[:, None] < tokens) & (channel[None, :] < key_width), other=0.0)
    k_in = k + read_row * k_frame + head * k_head
    v_in = v + read_row * v_frame + head * v_head
    largest = tl.full([query_tile], float("-inf"), tl.float32)
    total = tl.zeros([query_tile], tl.float32)
    sums = tl.zeros([query_tile, padded_value_width], tl.float32)
    whole: tl.constexpr = tokens // key_tile * key_tile
    for start in range(0, whole, key_tile):
        largest, total, sums = _read_tile(
            queries, largest, total, sums, k_in, v_in, k_token, v_token, start, scale,
            key_tile, False, tokens, key_width, value_width, padded_key_width, padded_value_width,
            precision,
        )  # fmt: skip
    if whole < tokens:
        largest, total, sums = _read_tile(
            queries, largest, total, sums, k_in, v_in, k_token, v_token, whole, scale,
            last_key_tile, whole + last_key_tile != tokens, tokens, key_width, value_width,
            padded_key_width, padded_value_width, precision,
        )  # fmt: skip
    # The output is contiguous as (B*T, N, H, E).
    value_channel = tl.arange(0, padded_value_width)
    first = ((row * tokens + query[:, None]) * heads + head) * value_width
    tl.store(
        out + first + value_channel[None, :],
        (sums / total[:, None]).to(out.dtype.element_ty),
        (query[:, None] < tokens) & (value_channel[None, :] < value_width),
    )


@triton.jit
def _read_tile(
    queries,  # (query_tile, D)
    largest,  # (query_tile): the largest product so far
    total,  # (query_tile): the sum of the weights so far
    sums,  # (query_tile, E): the weighted sum of the values so far
    k,
    v,
    k_token,
    v_token,
    start,  # the first token of the tile
    scale,
    tile: tl.constexpr,
    ragged: tl.constexpr,  # whether the tile reaches beyond the last token
    tokens: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    padded_key_width: tl.constexpr,
    padded_value_width: tl.constexpr,
    precision: tl.constexpr,
):
    """One step of the streaming softmax: the keys and values of one tile of tokens."""
    token = start + tl.arange(0, tile)
    channel = tl.arange(0, padded_key_width)
    value_channel = tl.arange(0, padded_value_width)
    k_in = k + token[None, :] * k_token + channel[:, None]
    v_in = v + token[:, None] * v_token + value_channel[None, :]
    if ragged or key_width != padded_key_width:
        known = (token[None, :] < tokens) & (channel[:, None] < key_width)
        keys = tl.load(k_in, known, other=0.0)
    else:
        keys = tl.load(k_in)
    if ragged or value_width != padded_value_width:
        known_value = (token[:, None] < tokens) & (value_channel[None, :] < value_width)
        values = tl.load(v_in, known_value, other=0.0)
    else:
        values = tl.load(v_in)
    products = tl.dot(queries, keys, input_precision=precision)
    if ragged:
        products = tl.where(token[None, :] < tokens, products, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(products, 1))
    weights = tl.exp2(products * scale - (new_largest * scale)[:, None])
    shrink = tl.exp2((largest - new_largest) * scale)
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(
        weights.to(values.dtype), values, sums * shrink[:, None], input_precision=precision
    )
    return new_largest, total, sums


def tiles_for(q: Tensor, v: Tensor) -> Tiles:
    """The tiles for attention with queries (B*T, N, H, D) and values (B*T, N, H, E).

    These tiles were the fastest in benchmarks/gpu.py on an H100. fp32 products are exact and use no
    tensor core, so tiles for fp32 are small.
    """
    tokens, width = q.shape[1], max(q.shape[-1], v.shape[-1])
    if q.dtype == torch.float32:
        return Tiles(queries=32, keys=32, warps=4, stages=2)
    if tokens <= 32:
        return Tiles(queries=32, keys=32, warps=2, stages=2)
    keys = 64 if tokens > 224 and width <= 64 else 32
    return Tiles(queries=64, keys=keys, warps=4, stages=3)


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, frames: int, scale: float
) -> Tensor:
    """Softmax attention in which head h of frame t reads k and v of frame t + offsets[h].

    `q` and `k` are (B*T, N, H, D), `v` is (B*T, N, H, E); a tensor whose channels do not lie side
    by side is copied first. `offsets` is (H) int32 on the same device. The result is contiguous,
    (B*T, N, H, E). Where frame t + offset lies outside the clip, the head reads its own frame (edge
    rule). `scale`, above 0, multiplies the products of queries and keys.

    The result has no gradient.
    """
    # while torch compiles, or if `q` is a tensor without memory, such as a FakeTensor
    if torch.compiler.is_compiling() or type(q) is not Tensor:
        result: Tensor = attend_op(q, k, v, offsets, frames, scale)
        return result
    if torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v)):
        raise RuntimeError("attend has no gradient; call it within torch.no_grad()")
    out = _new_output(q, v)
    if q.device.type == "cuda" and q.device.index != torch.cuda.current_device():
        with torch.cuda.device(q.device):  # Triton starts kernels on the current device
            _start(q, k, v, out, offsets, frames, scale)
    else:
        _start(q, k, v, out, offsets, frames, scale)
    return out


@triton_op("zeroi2v::attend", mutates_args={})
def attend_op(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, frames: int, scale: float
) -> Tensor:
    """`attend` as an operator of PyTorch, which torch.compile and counting can follow."""
    out = _new_output(q, v)
    tiles = tiles_for(q, v)
    wrap_triton(_attend_kernel)[(_pieces(q, tiles),)](
        *_arguments(q, k, v, out, offsets, frames, scale, tiles),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


@attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, frames: int, scale: float) -> Tensor:
    return _new_output(q, v)


@register_flop_formula(torch.ops.zeroi2v.attend)
def _operations(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object
) -> int:
    """The operations of attention, from the shapes: a multiply-add is two."""
    rows, tokens, heads, key_width = q
    return 2 * rows * heads * tokens * tokens * (key_width + v[-1])


def _new_output(q: Tensor, v: Tensor) -> Tensor:
    """An empty output (B*T, N, H, E)."""
    return q.new_empty((*q.shape[:3], v.shape[-1]))


def _pieces(q: Tensor, tiles: Tiles) -> int:
    """The number of programs: one for each tile of queries of each head in each frame."""
    rows, tokens, heads, _ = q.shape
    return rows * heads * -(-tokens // tiles.queries)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    offsets: Tensor,
    frames: int,
    scale: float,
    tiles: Tiles,
) -> tuple[Any, ...]:
    """The arguments of the kernel, in order."""
    q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
    _, tokens, heads, key_width = q.shape
    value_width = v.shape[-1]
    last_keys = tokens % tiles.keys
    return (
        *(q, k, v, out, offsets, scale * LOG2_E),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *(heads, frames, tokens, key_width, value_width),
        _padded(key_width),
        _padded(value_width),
        tiles.queries,
        tiles.keys,
        _padded(last_keys),
        "ieee" if q.dtype == torch.float32 else "tf32",
    )


@functools.cache
def _padded(width: int) -> int:
    """The least power of two that holds a width and that a matrix product can take."""
    return max(16, 1 << (width - 1).bit_length())


_compiled: dict[Hashable, Any] = {}  # compiled kernels; the key holds all that a kernel depends on


def _start(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    offsets: Tensor,
    frames: int,
    scale: float,
    tiles: Tiles | None = None,
) -> None:
    """Start the kernel. Compiled kernels are kept here: a look-up by Triton takes twice as long."""
    tiles = tiles or tiles_for(q, v)
    arguments = _arguments(q, k, v, out, offsets, frames, scale, tiles)
    grid = (_pieces(q, tiles), 1, 1)
    tensors = [(part.dtype, part.data_ptr() % 16 == 0) for part in arguments[:5]]
    key = (q.device, *tensors, tiles, arguments[6:])
    kernel = _compiled.get(key)
    if kernel is None:
        _compiled[key] = _attend_kernel[grid](
            *arguments, num_warps=tiles.warps, num_stages=tiles.stages
        )
    else:
        kernel[grid](*arguments)
