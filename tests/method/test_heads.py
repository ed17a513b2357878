"""Head layouts: what a user may write, and the layouts that the paper prints."""

from __future__ import annotations

from fractions import Fraction

import pytest

from zeroi2v.errors import HeadsError
from zeroi2v.method.heads import Heads, parse_heads, temporal_receptive_field

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
def test_table_6(table: Heads, heads: int, frames: int, temporal: tuple[int, ...], field: int) -> None:
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


def test_each_block_may_have_its_own() -> None:
    assert parse_heads([[-1], "1*2", None], head_counts=[2, 2, 12], frames=8) == ((-1, 0), (1, 1), (-1, 1) + (0,) * 10)


@pytest.mark.parametrize("heads", range(1, 40))
@pytest.mark.parametrize("frames", [1, 8, 16, 32, 64])
def test_the_rule_beyond_the_paper_keeps_at_most_half_of_the_heads_temporal(heads: int, frames: int) -> None:
    (layout,) = parse_heads(None, head_counts=[heads], frames=frames)
    temporal = sum(offset != 0 for offset in layout)
    assert temporal >= 1
    assert temporal <= max(1, heads // 2)
    if frames <= 8 and heads >= 8:
        assert heads / 6 - 1 <= temporal <= heads / 4


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([-1] * 7, "block 0: 7 temporal heads asked for, but it has 6 heads"),
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
