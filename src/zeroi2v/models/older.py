"""What do the settings mean in a folder of format 1?

Where a setting chooses heads or channels by a rule, the rule of format 1 may choose others than
today's rule. `as_trained` then gives settings that name the heads and channels of format 1 one by
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Final, Literal

import torch

from zeroi2v.config import ModelConfig
from zeroi2v.errors import CheckpointError, HeadsError
from zeroi2v.method.heads import (
    PAPER_TABLES,
    BlockHeads,
    HeadLayout,
    SplitHead,
    by_block,
    heads_of_ratio,
    layout_text,
    parse_heads,
    shares,
)
from zeroi2v.method.relocate import FusedLayout, Relocation
from zeroi2v.models.plan import Plan, strategy_of
from zeroi2v.models.survey import Survey, survey
from zeroi2v.models.towers import TowerSource

# A channel shift -> the operator of head layouts that moves the same parts: k and v, or q, k and v.
SHIFTS: Final[Mapping[str, Literal["stdha", "hr_qkv"]]] = {
    "shift_kv": "stdha",
    "shift_qkv": "hr_qkv",
}


def as_trained(config: ModelConfig, clip_frames: int) -> ModelConfig:
    """The settings with which today's rules build the model that `config` means in format 1.

    The result is `config` itself if both rules move the same channels. CheckpointError if today's
    operators cannot move the channels of format 1.
    """
    if strategy_of(config).peer is not None:  # every head is spatial
        return config
    source = TowerSource(
        name=config.tower,
        pretrained=False,
        weights=None,
        options=config.tower_options,
        tubelet=config.tubelet,
    )
    with torch.device("meta"):
        tower = survey(source.open(), config.tower)
    if config.operator == "cls_shift":
        _check_class_token(config, tower)
        return config
    layouts = _layouts(config, tower, clip_frames // config.tubelet)
    named = replace(
        config,
        operator=SHIFTS.get(config.operator, config.operator),
        ratio=None,
        heads=tuple(layout_text(layout) for layout in layouts),
    )
    wanted = Plan(named, tower, clip_frames, num_classes=1)
    try:
        today = Plan(config, tower, clip_frames, num_classes=1)
    except HeadsError:  # today's rules refuse to move the channels of format 1
        return named
    return config if _offsets(today) == _offsets(wanted) else named


def _offsets(plan: Plan) -> list[tuple[int, ...]]:
    """For each block, the offset of each channel of the fused projection's output."""
    return [Relocation(block.block.layout, block.moves).offsets for block in plan.blocks]


def _layouts(config: ModelConfig, tower: Survey, frames: int) -> list[HeadLayout]:
    """The head layout of each block in format 1, with shares that are whole numbers of channels.

    A channel shift is a layout whose heads are all split alike.
    """
    ratio, counts = Fraction(config.ratio or 0).limit_denominator(1000), tower.head_counts
    if config.operator in SHIFTS:
        split = ((-1, ratio / 2), (1, ratio / 2), (0, 1 - ratio))
        layouts: Sequence[HeadLayout] = [(split,) * count for count in counts]
    elif ratio:
        layouts = [heads_of_ratio(ratio, count) for count in counts]
    else:
        heads = [
            _one_sided(entry, count)
            for entry, count in zip(by_block(config.heads, len(counts)), counts, strict=True)
        ]
        layouts = parse_heads(heads, head_counts=counts, frames=frames)
    return [
        _whole_channels(layout, block.layout)
        for layout, block in zip(layouts, tower.blocks, strict=True)
    ]


def _one_sided(heads: BlockHeads, head_count: int) -> BlockHeads:
    """The setting `heads` of a block, spelled out where format 1 has only offset -1.

    Where the layout comes from the paper's tables and the block has fewer than 8 heads, format 1
    gives offset -1 to a quarter of the heads, rounded down. With fewer than 4 heads, a quarter of
    the channels has this offset.
    """
    is_table = heads is None or (isinstance(heads, str) and heads.strip() in PAPER_TABLES)
    if not is_table or head_count >= 8:
        return heads
    return "-1*1" if head_count >= 4 else f"-1*{Fraction(head_count, 4)}"


def _whole_channels(layout: HeadLayout, fused: FusedLayout) -> HeadLayout:
    """The layout, with every share as the whole number of channels that it has in format 1.

    CheckpointError if keys and values of a head differ in width, and a share is not a whole
    number of channels in both.
    """
    widths = fused.key_width, fused.value_width
    heads: list[int | SplitHead] = []
    for head in layout:
        pairs = shares(head)
        exact = all((share * width).denominator == 1 for _, share in pairs for width in widths)
        if widths[0] != widths[1] and not exact:
            raise CheckpointError(
                f"its heads are split into shares of {widths[0]} channels of keys and {widths[1]} "
                "of values that this version rounds otherwise; use the folder with a zeroi2v "
                "that writes format 1"
            )
        stops = [round(stop * widths[0]) for stop in accumulate(share for _, share in pairs)]
        whole = tuple(
            (offset, Fraction(stop - start, widths[0]))
            for (offset, _), start, stop in zip(pairs, [0, *stops], stops, strict=False)
            if stop > start
        )
        heads.append(whole[0][0] if len(whole) == 1 else whole)
    return tuple(heads)


def _check_class_token(config: ModelConfig, tower: Survey) -> None:
    """CheckpointError if format 1 moves other channels of the class token than today's rule."""
    half = Fraction(config.ratio or 0).limit_denominator(1000) / 2
    for block in tower.blocks:
        back, moved = round(half * block.width), round(2 * half * block.width)
        today = int(half * block.width)
        if (back, moved) != (today, 2 * today):
            raise CheckpointError(
                f"its class token has {back} channels that read the frame before and "
                f"{moved - back} that read the frame after; this version moves {today} each way, "
                "so use the folder with a zeroi2v that writes format 1"
            )
