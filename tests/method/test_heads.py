"""Head layouts: what a user may write, and the layouts that the paper prints."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from zeroi2v.errors import HeadsError
from zeroi2v.method.heads import Heads, parse_heads, shares, temporal_receptive_field

HALF = Fraction(1, 2)

TABLE_6 = [  # table, heads, frames, temporal heads, temporal receptive field
    (None, 12, 8, (-1, 1), 3),
    (None, 12, 16, (-1, 1, -2), 4),
    (None, 12, 32, (-1, 1, -2, 2, -3), 6),
    (None, 16, 8, (-1, -1, 1, 1), 3),
    (None, 16, 16, (-1, -1, 1, 1, -2), 4),
    (None, 16, 32, (-1, -1, 1, 1, -2, 2, -3), 6),
    ("ssv2", 12, 8, (-1, 1), 3),
    ("ssv2", 12, 16, (-1, 1, -2, 2), 5),
    ("ssv2", 12, 32, (-1, 1, -2, 2, -3), 6),
    ("ssv2", 16, 8, (-1, -1, 1, 1), 3),
    ("ssv2", 16, 16, (-1, -1, 1, 1, -2, -2, 2, 2), 5),
    ("ssv2", 16, 32, (-1, -1, 1, 1, -2, 2, -3), 6),
]


@pytest.mark.parametrize(("table", "heads", "frames", "temporal", "field"), TABLE_6)
def test_table_6(
    table: Heads, heads: int, frames: int, temporal: tuple[int, ...], field: int
) -> None:
    (layout,) = parse_heads(table, head_counts=[heads], frames=frames)
    assert layout == temporal + (0,) * (heads - len(temporal))
    assert temporal_receptive_field(layout) == field


@pytest.mark.parametrize(
    ("heads", "first"),
    [
        ([], ()),
        ("", ()),
        ([-1, +1], (-1, 1)),
        ("-1*1, 1*1", (-1, 1)),
        ("-1, 1", (-1, 1)),
        ("1*2, -1*2", (1, 1, -1, -1)),
        ("-1*1/2, 1*1/2", (((-1, HALF), (1, HALF)),)),
        ("-1*1/2", (((-1, HALF), (0, HALF)),)),
        ("-1*3/2, 1", (-1, ((-1, HALF), (1, HALF)), ((1, HALF), (0, HALF)))),
    ],
)
def test_what_a_user_may_write(heads: Heads, first: tuple[object, ...]) -> None:
    (layout,) = parse_heads(heads, head_counts=[6], frames=8)
    assert layout == first + (0,) * (6 - len(first))


def test_each_block_may_have_its_own_layout() -> None:
    assert parse_heads([[-1], "1*2", None], head_counts=[12] * 3, frames=8) == tuple(
        first + (0,) * (12 - len(first)) for first in ((-1,), (1, 1), (-1, 1))
    )


@pytest.mark.parametrize("table", ["k400", "ssv2"])
@pytest.mark.parametrize("frames", [1, 8, 16, 32, 64])
def test_the_rule_beyond_the_paper_makes_a_quarter_of_the_heads_temporal_and_at_least_two(
    table: str, frames: int
) -> None:
    for count in sorted({*range(1, 40)} - {12, 16}):
        (layout,) = parse_heads(table, head_counts=[count], frames=frames)
        assert len(layout) == count
        temporal = Counter(
            offset
            for head in layout
            for offset, share in shares(head)
            for _ in range(int(share * 24))
        )
        spatial = temporal.pop(0)
        channels = sum(temporal.values()) / 24  # in heads
        assert channels == count / 4 if count < 4 else channels == max(2, count // 4)
        near_first = [temporal[offset] for offset in (-1, 1, -2, 2, -3)]
        assert near_first == sorted(near_first, reverse=True)
        assert spatial + sum(near_first) == 24 * count


@pytest.mark.parametrize("table", [None, "k400", "ssv2"])
@pytest.mark.parametrize("frames", [1, 8, 9, 16, 17, 32])
@pytest.mark.parametrize(
    "counts",
    [[6], [1], [2], [3], [5], [7], [4], [3, 6, 12, 24], [2, 4, 8, 16], [1, 2, 4, 8]],
    ids=str,
)
def test_no_layout_beyond_the_paper_is_one_sided(
    counts: list[int], frames: int, table: str | None
) -> None:
    for layout in parse_heads(table, head_counts=counts, frames=frames):
        shares_of = {-1: Fraction(0), 1: Fraction(0)}
        for offset, share in (pair for head in layout for pair in shares(head)):
            if abs(offset) == 1:
                shares_of[offset] += share
        assert shares_of[1] > 0
        assert shares_of[-1] - shares_of[1] in (0, 1), "an odd number of heads: one more looks back"


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_six_heads_read_the_frame_before_and_the_frame_after(frames: int) -> None:
    assert parse_heads(None, head_counts=[6] * 12, frames=frames) == ((-1, 1, 0, 0, 0, 0),) * 12


# Heads of a stage -> the offsets of its temporal heads in Table 6b, for 16 frames.
SWIN_B = {4: (-1,), 8: (-1, 1), 16: (-1, 1, -2, 2), 32: (-1, -1, 1, 1, -2, -2, 2, 2)}


def test_table_6b_stages_of_swin_b() -> None:
    depths = {4: 2, 8: 2, 16: 18, 32: 2}
    counts = [heads for heads, depth in depths.items() for _ in range(depth)]
    layouts = parse_heads("ssv2", head_counts=counts, frames=16)
    assert layouts == tuple(SWIN_B[heads] + (0,) * (heads - len(SWIN_B[heads])) for heads in counts)
    fields = {
        heads: temporal_receptive_field(layout)
        for heads, layout in zip(counts, layouts, strict=True)
    }
    assert fields == {4: 2, 8: 3, 16: 5, 32: 5}
    for table, frames in ((None, 16), ("ssv2", 8), ("ssv2", 32)):  # the paper has no such table
        assert parse_heads(table, head_counts=counts, frames=frames)[0] == (-1, 1, 0, 0)


TABLE_1C = {  # temporal receptive field -> offsets, as printed, in the sign of equation 8
    2: "-1*1",
    3: "-1*1, 1*1",
    4: "-1*1, 1*1, -2*1",
    5: "-1*1, 1*1, -2*1, 2*1",
    6: "-1*1, 1*1, -2*1, 2*1, -3*1",
    7: "-1*1, 1*1, -2*1, 2*1, -3*1, 3*1",
    8: "-1*1, 1*1, -2*1, 2*1, -3*1, 3*1, -4*1",
}


@pytest.mark.parametrize(("field", "heads"), TABLE_1C.items())
def test_layouts_of_table_1c(field: int, heads: str) -> None:
    (layout,) = parse_heads(heads, head_counts=[12], frames=32)
    assert temporal_receptive_field(layout) == field
    assert layout.count(0) == 13 - field


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([-1] * 7, "block 0 (counted from 0) has 6 heads, but heads asks for 7 temporal heads"),
        ("-1*x", "expected offset*count"),
        ("ssv3", "did you mean 'ssv2'"),
        ("-1*0", "a count must be above 0"),
        ("1*1/0", "expected offset*count"),
        ([[-1], [1]], "2 layouts, but the tower has 1"),
        ([[0.5]], "a whole number of frames"),
    ],
)
def test_what_does_not_fit_is_named(heads: Heads, message: str) -> None:
    with pytest.raises(HeadsError) as caught:
        parse_heads(heads, head_counts=[6], frames=8)
    assert message in str(caught.value)
