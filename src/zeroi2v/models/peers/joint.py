"""How does every token attend to all tokens of the clip? Joint space-time attention.

Joint space-time attention is the costliest of the methods that the paper is compared with.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.call import call_in_progress
from zeroi2v.models.peers.settings import PeerSettings


def join(attention: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook of attention: (B*T, N, D) -> (B, T*N, D).

    The attention then sees the frames of a clip as a single sequence of tokens.
    """
    call = call_in_progress()
    if call is None:
        return inputs
    tokens, *others = inputs
    return (tokens.reshape(call.clips, -1, tokens.shape[-1]), *others)


def split_frames(attention: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook of attention, the inverse of `join`: (B, T*N, D) -> (B*T, N, D)."""
    call = call_in_progress()
    if call is None:
        return output
    return output.reshape(call.clips * call.frames, -1, output.shape[-1])


def build(tower: VisionTransformer, settings: PeerSettings) -> list[dict[str, nn.Module]]:
    """No modules, for every block: joint attention uses the block's own attention."""
    return [{} for _ in tower.blocks]


def attach(
    tower: VisionTransformer,
    adapters: Sequence[Mapping[str, nn.Module]],
    settings: PeerSettings,
) -> None:
    """Hook `join` and `split_frames` to the attention of every block."""
    blocks: Any = tower.blocks
    for block in blocks:
        block.attn.register_forward_pre_hook(join)
        block.attn.register_forward_hook(split_frames)
