"""How do ST-Adapters sit as published? "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", Pan et al., 2022.

One adapter with a depth-wise convolution over time sits on the residual stream at the start of every block ("block"); for
Something-Something a second one before the MLP and its norm ("mlp"). Its bottleneck is half as wide as the tower.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.adapters import STAdapter
from zeroi2v.method.relocate import ClipCount
from zeroi2v.models.towers import prefix_tokens


class BeforeMLP:
    """Hooks that put an adapter on the residual stream between attention and the MLP's norm, where a block has no module."""

    def __init__(self, adapter: STAdapter) -> None:
        self.adapter = adapter
        self.added: Tensor | None = None  # between the two hooks of one call

    def norm_hook(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook: the MLP's branch sees the adapted stream."""
        self.added = self.adapter(inputs[0]) - inputs[0]
        return (inputs[0] + self.added, *inputs[1:])

    def block_hook(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: so does what follows."""
        added, self.added = self.added, None
        return output if added is None else output + added


def build(
    tower: VisionTransformer,
    sites: Sequence[str],
    count: ClipCount,
    *,
    ratio: float,
    scale: float,
    dropout: float,
) -> list[dict[str, nn.Module]]:
    """An adapter of every block at each of the sites."""
    channels, prefix = tower.embed_dim, prefix_tokens(tower)
    shape: dict[str, Any] = {
        "scale": scale,
        "dropout": dropout,
        "bias": True,
        "prefix": prefix,
        "count": count,
    }
    width = max(1, int(ratio * channels))
    return [{site: STAdapter(channels, width, **shape) for site in sites} for _ in tower.blocks]


def attach(
    tower: VisionTransformer, adapters: Sequence[Mapping[str, Any]], count: ClipCount
) -> None:
    """Hook them into their blocks."""
    blocks: Any = tower.blocks
    for block, own in zip(blocks, adapters, strict=True):
        if "block" in own:
            block.register_forward_pre_hook(own["block"].before_hook)
        if "mlp" in own:
            before = BeforeMLP(own["mlp"])
            block.norm2.register_forward_pre_hook(before.norm_hook)
            block.register_forward_hook(before.block_hook)
