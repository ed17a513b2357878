"""What is adapted, and what trains? The rows of Table 2: a strategy names its sites, and what trains besides the adapters.

The four sites of a block: `qkv` before the fused projection, `proj` after the output projection, `up` before the MLP's
first linear and `down` after its last. The classifier always trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BEFORE: Final = ("qkv", "up")  # sites whose adapter sees the input of the linear; at the others it sees the output


@dataclass(frozen=True)
class Strategy:
    """One row of Table 2."""

    sites: tuple[str, ...] = ()  # where a linear adapter sits
    trains_tower: bool = False
    trains_norm: bool = False  # the norm before the frame feature
    trains_temporal_embedding: bool = True
    learning_rate_share: float = 1.0  # of the recipe's learning rate (appendix A.2)


STRATEGIES: Final = {
    "zeroi2v": Strategy(sites=("qkv", "proj", "up", "down"), trains_norm=True),
    "linear_probe": Strategy(trains_temporal_embedding=False),
    "full": Strategy(trains_tower=True, learning_rate_share=0.1),
}
