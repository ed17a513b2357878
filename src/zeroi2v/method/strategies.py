"""What is adapted, and what trains? The rows of Table 2: a strategy names its adapter and sites, and what trains besides.

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
    """One row of Table 2. The bottleneck is `ModelConfig.adapter_ratio` of the tower's width everywhere."""

    adapter: Literal["linear", "gelu", "st", "lora", "heads"] | None = None
    sites: tuple[str, ...] = ()  # where it sits unless `ModelConfig.sites` says otherwise
    allowed: tuple[str, ...] = ()  # the sites that `ModelConfig.sites` may name
    trains_tower: bool = False
    trains_norm: bool = False  # the norm before the frame feature
    trains_temporal_embedding: bool = True
    learning_rate_share: float = 1.0  # of the recipe's learning rate (appendix A.2)


STRATEGIES: Final = {
    "zeroi2v": Strategy("linear", FOUR, ("qkv", *SIX), trains_norm=True),
    "gelu_adapter": Strategy("gelu", FOUR, ("qkv", *SIX), trains_norm=True),
    "st_adapter": Strategy("st", FOUR, FOUR, trains_norm=True),
    "lora": Strategy("lora", ("q", "k", "v", "proj"), SIX, trains_norm=True),
    "temporal_heads": Strategy("heads", ("qkv", "proj"), ("qkv", "proj"), trains_norm=True),
    "linear_probe": Strategy(trains_temporal_embedding=False),
    "full": Strategy(trains_tower=True, learning_rate_share=0.1),
}
