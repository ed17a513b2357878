"""Where do the published ST-Adapters sit in a block, and what is the feature of a clip?

"ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", Pan et al., 2022. An adapter
with a depth-wise convolution over time sits on the residual stream of every block, before the MLP
and its norm ("mlp"). For Something-Something another adapter sits at the start of every block
("block"). The bottleneck of an adapter is half as wide as the tower.

The class tokens of the last block are averaged over the frames of a clip, and the last norm of the
tower is applied to their mean. The features of all frames are then the same.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.method.adapters import STAdapter
from zeroi2v.method.call import call_in_progress
from zeroi2v.models.hooks import Before
from zeroi2v.models.peers.settings import PeerSettings
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
        adapter = call.adapters[self.block]["mlp"]
        branch = adapter.branch(inputs[0])
        added = branch if adapter.scale == 1 else adapter.scale * branch
        call.kept[self.key] = added
        return (inputs[0] + added, *inputs[1:])

    def of_block(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the block: the next block sees the adapted stream too."""
        call = call_in_progress()
        return output if call is None else output + call.kept.pop(self.key)


class FrameMean:
    """A forward pre-hook of the last norm: each frame gets the mean over the frames of its clip.

    If `tokens` is None, the norm sees the pooled feature of each frame (B*T, D). Else the norm sees
    all tokens (B*T, N, D), and the first `tokens` of them, such as the class token, are averaged.
    """

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None:
            return inputs
        seen = inputs[0]
        pooled = seen if self.tokens is None else seen[:, : self.tokens]
        by_frame = pooled.unflatten(0, (call.clips, call.frames))
        mean = by_frame.mean(1, keepdim=True).expand_as(by_frame).flatten(0, 1)
        if self.tokens is not None:
            mean = torch.cat([mean, seen[:, self.tokens :]], 1)
        return (mean, *inputs[1:])


def build(tower: VisionTransformer, settings: PeerSettings) -> list[dict[str, nn.Module]]:
    """An adapter at each of the sites of every block, by site."""
    channels = tower.embed_dim
    width = max(1, int(settings.ratio * channels))
    shape: dict[str, Any] = {
        "scale": settings.scale,
        "dropout": settings.dropout,
        "bias": True,
        "prefix": prefix_tokens(tower),
        "gelu": settings.activation == "gelu",
    }
    return [
        {site: STAdapter(channels, width, **shape) for site in settings.sites} for _ in tower.blocks
    ]


def attach(
    tower: VisionTransformer,
    adapters: Sequence[Mapping[str, nn.Module]],
    settings: PeerSettings,
) -> None:
    """Hook the adapters into their blocks, and the mean over frames to the last norm.

    The mean needs a norm whose output is the feature: the norm of a token or of pooled tokens. In a
    tower without such a norm the features are averaged, as in every other model.
    """
    blocks: Any = tower.blocks
    for number, (block, own) in enumerate(zip(blocks, adapters, strict=True)):
        if "block" in own:
            block.register_forward_pre_hook(Before(number, "block"))
        if "mlp" in own:
            before = BeforeMLP(number)
            block.norm2.register_forward_pre_hook(before.of_norm)
            block.register_forward_hook(before.of_block)
    if not settings.averages_before_norm or tower.attn_pool is not None:
        return
    if not isinstance(tower.fc_norm, nn.Identity):
        tower.fc_norm.register_forward_pre_hook(FrameMean(None))
    elif tower.global_pool == "token":
        tower.norm.register_forward_pre_hook(FrameMean(prefix_tokens(tower)))
