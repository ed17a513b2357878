"""Which offset has each head of an attention block? Head layouts, from users and from Table 6.

A head layout has one entry for each head of a block. The entry is the offset of the head in frames,
0 for a spatial head. For a head that is split among several offsets, the entry is a tuple of pairs
(offset, share of the channels), whose shares add up to 1. Temporal heads come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, TypeAlias

from zeroi2v.errors import HeadsError, how_many, nearest

SplitHead: TypeAlias = tuple[tuple[int, Fraction], ...]
HeadLayout: TypeAlias = tuple[int | SplitHead, ...]
BlockHeads: TypeAlias = str | Sequence[int] | None
Heads: TypeAlias = BlockHeads | Sequence[BlockHeads]

PAPER_TABLES = {"k400": "Table 6a", "ssv2": "Table 6b"}
SWIN_B: Final = frozenset((4, 8, 16, 32))  # the numbers of heads of Swin-B's stages (Table 6b)


def parse_heads(heads: Heads, *, head_counts: Sequence[int], frames: int) -> tuple[HeadLayout, ...]:
    """The head layout of each attention block. `head_counts` has the number of heads of each block.

    `heads` is the same for all blocks, or a list with an entry for each block. It may be
    - None or "k400": the layout of Table 6a for the block's number of heads (`paper_counts`);
    - "ssv2": the layout of Table 6b;
    - text such as "-1*1, 1*1/2": offset*count, where the count may be a fraction of a head;
    - a list with the offset of each temporal head; an empty list makes all heads spatial.

    HeadsError says what is wrong, and names a block that has too few heads.
    """
    stages = frozenset(head_counts)
    return tuple(
        _block_layout(heads_of_block, head_count, frames, block, stages)
        for block, (heads_of_block, head_count) in enumerate(
            zip(by_block(heads, len(head_counts)), head_counts, strict=True)
        )
    )


def by_block(heads: Heads, block_count: int) -> list[BlockHeads]:
    """`heads` of each block. HeadsError if `heads` is a list for another number of blocks."""
    if heads is None or isinstance(heads, str) or all(isinstance(entry, int) for entry in heads):
        return [heads] * block_count  # type: ignore[list-item]  # a single layout
    if len(heads) != block_count:
        raise HeadsError(
            f"heads has {how_many(len(heads), 'layout')}, but the tower has "
            f"{how_many(block_count, 'attention block')}; "
            "give one layout for all blocks, or one for each"
        )
    return list(heads)  # type: ignore[arg-type]  # the first branch has taken every single layout


def _block_layout(
    heads: BlockHeads, head_count: int, frames: int, block: int, stages: frozenset[int]
) -> HeadLayout:
    """The layout of block number `block`. `stages`: the numbers of heads of all blocks."""
    if heads is None:
        heads = "k400"
    if isinstance(heads, str):
        is_table = heads.strip() in PAPER_TABLES
        counts = (
            paper_counts(heads, head_count, frames, stages=stages)
            if is_table
            else _parse_counts(heads)
        )
    else:
        counts = [(_require_offset(offset), Fraction(1)) for offset in heads]
    return _assign_heads(counts, head_count, block)


def _assign_heads(
    counts: Sequence[tuple[int, Fraction]], head_count: int, block: int
) -> HeadLayout:
    """Assign heads to offsets in order, beginning with the first head of the block.

    Each pair (offset, count) takes the next `count` heads. Where a count ends inside a head, the
    next offset takes the rest of that head. The heads that no offset takes are spatial.

    HeadsError if the counts add up to more than `head_count`.
    """
    layout: list[int | SplitHead] = []
    split_head: list[tuple[int, Fraction]] = []  # shares of the head that is not yet full
    for offset, count in counts:
        remaining = count
        while remaining > 0:
            free = 1 - sum((share for _, share in split_head), Fraction(0))
            share = min(remaining, free)
            split_head.append((offset, share))
            remaining -= share
            if share == free:
                layout.append(split_head[0][0] if len(split_head) == 1 else tuple(split_head))
                split_head = []
    if split_head:  # the last head is not full: its other channels are spatial
        split_head.append((0, 1 - sum((share for _, share in split_head), Fraction(0))))
        layout.append(tuple(split_head))
    if len(layout) > head_count:
        raise HeadsError(
            f"block {block} (counted from 0) has {how_many(head_count, 'head')}, but heads asks "
            f"for {how_many(len(layout), 'temporal head')}; give smaller counts"
        )
    return tuple(layout) + (0,) * (head_count - len(layout))


def _require_offset(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeadsError(f"heads: an offset must be a whole number of frames, got {value!r}")
    return value


def _parse_counts(text: str) -> list[tuple[int, Fraction]]:
    """The (offset, count) pairs of a text such as "-1*1, 1*1/2"; a missing count is 1."""
    counts = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        offset, _, count = part.partition("*")
        try:
            pair = int(offset), Fraction(count.strip() or "1")
        except (ValueError, ZeroDivisionError):
            hint = nearest(text, PAPER_TABLES)
            raise HeadsError(
                f"heads {text!r}: expected offset*count, such as '-1*1, 1*1', got {part!r}{hint}"
            ) from None
        if pair[1] <= 0:
            raise HeadsError(f"heads {text!r}: a count must be above 0, got {part!r}")
        counts.append(pair)
    return counts


def paper_counts(
    table: str, head_count: int, frames: int, *, stages: frozenset[int]
) -> list[tuple[int, Fraction]]:
    """The (offset, count) pairs of Table 6a ("k400") or 6b ("ssv2") for one attention block.

    The tables print layouts for 12 and for 16 heads, and for Swin-B. For another `head_count`, and
    for every block of a tower whose blocks differ in their number of heads (`stages`), the pairs
    follow Swin-B: a quarter of the heads, rounded down, is temporal. These heads are dealt in turn
    to the offsets of the table's row, the nearest offset first.

    Only the pairs that the paper prints for the first stage of Swin-B are one-sided: every other
    block of 4 to 7 heads has two temporal heads, at offsets -1 and 1. With fewer than 4 heads, a
    quarter of the channels is temporal, half of it at offset -1 and half at offset 1.
    """
    k400 = table.strip() == "k400"
    offsets = (-1, 1, -2, 2, -3)[: 2 if frames <= 8 else 5 if frames > 16 else 3 if k400 else 4]
    if len(stages) > 1 or head_count not in (12, 16):
        if head_count < 4:
            return [(-1, Fraction(head_count, 8)), (1, Fraction(head_count, 8))]
        is_printed = not k400 and stages == SWIN_B and 8 < frames <= 16
        temporal = head_count // 4 if is_printed else max(2, head_count // 4)
        rounds, rest = divmod(temporal, len(offsets))
        return [
            (offset, Fraction(rounds + (index < rest)))
            for index, offset in enumerate(offsets)
            if rounds or index < rest
        ]
    near = head_count // 8  # heads at offset -1, and as many at offset 1
    far = near if frames <= 16 and not k400 else 1  # heads at each other offset
    return [(offset, Fraction(near if abs(offset) == 1 else far)) for offset in offsets]


def layout_text(layout: HeadLayout) -> str:
    """A layout as text that `parse_heads` reads, head by head: "-1*1, 1*1/2, 0*1/2"."""
    return ", ".join(f"{offset}*{share}" for head in layout for offset, share in shares(head))


def shares(head: int | SplitHead) -> SplitHead:
    """The (offset, share) pairs of a head, split or not. The shares add up to 1."""
    return head if isinstance(head, tuple) else ((head, Fraction(1)),)


def heads_of_ratio(ratio: Fraction, head_count: int, width: int | None = None) -> HeadLayout:
    """The layout of a block whose temporal heads have a share `ratio` of the channels, at most 1.

    Half of these channels have offset -1, half have offset 1. `ratio` is R_c of Table 1a. With the
    `width` of a head in channels, each half is rounded down to whole channels, unless none is left.
    """
    heads = ratio * head_count / 2
    if width is not None:
        heads = Fraction(heads * width // 1, width) or heads
    return _assign_heads([(-1, heads), (1, heads)], head_count, 0)


def temporal_receptive_field(layout: HeadLayout) -> int:
    """The number of frames that one frame reads in a block, its own frame included (Table 1c)."""
    return len({0} | {offset for head in layout for offset, _ in shares(head)})
