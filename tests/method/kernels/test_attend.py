"""The attention kernel against a loop over frames and heads.

On a machine without a CUDA device Triton interprets the kernel, in fp32 and fp16. The same checks
run compiled on a CUDA device (`pytest -m gpu`), there in bf16 too.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from zeroi2v.method.kernels.attention import attend

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
INTERPRETED = "cpu"
on_gpu = pytest.mark.gpu
DEVICES = (
    pytest.param(INTERPRETED, torch.float32, id="interpreted fp32"),
    pytest.param(INTERPRETED, torch.float16, id="interpreted fp16"),
    pytest.param("cuda", torch.float32, id="cuda fp32", marks=on_gpu),
    pytest.param("cuda", torch.float16, id="cuda fp16", marks=on_gpu),
    pytest.param("cuda", torch.bfloat16, id="cuda bf16", marks=on_gpu),
)


@pytest.fixture(autouse=True)
def _interpreted_or_compiled(device: str) -> None:
    if device == INTERPRETED and torch.cuda.is_available():
        pytest.skip("the kernel is compiled in this process")


def slow_attention(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], frames: int) -> Tensor:
    """Equations 7-9 in float64, frame by frame and head by head: (B*T, N, H, E)."""
    result = torch.empty(*q.shape[:3], v.shape[-1], dtype=torch.float64, device=q.device)
    for row in range(len(q)):
        clip, frame = divmod(row, frames)
        for head, offset in enumerate(offsets):
            read = frame + offset if 0 <= frame + offset < frames else frame
            keys = k[clip * frames + read, :, head].double()
            products = q[row, :, head].double() @ keys.T / q.shape[-1] ** 0.5
            result[row, :, head] = products.softmax(-1) @ v[clip * frames + read, :, head].double()
    return result


def check(
    device: str,
    dtype: torch.dtype,
    *,
    clips: int,
    frames: int,
    tokens: int,
    offsets: list[int],
    widths: tuple[int, int],
) -> None:
    """The kernel and the loop agree on views of a fused projection's output."""
    key_width, value_width = widths
    parts = (key_width, key_width, value_width)
    generator = torch.Generator().manual_seed(0)
    shape = (clips * frames, tokens, len(offsets) * sum(parts))
    fused = torch.randn(shape, generator=generator).to(device, dtype)
    q, k, v = (
        part.unflatten(-1, (len(offsets), -1))
        for part in fused.split([len(offsets) * width for width in parts], -1)
    )
    table = torch.tensor(offsets, dtype=torch.int32, device=device)
    result = attend(q, k, v, table, frames=frames, scale=key_width**-0.5)
    expected = slow_attention(q, k, v, offsets, frames)
    assert result.dtype == dtype
    assert result.is_contiguous()
    difference = (result.double() - expected).abs().max() / expected.abs().max()
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("width", [32, 64, 72, 80, 88, 128])
def test_a_head_of_any_width_reads_the_frame_at_its_offset(
    device: str, dtype: torch.dtype, width: int
) -> None:
    check(device, dtype, clips=2, frames=3, tokens=17, offsets=[-1, 1, 0, 2], widths=(width, width))


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("tokens", [1, 16, 50, 64, 65, 197])
def test_any_number_of_tokens(device: str, dtype: torch.dtype, tokens: int) -> None:
    check(device, dtype, clips=1, frames=2, tokens=tokens, offsets=[1, -1], widths=(32, 32))


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_heads_narrower_than_a_matrix_tile_and_values_wider_than_keys(
    device: str, dtype: torch.dtype
) -> None:
    check(device, dtype, clips=1, frames=4, tokens=9, offsets=[-3, 0, 1], widths=(8, 40))


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("seed", range(4))
def test_random_layouts(device: str, dtype: torch.dtype, seed: int) -> None:
    draw = random.Random(seed)
    frames = draw.choice([1, 2, 5, 8, 32]) if device == "cuda" else draw.choice([1, 2, 5])
    offsets = [draw.randint(-frames - 1, frames + 1) for _ in range(draw.randint(1, 5))]
    tokens, width = draw.randint(1, 40), draw.choice([16, 32, 48])
    check(
        device,
        dtype,
        clips=draw.randint(1, 3),
        frames=frames,
        tokens=tokens,
        offsets=offsets,
        widths=(width, width),
    )


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        *(pytest.param(INTERPRETED, dtype, marks=pytest.mark.slow) for dtype in (torch.float32,)),
        *DEVICES[2:],
    ],
)
@pytest.mark.parametrize(("tokens", "frames"), [(1500, 2), (257, 32)])
def test_long_frames_and_long_clips(
    device: str, dtype: torch.dtype, tokens: int, frames: int
) -> None:
    check(device, dtype, clips=1, frames=frames, tokens=tokens, offsets=[-2, 1], widths=(64, 64))


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_large_products_do_not_overflow(device: str, dtype: torch.dtype) -> None:
    """The streaming softmax subtracts the largest product so far."""
    q = torch.full((2, 40, 1, 32), 20.0, device=device, dtype=dtype)
    v = torch.arange(2.0, device=device).to(dtype).view(2, 1, 1, 1).expand(2, 40, 1, 32)
    table = torch.tensor([1], dtype=torch.int32, device=device)
    result = attend(q, q, v, table, frames=2, scale=1.0)
    assert torch.equal(result[0], torch.ones_like(result[0]))  # frame 0 reads frame 1
    assert torch.equal(result[1], torch.ones_like(result[1]))  # frame 1 keeps its own
