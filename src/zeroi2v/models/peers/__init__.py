"""Which methods are we compared with, as their authors published them? EVL, AIM, ST-Adapter, and joint space-time attention.

Each is written from its paper, for plain vision transformers of timm, whose modules it uses from outside: `build` gives what it adds to
every block, `attach` hooks that into the tower. Everything else, from training to saving, is `VideoClassifier`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from zeroi2v.config import ModelConfig
from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.method.heads import HeadLayout
from zeroi2v.method.strategies import STRATEGIES, Strategy
from zeroi2v.models.peers import aim, evl, joint, st_adapter


@dataclass(frozen=True)
class Peer:
    """One of the methods."""

    build: Callable[
        ..., list[dict[str, nn.Module]]
    ]  # tower, sites; frames, ratio, scale, dropout by name -> modules by block
    attach: Callable[..., None]  # hooks the modules, which `build` gave, to the tower
    remains: str  # why merging cannot take the modules out


PEERS: Final = {
    "evl": Peer(evl.build, evl.attach, "its decoder is no part of the tower"),
    "aim": Peer(
        aim.build,
        aim.attach,
        "its adapters are not linear and its attention over time is computed beside the tower's",
    ),
    "st_adapter": Peer(
        st_adapter.build, st_adapter.attach, "its adapters are not linear and mix frames"
    ),
    "joint": Peer(joint.build, joint.attach, "every block attends over all frames at once"),
}


def peer_of(strategy: Strategy) -> Peer | None:
    """The method that a strategy stands for, or None if it is a row of Table 2."""
    return None if strategy.peer is None else PEERS[strategy.peer]


def settings_to_reset(config: ModelConfig, name: str) -> dict[str, Any]:
    """The settings of `config` that have no meaning for a peer, with their default values. Empty for a row of Table 2."""
    strategy = STRATEGIES.get(name)
    if strategy is None or strategy.peer is None:
        return {}
    default = {
        setting: getattr(ModelConfig(), setting) for setting in (*strategy.unused_settings, "heads")
    }
    return {
        setting: value for setting, value in default.items() if getattr(config, setting) != value
    }


def check(config: ModelConfig, tower: nn.Module, heads: Sequence[HeadLayout]) -> None:
    """ConfigError names a setting that has no meaning for a peer; TowerError a tower that is no plain vision transformer."""
    if any(head != 0 for layout in heads for head in layout):
        raise ConfigError(
            f"heads: strategy {config.strategy} has spatial heads alone; leave heads out"
        )
    blocks = getattr(tower, "blocks", ())
    plain = isinstance(tower, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention for block in blocks
    )
    if not plain:
        kind = type(next(iter(blocks), tower)).__name__
        raise TowerError(
            f"{config.tower}: strategy {config.strategy} is for plain vision transformers, not for {kind}"
        )


def resize(tower: nn.Module, adapters: nn.ModuleList, frames: int) -> None:
    """Let what a peer added take clips of so many frames, of the tower's present size. Only EVL's decoder depends on either."""
    for module in adapters.modules():
        if isinstance(module, evl.Decoder):
            patches: Any = tower.patch_embed
            module.resize(frames=frames, grid=patches.grid_size)
