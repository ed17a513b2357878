"""What if every token attends to all tokens of the clip? Joint space-time attention, the costliest reference.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.relocate import ClipCount


class WholeClip:
    """Hooks of an attention module that let it see the frames of a clip as one sequence of tokens."""

    def __init__(self, count: ClipCount) -> None:
        self.count = count

    def join(self, attention: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook: (B*T, N, D) -> (B, T*N, D)."""
        tokens, *others = inputs
        return (tokens.reshape(self.count.clips, -1, tokens.shape[-1]), *others)

    def part(self, attention: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: (B, T*N, D) -> (B*T, N, D)."""
        return output.reshape(self.count.clips * self.count.frames, -1, output.shape[-1])


def build(
    tower: VisionTransformer, sites: Sequence[str], count: ClipCount, **_: float
) -> list[dict[str, nn.Module]]:
    """Nothing is added: the tower's own attention is used."""
    return [{} for _ in tower.blocks]


def attach(
    tower: VisionTransformer, adapters: Sequence[Mapping[str, Any]], count: ClipCount
) -> None:
    """Hook every block's attention."""
    whole = WholeClip(count)
    blocks: Any = tower.blocks
    for block in blocks:
        block.attn.register_forward_pre_hook(whole.join)
        block.attn.register_forward_hook(whole.part)
