"""Which peers are there? Methods that the paper is compared with, as their authors published them.

EVL, AIM, ST-Adapter and joint space-time attention are each written from their paper, for the plain
vision transformers of timm. `build` makes the modules that a peer adds to every block, and `attach`
hooks these modules into the tower. `VideoClassifier` does everything else, from training to saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from torch import nn

from zeroi2v.config import ModelConfig
from zeroi2v.errors import ConfigError, TowerError
from zeroi2v.method.heads import HeadLayout
from zeroi2v.method.strategies import STRATEGIES, Strategy
from zeroi2v.models.peers import aim, evl, joint, st_adapter
from zeroi2v.models.peers.settings import PeerSettings
from zeroi2v.models.survey import Survey

# A function that makes the modules which a peer adds to a tower: by name, for every block.
Build: TypeAlias = Callable[[Any, PeerSettings], list[dict[str, nn.Module]]]
# A function that hooks the modules of `Build` into a tower.
Attach: TypeAlias = Callable[[Any, Sequence[Mapping[str, nn.Module]], PeerSettings], None]


@dataclass(frozen=True)
class Peer:
    """A method that the paper is compared with."""

    build: Build
    attach: Attach
    not_mergeable: str  # why the linears of the tower cannot absorb the added modules


PEERS: Final = {
    "evl": Peer(evl.build, evl.attach, "its decoder is no part of the tower"),
    "aim": Peer(
        aim.build,
        aim.attach,
        "its adapters are not linear and its attention over time is computed beside the tower's",
    ),
    "st_adapter": Peer(st_adapter.build, st_adapter.attach, "its adapters mix frames"),
    "joint": Peer(joint.build, joint.attach, "every block attends over all frames at once"),
}


def peer_of(strategy: Strategy) -> Peer | None:
    """The peer that a strategy stands for; None if the strategy is a row of Table 2."""
    return None if strategy.peer is None else PEERS[strategy.peer]


def settings_to_reset(config: ModelConfig, name: str) -> dict[str, Any]:
    """The default values of those settings in `config` that have no meaning for strategy `name`.

    Sites have no meaning for a peer that does not know them. Settings that have their default value
    already are left out. The result is empty if there is no strategy of this name.
    """
    if name not in STRATEGIES:
        return {}
    strategy = STRATEGIES[name]
    settings = list(strategy.meaningless_settings)
    if strategy.peer is not None:
        settings += ["heads", "adapted_blocks"]
        if not {*(config.sites or ())} <= {*strategy.allowed}:
            settings.append("sites")
    defaults = {setting: getattr(ModelConfig(), setting) for setting in settings}
    return {
        setting: default
        for setting, default in defaults.items()
        if getattr(config, setting) != default
    }


def check(config: ModelConfig, tower: Survey, heads: Sequence[HeadLayout]) -> None:
    """Check that a peer can be attached to a tower.

    ConfigError if some head is temporal. TowerError if the tower is no plain vision transformer.
    """
    if any(head != 0 for layout in heads for head in layout):
        raise ConfigError(
            f"heads: strategy {config.strategy} has only spatial heads; leave heads out"
        )
    if not tower.is_plain:
        raise TowerError(
            f"{config.tower}: strategy {config.strategy} is for plain vision transformers, "
            f"not for {tower.block_type}; choose another strategy or tower"
        )


def resize(tower: nn.Module, adapters: nn.ModuleList, frames: int) -> None:
    """Make the modules of a peer take clips of `frames` frames, in the tower's present image size.

    Only EVL's decoder depends on the number of frames or on the image size.
    """
    for module in adapters.modules():
        if isinstance(module, evl.Decoder):
            patches: Any = tower.patch_embed
            module.resize(frames=frames, grid=patches.grid_size)
