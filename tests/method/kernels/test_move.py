"""The kernel that makes all moves of a block at once, against a loop over frames and channels.

On a machine without a CUDA device Triton interprets the kernel. The same checks run compiled on a
CUDA device (`pytest -m gpu`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.models.test_calls import model_of
from tests.towers_for_tests import random_clip
from zeroi2v import VideoClassifier
from zeroi2v.method import kernels
from zeroi2v.method.kernels.move import (
    move,
    move_in_place,
    moved,
    moved_gradient,
    moved_slowly,
)
from zeroi2v.method.relocate import FusedLayout, Move, MovedParts, Relocation

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True)
def _interpreted_or_compiled(request: pytest.FixtureRequest) -> None:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("device") != "cuda" and torch.cuda.is_available():
        pytest.skip("the kernel is compiled in this process")


class Tables:
    """The tables of a fused projection whose channels have these offsets, on a device."""

    def __init__(self, offsets: Sequence[int], device: str) -> None:
        tables = kernels.run_tables(offsets)
        self.moving, self.every = (tables[name].to(device) for name in ("moving_runs", "every_run"))
        self.width = len(offsets) // self.every.shape[1]


def random_offsets(draw: random.Random, frames: int, channels: int, run: int) -> list[int]:
    """An offset for each channel, alike in runs of some channels."""
    offsets = [draw.choice([0, draw.randint(-frames - 1, frames + 1)]) for _ in range(channels)]
    return [offsets[channel // run] for channel in range(channels)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 32])
@pytest.mark.parametrize(("channels", "run"), [(15, 1), (24, 4), (48, 16)])
def test_every_channel_reads_the_frame_at_its_offset(
    device: str, frames: int, channels: int, run: int
) -> None:
    draw = random.Random(frames * channels)
    offsets = random_offsets(draw, frames, channels, run)
    clips, tokens = draw.randint(1, 3), draw.randint(1, 5)
    table = Tables(offsets, device)
    projected = torch.randn(clips * frames, tokens, channels, device=device, dtype=torch.float64)
    before = projected.clone()
    expected = moved_slowly(projected, offsets, clips, frames)
    assert torch.equal(moved(projected, table.every, table.width, clips, frames), expected)
    assert torch.equal(projected, before)
    move_in_place(projected, table.moving, table.width, clips, frames)
    assert torch.equal(projected, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_is_that_of_finite_differences(device: str) -> None:
    table = Tables([0, 1, -1, 2], device)
    projected = torch.randn(3, 1, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda tensor: moved(tensor, table.every, table.width, 1, 3), (projected,)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("frames", [1, 3, 6, 16])
def test_the_gradient_is_that_of_the_loop(device: str, frames: int) -> None:
    offsets = random_offsets(random.Random(frames), frames, 12, 2)
    table = Tables(offsets, device)
    shape = (2 * frames, 3, 12)
    projected = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    weights = torch.randn_like(projected)
    (expected,) = torch.autograd.grad(
        moved_slowly(projected, offsets, 2, frames), projected, weights
    )
    by_kernel = moved(projected, table.every, table.width, 2, frames)
    (functional,) = torch.autograd.grad(by_kernel, projected, weights)
    # In place, on a view, as the output of a linear layer is one.
    made = projected.flatten(0, 1).clone().view(shape)
    (in_place,) = torch.autograd.grad(
        move(made, table.moving, table.every, clips=2, frames=frames), projected, weights
    )
    torch.testing.assert_close(functional, expected)
    torch.testing.assert_close(in_place, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(device: str, dtype: torch.dtype) -> None:
    offsets = [0, 1, -1, 2, 2, 0]
    table = Tables(offsets, device)
    numbers = torch.randn(8, 3, 6, device=device).to(dtype)
    exact = numbers.double().requires_grad_()
    expected = moved_slowly(exact, offsets, 2, 4)
    assert torch.equal(moved(numbers, table.every, table.width, 2, 4), expected.to(dtype))
    (gradient,) = torch.autograd.grad(expected, exact, numbers.double())
    result = moved_gradient(numbers, table.every, table.width, 2, 4)
    torch.testing.assert_close(result, gradient.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_frames_that_no_head_reads_have_a_gradient_of_zero(device: str) -> None:
    table = Tables([2], device)
    projected = torch.zeros(5, 1, 1, device=device, requires_grad=True)
    moved(projected, table.every, table.width, 1, 5).sum().backward()
    assert projected.grad is not None
    assert projected.grad.flatten().tolist() == [0, 0, 1, 2, 2]  # frames 3 and 4 keep their own too


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its checks
def test_pytorch_may_trace_and_count_the_operators(device: str) -> None:
    table = Tables([0, 0, 1, 1], device)
    sizes = (table.width, 2, 3)
    projected = torch.randn(6, 4, device=device, requires_grad=True)
    torch.library.opcheck(moved, (projected, table.every, *sizes))
    torch.library.opcheck(move_in_place, (projected.detach(), table.moving, *sizes))


@pytest.mark.parametrize(
    "layout",
    [FusedLayout(4, 8, 8), FusedLayout(4, 8, 8, head_first=True), FusedLayout(4, 6, 10)],
    ids=["equal", "head first", "wider values"],
)
@pytest.mark.parametrize("parts", ["kv", "v", "qkv"])
def test_the_table_of_a_relocation_moves_what_the_relocation_moves(
    layout: FusedLayout, parts: MovedParts
) -> None:
    whole, half = (Fraction(0), Fraction(1)), (Fraction(1, 2), Fraction(1))
    moves = (Move(0, 2, *whole, -1), Move(2, 3, *half, 2), Move(3, 4, *whole, 7))
    relocation = Relocation(layout, moves, parts)
    width = layout.head_count * (2 * layout.key_width + layout.value_width)
    projected = torch.randn(2 * 5, 3, width)
    table = Tables(relocation.offsets, "cpu")
    by_kernel = moved(projected, table.every, table.width, 2, 5)
    assert torch.equal(by_kernel, relocation(projected, clips=2, frames=5))


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The kernel moves keys and values, on any device; the list gets the input of each use."""
    used: list[Tensor] = []

    def noted(projected: Tensor, moving: Tensor, every: Tensor, **sizes: int) -> Tensor:
        used.append(projected)
        return move(projected, moving, every, **sizes)

    monkeypatch.setattr(kernels, "MOVES", True)
    monkeypatch.setattr(kernels, "moves", lambda projection, _: hasattr(projection, "every_run"))
    monkeypatch.setattr("zeroi2v.method.kernels.move.move", noted)
    return used


