"""Which head has which offset? Head layouts: text or numbers to offsets, the layouts of Table 6, the temporal receptive field.

A layout has one entry per head: an offset in frames (0: a spatial head), or for a head split among offsets
((offset, share), ...) with shares that add up to 1. Temporal heads come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

from zeroi2v.errors import HeadsError, nearest

SplitHead: TypeAlias = tuple[tuple[int, Fraction], ...]
HeadLayout: TypeAlias = tuple[int | SplitHead, ...]
Heads: TypeAlias = str | Sequence[int] | Sequence["str | Sequence[int] | None"] | None

PAPER_TABLES = {"k400": "Table 6a", "ssv2": "Table 6b"}


def parse_heads(heads: Heads, *, head_counts: Sequence[int], frames: int) -> tuple[HeadLayout, ...]:
    """One layout per attention block.

    `heads` is None or "k400" (Table 6a's layout for each block's head count: `paper_counts`), "ssv2" (Table 6b's), text such as
    "-1*1, 1*1/2" (offset*count), a list with the offset of each temporal head, an empty list (all spatial), or one of these per block.
    HeadsError names the block that it does not fit.
    """
    if heads is None or isinstance(heads, str) or all(isinstance(entry, int) for entry in heads):
        each: list[Heads] = [heads] * len(head_counts)
    elif len(heads) == len(head_counts):
        each = list(heads)  # type: ignore[arg-type]  # one per block: single layouts are ruled out above
    else:
        raise HeadsError(
            f"heads has {len(heads)} layouts, but the tower has {len(head_counts)} attention blocks"
        )
    staged = len(set(head_counts)) > 1
    return tuple(
        _one_layout(one, head_count, frames, block, staged=staged)
        for block, (one, head_count) in enumerate(zip(each, head_counts, strict=True))
    )


def _one_layout(
    heads: Heads, head_count: int, frames: int, block: int, *, staged: bool
) -> HeadLayout:
    if heads is None:
        heads = "k400"
    if isinstance(heads, str):
        named = heads.strip() in PAPER_TABLES
        counts = paper_counts(heads, head_count, frames, staged=staged) if named else _read(heads)
    else:
        counts = [(_offset(offset), Fraction(1)) for offset in heads]
    return _fill(counts, head_count, block)


def _fill(counts: Sequence[tuple[int, Fraction]], head_count: int, block: int) -> HeadLayout:
    """Heads in order, each offset given as many as its count, a head shared where a count ends inside it; the rest spatial."""
    layout: list[int | SplitHead] = []
    filling: list[tuple[int, Fraction]] = []  # the head that is being shared out
    for offset, count in counts:
        left = count
        while left > 0:
            room = 1 - sum((share for _, share in filling), Fraction(0))
            taken = min(left, room)
            filling.append((offset, taken))
            left -= taken
            if taken == room:
                layout.append(filling[0][0] if len(filling) == 1 else tuple(filling))
                filling = []
    if filling:  # the rest of a split head is spatial
        filling.append((0, 1 - sum((share for _, share in filling), Fraction(0))))
        layout.append(tuple(filling))
    if len(layout) > head_count:
        raise HeadsError(
            f"block {block}: {len(layout)} temporal heads asked for, but it has {head_count} heads"
        )
    return tuple(layout) + (0,) * (head_count - len(layout))


def _offset(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeadsError(f"an offset must be a whole number of frames, got {value!r}")
    return value


def _read(text: str) -> list[tuple[int, Fraction]]:
    counts = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        offset, _, count = part.partition("*")
        try:
            entry = int(offset), Fraction(count.strip() or "1")
        except (ValueError, ZeroDivisionError):
            hint = nearest(text, PAPER_TABLES)
            raise HeadsError(
                f"heads {text!r}: expected offset*count, such as '-1*1, 1*1', got {part!r}{hint}"
            ) from None
        if entry[1] <= 0:
            raise HeadsError(f"heads {text!r}: a count must be above 0, got {part!r}")
        counts.append(entry)
    return counts


def paper_counts(
    table: str, head_count: int, frames: int, *, staged: bool
) -> list[tuple[int, Fraction]]:
    """The (offset, count) pairs of Table 6a ("k400") or 6b ("ssv2") for a block of so many heads that attend over so many frames.

    For 12 and 16 heads they are the table's rows. Elsewhere, and in every block of a tower whose blocks differ in heads (`staged`), a
    quarter of the heads is temporal, rounded down, dealt in turn to the offsets of the table's row, the nearest first: the table's
    Swin-B. Below 4 heads it is a quarter of the channels, at offset -1.
    """
    k400 = table.strip() == "k400"
    offsets = (-1, 1, -2, 2, -3)[: 2 if frames <= 8 else 5 if frames > 16 else 3 if k400 else 4]
    if staged or head_count not in (12, 16):
        if head_count < 4:
            return [(-1, Fraction(head_count, 4))]
        rounds, rest = divmod(head_count // 4, len(offsets))
        return [
            (offset, Fraction(rounds + (place < rest)))
            for place, offset in enumerate(offsets)
            if rounds or place < rest
        ]
    near = head_count // 8  # heads at -1, and at 1
    far = near if frames <= 16 and not k400 else 1
    return [(offset, Fraction(near if abs(offset) == 1 else far)) for offset in offsets]


def layout_text(layout: HeadLayout) -> str:
    """The text that `parse_heads` reads as this layout: "-1*1, 1*1/2, 0*1/2", head by head."""
    return ", ".join(f"{offset}*{share}" for head in layout for offset, share in shares(head))


def shares(head: int | SplitHead) -> SplitHead:
    """The (offset, share) pairs of a head, whole or split: shares add up to 1."""
    return head if isinstance(head, tuple) else ((head, Fraction(1)),)


def heads_of_ratio(ratio: Fraction, head_counts: Sequence[int]) -> tuple[HeadLayout, ...]:
    """The layout that moves a share `ratio` of the channels (R_c of Table 1a): half of them at offset -1, half at +1."""
    return tuple(
        _fill([(-1, ratio * count / 2), (1, ratio * count / 2)], count, block)
        for block, count in enumerate(head_counts)
    )


def temporal_receptive_field(layout: HeadLayout) -> int:
    """How many frames one attention block sees at once: the distinct offsets, the own frame included (Table 1c)."""
    return len({0} | {offset for head in layout for offset, _ in shares(head)})
