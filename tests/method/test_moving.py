"""Do all forms of the same moves give the same numbers, and does PyTorch follow them?"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.method.test_relocate import LAYOUTS, random_heads
from zeroi2v.method.moving import (
    MOST_NUMBERS,
    _kept_table,
    copies_of,
    equal_runs,
    make_copies,
    move_by_index,
    move_rows,
    rows_of,
)
from zeroi2v.method.relocate import FusedLayout, Relocation, channel_moves, head_moves


def slowly(projected: Tensor, offsets: Sequence[int], clips: int, frames: int) -> Tensor:
    """All moves, number by number: `offsets` has C numbers."""
    by_frame = projected.reshape(clips, frames, -1, projected.shape[-1])
    result = by_frame.clone()
    for t in range(frames):
        for channel, offset in enumerate(offsets):
            if 0 <= t + offset < frames:
                result[:, t, :, channel] = by_frame[:, t + offset, :, channel]
    return result.view(projected.shape)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_form_moves_the_same_numbers(name: str, frames: int, dtype: torch.dtype) -> None:
    draw = random.Random(f"{name}/{frames}")
    layout = LAYOUTS[name]
    width = layout.head_count * (2 * layout.key_width + layout.value_width)
    for parts in ("kv", "v", "qkv"):
        moves = head_moves(random_heads(draw, frames, layout.head_count))
        relocation = Relocation(layout, moves, parts)
        projected = torch.randn(2 * frames * 2, 3, width).to(dtype)
        expected = slowly(projected, relocation.offsets, 2, frames)
        run_width, runs = relocation.moving_runs
        copied, by_row, by_index = (projected.clone() for _ in range(3))
        make_copies(copied, copies_of(relocation.blocks, 2, frames, projected.shape))
        assert torch.equal(copied, expected)
        rows = rows_of(runs, run_width, 2, frames, projected.shape)
        if rows is None:
            assert torch.equal(projected, expected), "nothing moves"
        else:
            move_rows(by_row, rows)
            assert torch.equal(by_row, expected)
        move_by_index(by_index, runs, run_width, clips=2, frames=frames)
        assert torch.equal(by_index, expected)
        called = relocation(projected.clone(), clips=2, frames=frames)
        assert torch.equal(called, expected)


@pytest.mark.parametrize("start", [0, 1, 4])
def test_an_output_may_begin_anywhere_in_its_memory(start: int) -> None:
    relocation = Relocation(FusedLayout(2, 4, 4), head_moves((-1, 0)))
    memory = torch.randn(start + 6 * 3 * 24).bfloat16()
    projected = memory[start:].view(6, 3, 24)
    expected = slowly(projected, relocation.offsets, 2, 3)
    width, runs = relocation.moving_runs
    move_by_index(projected, runs, width, clips=2, frames=3)
    assert torch.equal(projected, expected)


def test_runs_are_as_wide_as_possible() -> None:
    assert equal_runs([0, 0, 1, 1, 1, 1]) == (2, ((0, 0), (1, 1), (2, 1)))
    assert equal_runs([0] * 16, widest=8) == (8, ((0, 0), (1, 0)))
    assert equal_runs([0, 1, 1, 1])[0] == 1


def test_much_that_moves_needs_no_table() -> None:
    """A table of all rows would be large; copies are as fast."""
    relocation = Relocation(FusedLayout(12, 64, 64), head_moves((-1, 1)))
    width, runs = relocation.moving_runs
    assert width == 64
    tokens = MOST_NUMBERS // (2 * 2 * 64 * 7)
    rows = rows_of(runs, width, 1, 8, (8, tokens, 2304))
    assert rows is not None
    assert rows.width == 64
    assert rows_of(runs, width, 1, 8, (8, tokens + 1, 2304)) is None


def test_a_copy_of_a_relocation_holds_no_tables() -> None:
    relocation = Relocation(FusedLayout(4, 4, 4), channel_moves(Fraction(1, 2), 4))
    projected = torch.randn(4, 3, 48)
    moved = relocation(projected.clone(), clips=2, frames=2)
    for other in (copy.deepcopy(relocation), pickle.loads(pickle.dumps(relocation))):
        assert other == relocation
        assert "_kept" not in vars(other)
        assert torch.equal(other(projected.clone(), clips=2, frames=2), moved)


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its derivatives in forward mode
def test_a_gradient_by_torch_func_is_the_gradient_of_autograd(by_index: bool) -> None:
    relocation = Relocation(FusedLayout(3, 4, 4), head_moves((-1, 2, 0)))
    weight = torch.randn(36, 8, dtype=torch.double)
    tokens = torch.randn(5, 2 * 4, 3, 8, dtype=torch.double)  # five pairs of clips

    def loss(weight: Tensor, tokens: Tensor) -> Tensor:
        projected = torch.nn.functional.linear(tokens, weight)
        moved = relocation(projected, clips=2, frames=4, by_index=by_index)
        return (moved * moved.cos()).sum()

    leaf = weight.clone().requires_grad_()
    expected = [torch.autograd.grad(loss(leaf, pair), leaf)[0] for pair in tokens]
    assert torch.equal(torch.func.grad(loss)(weight, tokens[0]), expected[0])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, tokens)
    torch.testing.assert_close(each, torch.stack(expected))
    with torch.no_grad():
        losses = torch.func.vmap(loss, in_dims=(None, 0))(weight, tokens)
    torch.testing.assert_close(losses, torch.stack([loss(weight, pair) for pair in tokens]))
    direction = torch.randn_like(weight)
    slope = torch.func.jvp(lambda w: loss(w, tokens[0]), (weight,), (direction,))[1]
    torch.testing.assert_close(slope, (expected[0] * direction).sum())


@pytest.mark.parametrize("by_index", [False, True])
def test_a_second_gradient_is_right(by_index: bool) -> None:
    relocation = Relocation(FusedLayout(2, 2, 2), head_moves((-1, 1)))
    tokens = torch.randn(4, 2, 12, dtype=torch.double, requires_grad=True)

    def moved(x: Tensor) -> Tensor:
        return relocation(x * x.sin(), clips=1, frames=4, by_index=by_index).square()

    torch.autograd.gradcheck(moved, (tokens,))
    torch.autograd.gradgradcheck(moved, (tokens,))


def test_a_table_on_a_device_stays_where_a_captured_graph_reads_it() -> None:
    cpu, first = torch.device("cpu"), ((0, 1),)
    table = _kept_table(first, 4, cpu)
    for run in range(1, 400):
        _kept_table(((run, 1),), 4, cpu)
    assert _kept_table(first, 4, cpu).data_ptr() == table.data_ptr()


@torch.no_grad()
def test_a_tensor_without_memory_takes_no_table_of_an_earlier_call() -> None:
    layout = FusedLayout(2, 4, 4)
    relocation = Relocation(layout, head_moves((-1, 1)))
    projected = torch.randn(2 * 4, 3, 24)
    relocation(projected.clone(), clips=2, frames=4)
    mode = FakeTensorMode()
    with mode:
        fake = mode.from_tensor(projected)
        assert relocation(fake, clips=2, frames=4).shape == projected.shape
    on_meta = relocation(projected.to("meta"), clips=2, frames=4)
    assert on_meta.shape == projected.shape
