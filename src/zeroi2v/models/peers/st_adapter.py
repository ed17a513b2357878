"""Where do the published ST-Adapters sit in a block?

"ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", Pan et al., 2022. An adapter
with a depth-wise convolution over time sits on the residual stream at the start of every block
("block"). For Something-Something a second adapter sits before the MLP and its norm ("mlp"). The
bottleneck of an adapter is half as wide as the tower.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.adapters import STAdapter
from zeroi2v.method.call import call_in_progress
from zeroi2v.models.hooks import Before
from zeroi2v.models.survey import prefix_tokens


class BeforeMLP:
    """Two hooks that put an adapter on the residual stream, before the norm of the MLP.

    A block has no module at this point of the stream, so a hook of the norm and a hook of the block
    share the work.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.key = ("st_adapter", block)  # the call keeps what the adapter adds under this key

    def of_norm(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook of the norm: the norm, and so the MLP, sees the adapted stream."""
        call = call_in_progress()
        if call is None:
            return inputs
        added = call.adapters[self.block]["mlp"](inputs[0]) - inputs[0]
        call.kept[self.key] = added
        return (inputs[0] + added, *inputs[1:])

    def of_block(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the block: the next block sees the adapted stream too."""
        call = call_in_progress()
        return output if call is None else output + call.kept.pop(self.key)


def build(
    tower: VisionTransformer,
    sites: Sequence[str],
    *,
    frames: int,
    ratio: float,
    scale: float,
    dropout: float,
) -> list[dict[str, nn.Module]]:
    """An adapter at each of the sites of every block, by site."""
    channels, prefix = tower.embed_dim, prefix_tokens(tower)
    shape: dict[str, Any] = {"scale": scale, "dropout": dropout, "bias": True, "prefix": prefix}
    width = max(1, int(ratio * channels))
    return [{site: STAdapter(channels, width, **shape) for site in sites} for _ in tower.blocks]


def attach(tower: VisionTransformer, adapters: Sequence[Mapping[str, nn.Module]]) -> None:
    """Hook the adapters into their blocks."""
    blocks: Any = tower.blocks
    for number, (block, own) in enumerate(zip(blocks, adapters, strict=True)):
        if "block" in own:
            block.register_forward_pre_hook(Before(number, "block"))
        if "mlp" in own:
            before = BeforeMLP(number)
            block.norm2.register_forward_pre_hook(before.of_norm)
            block.register_forward_hook(before.of_block)