def logits_and_gradients(
    model: VideoClassifier, clip: Tensor, *, fewer_frames: bool = False
) -> list[Tensor]:
    model.zero_grad()
    logits = model(clip, fewer_frames=fewer_frames)
    logits.square().sum().backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [logits.detach(), *gradients]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tower", ["vit_small_plus_patch16_dinov3_qkvb", "samvit_base_patch16"])
def test_a_model_learns_the_same_by_the_kernel(
    device: str, tower: str, request: pytest.FixtureRequest
) -> None:
    model = model_of(tower, heads="-1*1, 1*1/2").double().to(device)
    clip = random_clip(model).to(device)
    expected = logits_and_gradients(model, clip)
    used = request.getfixturevalue("by_kernel")
    model = model_of(tower, heads="-1*1, 1*1/2").double().to(device)
    torch.testing.assert_close(logits_and_gradients(model, clip), expected)
    assert len(used) == sum(bool(block.moves) for block in model.plan.blocks) > 0
    assert not any("run" in name for name in model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(clip), expected[0])
    logits_and_gradients(model, clip[:, :2], fewer_frames=True)  # offsets shrink: another form
    assert len(used) == 2 * sum(bool(block.moves) for block in model.plan.blocks)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_a_compiled_graph_holds_the_kernel() -> None:
    table = Tables([0, 0, -1, -1, 2, 2], "cpu")
    linear = torch.nn.Linear(3, 6)
    tokens = torch.randn(2 * 4, 5, 3)

    def call(x: Tensor) -> Tensor:
        return move(linear(x), table.moving, table.every, clips=2, frames=4)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    expected = call(tokens)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), linear.weight)
    result = compiled(tokens)
    (gradient,) = torch.autograd.grad(result.square().sum(), linear.weight)
    torch.testing.assert_close((result, gradient), (expected, expected_gradient))
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), expected.detach())
