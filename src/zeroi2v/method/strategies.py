"""What is adapted, and what trains? The rows of Table 2, and the methods that the paper is compared with.

A strategy names its adapter and sites, and what trains besides.

The sites of a block: `qkv` before the fused projection (`q`, `k`, `v`: each of the three on its own), `proj` after the output
projection, `up` before the MLP's first linear and `down` after its last. LoRA sits beside a linear instead. The classifier
always trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PARTS: Final = ("q", "k", "v")  # sites that share the fused projection
FOUR: Final = ("qkv", "proj", "up", "down")
SIX: Final = (*PARTS, "proj", "up", "down")
# Sites whose adapter sees the input of the linear; at the others it sees the output.
BEFORE: Final = ("qkv", *PARTS, "up")


@dataclass(frozen=True)
class Strategy:
    """One row of Table 2, or a peer: a method as others published it, which attaches itself (models/peers/)."""

    adapter: Literal["linear", "gelu", "st", "lora", "heads"] | None = None
    sites: tuple[str, ...] = ()  # where it sits unless `ModelConfig.sites` says otherwise
    allowed: tuple[str, ...] = ()  # the sites that `ModelConfig.sites` may name
    trains_tower: bool = False
    trains_norm: bool = False  # the norm before the frame feature
    trains_temporal_embedding: bool = True
    learning_rate_share: float = 1.0  # of the recipe's learning rate (appendix A.2)
    adapter_ratio: float = 0.25  # where `ModelConfig.adapter_ratio` is None
    adapter_scale: float = 1.0  # where `ModelConfig.adapter_scale` is None
    peer: Literal["evl", "aim", "st_adapter", "joint"] | None = None
    unused_settings: tuple[str, ...] = ()  # settings of ModelConfig that must keep their defaults


ZERO_COST: Final = ("operator", "ratio")  # the temporal operators, which peers have none of
ADAPTERS: Final = ("adapter_ratio", "adapter_scale")
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
        unused_settings=(*ZERO_COST, *ADAPTERS, "temporal_embedding"),
    ),
    "aim": Strategy(
        sites=("temporal", "spatial", "joint"),
        allowed=("temporal_in", "temporal", "spatial", "joint"),
        trains_norm=True,
        adapter_scale=0.5,
        peer="aim",
        unused_settings=ZERO_COST,
    ),
    "st_adapter_published": Strategy(
        sites=("block",),
        allowed=("block", "mlp"),
        trains_temporal_embedding=False,
        adapter_ratio=0.5,
        peer="st_adapter",
        unused_settings=(*ZERO_COST, "temporal_embedding"),
    ),
    "joint": Strategy(
        trains_tower=True,
        learning_rate_share=0.1,
        peer="joint",
        unused_settings=(*ZERO_COST, *ADAPTERS, "adapter_dropout"),
    ),
}
