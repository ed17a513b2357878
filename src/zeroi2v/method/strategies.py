"""Which strategies are there? The rows of Table 2, and the peers that the paper is compared with.

A strategy says which kind of adapter a tower gets, at which sites the adapters sit, and which other
weights train. The classifier trains under every strategy.

The sites of a block and the position of an adapter:

    qkv      before the fused projection, for q, k and v together
    q, k, v  before the fused projection, for only q, only k or only v
    proj     after the output projection
    up       before the first linear layer of the MLP
    down     after the last linear layer of the MLP

A LoRA sits beside the linear layer of its site instead, neither before nor after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PARTS: Final = ("q", "k", "v")  # sites that share the fused projection
# The four sites of a block; and the same sites with q, k and v apart.
FOUR: Final = ("qkv", "proj", "up", "down")
SIX: Final = (*PARTS, "proj", "up", "down")
# At these sites an adapter changes the input of the linear layer, at all other sites the output.
BEFORE: Final = ("qkv", *PARTS, "up")


@dataclass(frozen=True)
class Strategy:
    """One row of Table 2, or a peer.

    A peer is a method as its own authors published it. A module of `models/peers/` attaches a peer
    to a tower.
    """

    # "heads": trained copies of the weights of temporal heads. None: no adapter.
    adapter: Literal["linear", "gelu", "st", "lora", "heads"] | None = None
    sites: tuple[str, ...] = ()  # sites of the adapters where `ModelConfig.sites` is None
    allowed: tuple[str, ...] = ()  # sites that `ModelConfig.sites` may name
    trains_tower: bool = False
    trains_norm: bool = False  # the last norm of the tower, before the feature of a frame
    trains_temporal_embedding: bool = True
    learning_rate_share: float = 1.0  # factor of `TrainConfig.learning_rate` (appendix A.2)
    adapter_ratio: float = 0.25  # where `ModelConfig.adapter_ratio` is None
    adapter_scale: float = 1.0  # where `ModelConfig.adapter_scale` is None
    peer: Literal["evl", "aim", "st_adapter", "joint"] | None = None  # None: a row of Table 2
    unused_settings: tuple[str, ...] = ()  # settings of ModelConfig that must keep their defaults


# Settings of temporal heads. Peers do not use these settings: all heads of a peer are spatial.
HEAD_SETTINGS: Final = ("operator", "ratio")
ADAPTER_SETTINGS: Final = ("adapter_ratio", "adapter_scale")  # settings of adapters
STRATEGIES: Final = {
    "zeroi2v": Strategy("linear", FOUR, ("qkv", *SIX), trains_norm=True),
    "gelu_adapter": Strategy("gelu", FOUR, ("qkv", *SIX), trains_norm=True),
    "st_adapter": Strategy("st", FOUR, FOUR, trains_norm=True),
    "lora": Strategy("lora", ("q", "k", "v", "proj"), SIX, trains_norm=True),
    "temporal_heads": Strategy("heads", ("qkv", "proj"), ("qkv", "proj"), trains_norm=True),
    "linear_probe": Strategy(trains_temporal_embedding=False),
    "full": Strategy(trains_tower=True, learning_rate_share=0.1),
    "evl": Strategy(
        peer="evl",
        trains_temporal_embedding=False,
        unused_settings=(*HEAD_SETTINGS, *ADAPTER_SETTINGS, "temporal_embedding"),
    ),
    "aim": Strategy(
        sites=("temporal", "spatial", "joint"),
        allowed=("temporal_in", "temporal", "spatial", "joint"),
        trains_norm=True,
        adapter_scale=0.5,
        peer="aim",
        unused_settings=HEAD_SETTINGS,
    ),
    "st_adapter_published": Strategy(
        sites=("block",),
        allowed=("block", "mlp"),
        trains_temporal_embedding=False,
        adapter_ratio=0.5,
        peer="st_adapter",
        unused_settings=(*HEAD_SETTINGS, "temporal_embedding"),
    ),
    "joint": Strategy(
        trains_tower=True,
        learning_rate_share=0.1,
        peer="joint",
        unused_settings=(*HEAD_SETTINGS, *ADAPTER_SETTINGS, "adapter_dropout"),
    ),
}
