"""How fast are the kernels alone, beside PyTorch's own? Attention with each tile, and all moves.

Each time is the mean of many starts in a CUDA graph: what a start costs does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F

from benchmarks.gpu_inference import Case, Row
from benchmarks.gpu_place import Place
from zeroi2v.method import kernels
from zeroi2v.method.heads import parse_heads
from zeroi2v.method.kernels import attention
from zeroi2v.method.kernels import move as move_kernel
from zeroi2v.method.relocate import FusedLayout, Relocation, head_moves


@dataclass(frozen=True)
class Shape:
    """Attention of one block: frames of all clips, tokens, heads, channels of a head."""

    rows: int
    tokens: int
    heads: int
    width: int


SHAPES: Final = (
    Shape(256, 197, 12, 64),  # ViT-B/16, 32 clips of 8 frames
    Shape(8, 197, 12, 64),  # one clip
    Shape(256, 257, 16, 64),  # ViT-L/14
    Shape(64, 1370, 6, 64),  # DINOv2 ViT-S/14 at 518 pixels
    Shape(256, 257, 16, 80),  # ViT-H/14
)
SMALL: Final = (Shape(8, 20, 4, 16),)
TILES: Final = tuple(
    attention.Tiles(queries, keys, warps, stages)
    for queries, keys, warps, stages in (
        (64, 16, 4, 3),
        (64, 32, 4, 2),
        (64, 32, 4, 3),
        (64, 32, 4, 4),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 32, 8, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
    )
)
FRAMES: Final = 8


def times(place: Place, calls: dict[str, Callable[[], object]]) -> dict[str, float | str]:
    """The microseconds of each call, or what is wrong with the call on this device."""
    microseconds: dict[str, float | str] = {}
    for name, call in calls.items():
        try:
            microseconds[name] = place.graph_time(call)
        except Exception as error:  # for instance tiles that do not fit this device
            if place.dry:
                raise
            microseconds[name] = str(error)[:100]
    return microseconds


def tiles(place: Place) -> Iterator[Case]:
    """The attention kernel with different tiles, beside PyTorch's attention."""
    for shape in SMALL if place.dry else SHAPES:
        yield {"shape": vars(shape)}, partial(_tiles, place, shape)


def _tiles(place: Place, shape: Shape) -> Iterator[Row]:
    size = (shape.rows, shape.tokens, 3, shape.heads, shape.width)
    q, k, v = torch.randn(size, device=place.device, dtype=torch.bfloat16).unbind(2)
    offsets = torch.zeros(shape.heads, dtype=torch.int32, device=place.device)
    offsets[:2] = torch.tensor([-1, 1], dtype=torch.int32)
    out = q.new_empty(q.shape)
    scale = shape.width**-0.5
    calls: dict[str, Callable[[], object]] = {
        "PyTorch": partial(
            F.scaled_dot_product_attention,
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
        )
    }
    for entry in TILES[:1] if place.dry else TILES:
        calls[repr(tuple(entry))] = partial(
            attention._start, q, k, v, out, offsets, FRAMES, scale, entry
        )
    yield {"microseconds": times(place, calls)}


def moves(place: Place) -> Iterator[Case]:
    """All moves of a block in place, in each form: two layouts of the paper, and split heads."""
    for heads in ("-1, 1", "-1*2, 1*2, -2, 2, -3", "-1*1/2, 1*1/2"):
        for clips in (1, 32):
            yield {"heads": heads, "clips": clips}, partial(_moves, place, heads, clips)


def _moves(place: Place, heads: str, clips: int) -> Iterator[Row]:
    count, width, tokens = 12, 64, 197
    if place.dry:
        width, tokens, clips = 8, 5, min(clips, 2)
    (layout,) = parse_heads(heads, head_counts=[count], frames=FRAMES)
    relocation = Relocation(FusedLayout(count, width, width), head_moves(layout))
    shape = (clips * FRAMES, tokens, 3 * count * width)
    projected = torch.randn(shape, device=place.device).bfloat16()
    tables = kernels.run_tables(relocation.offsets)
    every, moving = (tables[name].to(place.device) for name in ("every_run", "moving_runs"))
    run_width = shape[-1] // every.shape[1]
    calls: dict[str, Callable[[], object]] = {
        "copies": partial(relocation.move, projected, clips, FRAMES),
        "index": partial(relocation.move, projected, clips, FRAMES, by_index=True),
        "Triton": partial(move_kernel.move_in_place, projected, moving, run_width, clips, FRAMES),
        "a copy of everything": projected.clone,
    }
    yield {"microseconds": times(place, calls)}
