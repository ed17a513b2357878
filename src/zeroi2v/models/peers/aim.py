"""How does AIM adapt a block?

"AIM: Adapting Image Models for Efficient Video Action Recognition", Yang et al., 2023.

    x = x + A_t(MSA(LN1(x)))         temporal: the frozen attention, along the frames of each patch
    x = x + A_s(MSA(LN1(x)))         spatial: an adapter after the attention
    x = x + MLP(y) + s * A_j(y)      joint: an adapter beside the MLP, y = LN2(x)

A_s has a skip connection. A_t and A_j have no skip connection and start at zero. So the block
starts as the tower's own block. For Something-Something the authors put another adapter,
with a skip connection, before the temporal attention ("temporal_in"), and set s to 1.

A training step leaves out A_t and A_j for some tokens (drop path), each with a probability that
rises from 0 in the first block. The authors' code draws a position of the grid of patches, or the
class token, and leaves out the token at this position in all frames of all clips of the step.

Shapes: B clips, T frames, N tokens per frame, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.errors import ConfigError
from zeroi2v.method.adapters import GELUAdapter
from zeroi2v.method.call import call_in_progress
from zeroi2v.models.hooks import After
from zeroi2v.models.peers.settings import PeerSettings


class AIMAdapter(GELUAdapter):
    """A GELU adapter whose branch a training step leaves out with the probability `drop_path`."""

    def __init__(
        self, channels: int, width: int, *, scale: float, dropout: float, drop_path: float
    ) -> None:
        super().__init__(channels, width, scale=scale, dropout=dropout, bias=True)
        self.drop_path = drop_path

    def dropped(self, branch: Tensor) -> Tensor:
        """The branch (..., N, D), with some tokens set to 0 in a training step.

        The other tokens are enlarged such that the mean over all draws is the branch.
        """
        if not self.training or not self.drop_path:
            return branch
        share = 1 - self.drop_path
        kept = branch.new_empty(branch.shape[-2], 1).bernoulli_(share)
        return branch * kept.div_(share)


class Temporal:
    """A forward pre-hook of a block: x + A_t(MSA(LN1(x))).

    Each token attends to the tokens at the same position in all frames of the clip.
    """

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(self, block: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None:
            return inputs
        adapters = call.adapters[self.block]
        tokens, *others = inputs
        by_frame = tokens.unflatten(0, (call.clips, call.frames))  # (B, T, N, D)
        normed = block.norm1(by_frame.transpose(1, 2).flatten(0, 1))  # (B*N, T, D)
        if "temporal_in" in adapters:
            normed = adapters["temporal_in"](normed)
        attended = block.attn.forward(normed)  # `forward` avoids the hook of the spatial adapter
        out = adapters["temporal"].branch(attended)
        added = out.unflatten(0, (call.clips, -1)).transpose(1, 2)  # (B, T, N, D)
        added = adapters["temporal"].dropped(added)
        return ((by_frame + added).flatten(0, 1), *others)


class Joint:
    """A forward hook of the MLP: MLP(y) + s * A_j(y)."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(self, mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        call = call_in_progress()
        if call is None:
            return output
        adapter = call.adapters[self.block]["joint"]
        return output.add(adapter.dropped(adapter.branch(inputs[0])), alpha=adapter.scale)


def build(tower: VisionTransformer, settings: PeerSettings) -> list[dict[str, nn.Module]]:
    """The adapters of every block, by site.

    ConfigError if the sites hold "temporal_in" without "temporal".
    """
    sites = settings.sites
    if "temporal_in" in sites and "temporal" not in sites:
        raise ConfigError(
            "sites: temporal_in adapts the input of the temporal attention; name temporal too"
        )
    channels, depth = tower.embed_dim, len(tower.blocks)
    width = max(1, int(settings.ratio * channels))

    def adapter(site: str, block: int) -> AIMAdapter:
        return AIMAdapter(
            channels,
            width,
            scale=settings.scale if site == "joint" else 1.0,
            dropout=settings.dropout,
            drop_path=settings.drop_path * block / max(1, depth - 1),
        )

    return [{site: adapter(site, block) for site in sites} for block in range(depth)]


def attach(
    tower: VisionTransformer,
    adapters: Sequence[Mapping[str, nn.Module]],
    settings: PeerSettings,
) -> None:
    """Hook the adapters into their blocks."""
    blocks: Any = tower.blocks
    for number, (block, own) in enumerate(zip(blocks, adapters, strict=True)):
        if "temporal" in own:
            block.register_forward_pre_hook(Temporal(number))
        if "spatial" in own:
            block.attn.register_forward_hook(After(number, "spatial"))
        if "joint" in own:
            block.mlp.register_forward_hook(Joint(number))
