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

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from zeroi2v.method.call import call_in_progress, in_call
from zeroi2v.method.relocate import Move, moved_frames

logger = logging.getLogger(__name__)

# The largest difference, as a share of the largest value, that rounding explains.
ROUNDING = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
CAPABILITY = (8, 0)  # of the oldest CUDA devices that multiply matrices of bfloat16


class FrameAttention(Attention):
    """timm's attention, whose heads read other frames by themselves if the call asks for that."""

    offsets: Tensor  # (H) int32: the offset of each head, in frames

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attention of tokens (B*T, N, C) to the tokens of the frames that each head reads."""
        call = call_in_progress()
        if call is None or not call.attention_reads:
            hooked: Tensor = super().forward(x, attn_mask, is_causal)
            return hooked
        if attn_mask is not None or is_causal or (self.training and self.attn_drop.p):
            with in_call(call.with_hooks()):
                return super().forward(x, attn_mask, is_causal)
        from zeroi2v.method.kernels.attention import attend

        rows, tokens, _ = x.shape
        parts = self.qkv(x).view(rows, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = parts.unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        attended = attend(q, k, v, self.offsets, frames=call.frames, scale=self.scale)
        joined = self.norm(attended.flatten(2))
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(joined))
        return result


def exchange(attention: nn.Module, moves: Sequence[Move], *, queries: bool) -> bool:
    """Make an attention module a `FrameAttention` if possible. Returns whether that was possible.

    The module must be timm's plain attention, and its heads must move whole, without their queries.
    """
    whole = all(move.start == 0 and move.stop == 1 for move in moves)
    if type(attention) is not Attention or queries or not whole or not moves:
        return False
    offsets = torch.zeros(attention.num_heads, dtype=torch.int32, device="cpu")
    for move in moves:
        offsets[move.first_head : move.stop_head] = move.offset
    attention.__class__ = FrameAttention
    attention.register_buffer("offsets", offsets, persistent=False)
    return True


def attention_reads(tower: nn.Module) -> bool:
    """Whether the `FrameAttention` modules of a tower can read other frames by themselves.

    They can if all of these hold: the device is a CUDA device of at least `CAPABILITY`, Triton is
    installed, the dtype is in `ROUNDING`, and on this device the kernel gives the result of
    attention to moved keys and values. A warning names a kernel that fails or gives another result.
    """
    modules = [module for module in tower.modules() if isinstance(module, FrameAttention)]
    return bool(modules) and all(_reads(module) for module in modules)


def _reads(attention: FrameAttention) -> bool:
    weight = attention.qkv.weight
    if weight.device.type != "cuda" or weight.dtype not in ROUNDING or not has_triton():
        return False
    if isinstance(weight, FakeTensor):
        return True  # a tensor without memory: no kernel runs, so there is nothing to compare
    return _agrees(
        tuple(attention.offsets.tolist()), attention.head_dim, weight.dtype, weight.device
    )


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed. It comes with PyTorch on Linux."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _agrees(offsets: tuple[int, ...], width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel computes what attention to moved keys and values computes."""
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    from zeroi2v.method.kernels.attention import attend

    frames, tokens = 2 * max(map(abs, offsets)) + 1, 50
    generator = torch.Generator(device).manual_seed(0)
    shape = (frames, tokens, 3, len(offsets), width)
    parts = torch.randn(shape, device=device, generator=generator, dtype=dtype)
    q, k, v = parts.unbind(2)
    queries, keys, values = (
        part.transpose(1, 2) for part in (q, _moved(k, offsets), _moved(v, offsets))
    )
    expected = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
    table = torch.tensor(offsets, dtype=torch.int32, device=device)
    try:
        result = attend(q, k, v, table, frames=frames, scale=width**-0.5)
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001  whatever is wrong, the other form works
        logger.warning(
            "the attention kernel fails on %s, so keys and values are moved instead: %s",
            torch.cuda.get_device_name(device),
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return False
    difference = ((result - expected).abs().max() / expected.abs().max()).item()
    if not difference <= ROUNDING[dtype]:
        logger.warning(
            "the attention kernel differs by %.1e on %s, so keys and values are moved instead",
            difference,
            torch.cuda.get_device_name(device),
        )
        return False
    return True


def _moved(parts: Tensor, offsets: Sequence[int]) -> Tensor:
    """Keys or values (T, N, H, D) of one clip, where head h of frame t has frame t + offsets[h]."""
    heads = [
        moved_frames(parts[None, :, :, head], offset)[0] if offset else parts[:, :, head]
        for head, offset in enumerate(offsets)
    ]
    return torch.stack(heads, 2)
