"""Which attention modules of a tower read other frames by themselves? timm's plain attention.

On a CUDA device a module of the class `FrameAttention` takes K and V of frame t + offset by itself
(`method.kernels.attention`). Elsewhere, and where a gradient is needed, the hook on the module's
fused projection moves K and V first. Both compute equations 7-9 of the paper.

A tower's attention becomes a `FrameAttention` in place: the module keeps its submodules, weights,
keys and hooks.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from zeroi2v.method.call import call_in_progress, in_call
from zeroi2v.method.relocate import Move, MovedParts, moved_frames

logger = logging.getLogger(__name__)

# The largest difference, as a share of the largest value, that rounding explains.
ROUNDING = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
TOKENS = (20, 50, 257)  # for each of these numbers of tokens the kernel has other tiles
CAPABILITY = (8, 0)  # of the oldest CUDA devices that multiply matrices of bfloat16


class FrameAttention(Attention):
    """timm's attention, whose heads read other frames by themselves if the call asks for that."""

    head_offsets: tuple[int, ...]  # of each head, in frames
    offsets: Tensor  # (H) int32: `head_offsets` on the device of the weights

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attention of tokens (B*T, N, C) to the tokens of the frames that each head reads."""
        call = call_in_progress()
        if call is None or not call.attention_reads:
            hooked: Tensor = super().forward(x, attn_mask, is_causal)
            return hooked
        rows, tokens, _ = x.shape
        # The kernel takes a row for a frame. Some towers cut a frame into several rows.
        one_row_a_frame = rows == call.clips * call.frames
        masked = attn_mask is not None or is_causal or (self.training and self.attn_drop.p)
        if masked or not one_row_a_frame:
            with in_call(call.with_hooks()):
                return super().forward(x, attn_mask, is_causal)
        from zeroi2v.method.kernels.attention import attend

        parts = self.qkv(x).reshape(rows, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = parts.unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        attended = attend(q, k, v, self.offsets, frames=call.frames, scale=self.scale)
        joined = self.norm(attended.flatten(2))
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(joined))
        return result


def exchange(attention: nn.Module, moves: Sequence[Move], parts: MovedParts) -> bool:
    """Make an attention module a `FrameAttention` if possible. Returns whether that was possible.

    The module must be timm's plain attention. Its heads must move whole, with their keys and
    values and without their queries.
    """
    whole = all(move.start == 0 and move.stop == 1 for move in moves)
    if type(attention) is not Attention or parts != "kv" or not whole or not moves:
        return False
    offsets = [0] * attention.num_heads
    for move in moves:
        offsets[move.first_head : move.stop_head] = [move.offset] * (
            move.stop_head - move.first_head
        )
    exchanged: Any = attention
    exchanged.__class__ = FrameAttention
    exchanged.head_offsets = tuple(offsets)
    exchanged.register_buffer("offsets", None, persistent=False)
    put_offsets(exchanged)
    return True


def put_offsets(attention: FrameAttention) -> None:
    """Put the offsets of the heads on the device of the weights.

    They are made anew: `to_empty` leaves no values in a buffer.
    """
    device = attention.proj.weight.device
    attention.offsets = torch.tensor(attention.head_offsets, dtype=torch.int32, device=device)


def attention_reads(tower: nn.Module) -> bool:
    """Whether the `FrameAttention` modules of a tower can read other frames by themselves.

    They can if all of these hold: the device is a CUDA device of at least `CAPABILITY`, Triton is
    installed, the dtype is in `ROUNDING`, and on this device the kernel gives the result of
    attention to moved keys and values. A warning names a kernel that fails or gives another result.
    """
    modules = [module for module in tower.modules() if isinstance(module, FrameAttention)]
    if not modules or not all(isinstance(module.qkv.weight, Tensor) for module in modules):
        return False  # a quantised linear has no weight that is a tensor
    for module in modules:
        put_offsets(module)
    return all(_reads(module) for module in modules)


def _reads(attention: FrameAttention) -> bool:
    weight = attention.qkv.weight
    if weight.device.type != "cuda" or weight.dtype not in ROUNDING or not has_triton():
        return False
    if isinstance(weight, FakeTensor):
        return True  # a tensor without memory: no kernel runs, so there is nothing to compare
    return _agrees(attention.head_offsets, attention.head_dim, weight.dtype, weight.device)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed. It comes with PyTorch on Linux."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _agrees(offsets: tuple[int, ...], width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel computes what attention to moved keys and values computes.

    The comparison covers every set of tiles that the kernel has for this width.
    """
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    name = torch.cuda.get_device_name(device)
    try:
        difference = max(_difference(offsets, width, dtype, device, count) for count in TOKENS)
    except Exception as error:  # noqa: BLE001  whatever is wrong, a hook can move keys and values
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(
            "the attention kernel fails on %s, so keys and values are moved instead: %s", name, text
        )
        return False
    if not difference <= ROUNDING[dtype]:
        logger.warning(
            "the attention kernel differs by %.1e on %s, so keys and values are moved instead",
            difference,
            name,
        )
        return False
    return True


@torch.no_grad()
def _difference(
    offsets: tuple[int, ...], width: int, dtype: torch.dtype, device: torch.device, tokens: int
) -> float:
    """The largest difference of the kernel's results, as a share of the largest value.

    The kernel runs twice: the second start takes the kernel that the first start compiled.
    """
    from zeroi2v.method.kernels.attention import attend

    frames = 2 * max(map(abs, offsets)) + 1
    generator = torch.Generator(device).manual_seed(0)
    shape = (frames, tokens, 3, len(offsets), width)
    parts = torch.randn(shape, device=device, generator=generator, dtype=dtype)
    q, k, v = parts.unbind(2)
    queries, keys, values = (
        part.transpose(1, 2) for part in (q, _moved(k, offsets), _moved(v, offsets))
    )
    with torch.autocast(device.type, enabled=False):
        expected = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
    table = torch.tensor(offsets, dtype=torch.int32, device=device)
    results = [attend(q, k, v, table, frames=frames, scale=width**-0.5) for _ in range(2)]
    largest = expected.abs().max()
    return max(((result - expected).abs().max() / largest).item() for result in results)


def _moved(parts: Tensor, offsets: Sequence[int]) -> Tensor:
    """Keys or values (T, N, H, D) of one clip, where head h of frame t has frame t + offsets[h]."""
    heads = [
        moved_frames(parts[None, :, :, head], offset)[0] if offset else parts[:, :, head]
        for head, offset in enumerate(offsets)
    ]
    return torch.stack(heads, 2)
