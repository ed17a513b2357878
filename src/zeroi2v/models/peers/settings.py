"""What does a peer know of its model when the peer builds and attaches its modules?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """The settings of a peer, with the values of its strategy where the user gave none."""

    sites: tuple[str, ...]
    frames: int  # T
    ratio: float  # channels of a bottleneck / channels of a token
    scale: float  # factor of an adapter's branch
    dropout: float  # in an adapter; in the MLPs of EVL's decoder
    drop_path: float  # of AIM's adapters in the last block
    layers: int  # of EVL's decoder
    activation: Literal["gelu", "quick_gelu"] | None
    averages_before_norm: bool  # frames are averaged before the last norm of the tower
