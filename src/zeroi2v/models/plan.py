"""What becomes of each block of a tower? A configuration and a tower, resolved once into heads, sites and adapters.

Modules are named by their path in the tower, so that a plan holds for every copy of the tower.

Shapes: F frames of a clip; T frames as attention sees them, F / tubelet; D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from torch import nn

from zeroi2v.config import ClipConfig, ModelConfig
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.method.heads import HeadLayout, heads_of_ratio, parse_heads
from zeroi2v.method.relocate import Move, channel_moves, head_moves
from zeroi2v.method.strategies import PARTS, STRATEGIES, Strategy
from zeroi2v.models import peers
from zeroi2v.models.towers import Block, Survey, survey, token_entry

Kind: TypeAlias = Literal["linear", "gelu", "st", "lora", "rows", "columns"]


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter of a block: where it sits, and its shape."""

    kind: Kind
    site: str  # qkv, q, k, v, proj, up, down
    linear: int = (
        0  # the linear of the site that the adapter sits beside (LoRA, trained rows and columns)
    )
    inputs: int = 0
    width: int = 0  # of the bottleneck
    outputs: int = 0
    bias: bool = False
    channels: tuple[int, ...] = ()  # rows or columns of the linear that train


@dataclass(frozen=True)
class BlockPlan:
    """What becomes of one attention block."""

    block: Block
    heads: HeadLayout
    moves: tuple[Move, ...]  # the K and V that leave their own frame
    adapters: Mapping[
        str, AdapterPlan
    ]  # by name: the site, with a number where a site has several ("up", "up_2")


@dataclass(frozen=True)
class Plan:
    """A configuration and a tower, resolved."""

    config: ModelConfig
    strategy: Strategy
    tower: Survey
    blocks: tuple[BlockPlan, ...]
    num_classes: int
    frames: int  # T
    ratio: Fraction  # share of the channels that move; 0 where heads do
    sites: tuple[str, ...]
    adapter_ratio: float
    adapter_scale: float
    entry: str  # path of the module whose input gets the temporal embedding
    entry_channel_axis: int  # the axis of the input of `entry` that holds channels
    entry_width: int  # D there
    trains_temporal_embedding: bool
    trains_in_tower: (
        frozenset[str] | None
    )  # names of the tower's parameters that train; None: all of them

    @property
    def moves_queries(self) -> bool:
        """Whether Q moves with K and V (Table 1a)."""
        return self.config.operator in ("hr_qkv", "shift_qkv")


def resolve(config: ModelConfig, tower: nn.Module, *, frames: int, num_classes: int) -> Plan:
    """The plan for a configuration and its tower, for clips of F frames and a number of classes.

    ConfigError or HeadsError names the setting that does not fit the tower; TowerError says why the tower cannot be adapted.
    """
    strategy = strategy_of(config)
    sites = _chosen_sites(strategy, config.sites)
    anatomy = survey(tower, config.tower)
    if config.operator == "cls_shift" and not anatomy.has_class_token:
        raise ConfigError(f"operator cls_shift: {config.tower} has no class token")
    seen = frames_seen(frames, config.tubelet)
    ratio = Fraction(config.ratio or 0).limit_denominator(1000)
    if config.ratio is not None and not ratio:
        raise ConfigError(f"ratio must be at least 0.001, got {config.ratio}")
    heads = _heads(config, strategy, anatomy, seen, ratio)
    first = _first_adapted(config, strategy, len(anatomy.blocks))
    width_ratio = config.adapter_ratio or strategy.adapter_ratio
    if strategy.peer is not None:
        peers.check(config, tower, heads)
    entry, channel_axis = token_entry(tower, anatomy.blocks[first], is_first=first == 0)
    blocks = []
    for number, (block, layout) in enumerate(zip(anatomy.blocks, heads, strict=True)):
        own_sites = sites if number >= first and strategy.peer is None else ()
        adapters = _adapters(block, layout, strategy, own_sites, width_ratio)
        blocks.append(BlockPlan(block, layout, _moves(config, block, layout, ratio), adapters))
    trains_embedding = strategy.trains_temporal_embedding and config.temporal_embedding == "trained"
    return Plan(
        config=config,
        strategy=strategy,
        tower=anatomy,
        blocks=tuple(blocks),
        num_classes=num_classes,
        frames=seen,
        ratio=ratio,
        sites=sites,
        adapter_ratio=width_ratio,
        adapter_scale=config.adapter_scale or strategy.adapter_scale,
        entry=entry,
        entry_channel_axis=channel_axis,
        entry_width=anatomy.blocks[first].width,
        trains_temporal_embedding=trains_embedding,
        trains_in_tower=_trained(strategy, anatomy),
    )


def strategy_of(config: ModelConfig) -> Strategy:
    """The strategy that a configuration names. ConfigError if there is none, or a setting has no meaning for it."""
    if config.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(
            f"strategy must be one of {known}, got {config.strategy!r}"
            f"{nearest(config.strategy, STRATEGIES)}"
        )
    strategy = STRATEGIES[config.strategy]
    for name in strategy.unused_settings:
        if getattr(config, name) != getattr(ModelConfig, name):
            raise ConfigError(f"{name} has no meaning for strategy {config.strategy}; leave it out")
    return strategy


def frames_seen(frames: int, tubelet: int) -> int:
    """T of F frames. ConfigError if F is no whole number of tubelets."""
    ClipConfig(frames=frames)  # checks the number of frames
    if frames % tubelet:
        raise ConfigError(f"frames must be a multiple of tubelet ({tubelet}), got {frames}")
    return frames // tubelet


def _chosen_sites(strategy: Strategy, sites: tuple[str, ...] | None) -> tuple[str, ...]:
    """The sites of a strategy, or those that are asked for. ConfigError if the strategy does not allow one of them."""
    for name in sites or ():
        if name not in strategy.allowed:
            known = ", ".join(strategy.allowed) or "none"
            raise ConfigError(
                f"sites: {name!r} is not one of this strategy's ({known})"
                f"{nearest(name, strategy.allowed)}"
            )
    if sites and "qkv" in sites and not {*sites}.isdisjoint(PARTS):
        raise ConfigError(
            "sites: qkv already stands for q, k and v; name it alone, or some of the three"
        )
    return strategy.sites if sites is None else tuple(dict.fromkeys(sites))


def _heads(
    config: ModelConfig, strategy: Strategy, tower: Survey, frames: int, ratio: Fraction
) -> tuple[HeadLayout, ...]:
    """The head layout of every block."""
    counts = tower.head_counts
    moves_heads = config.operator in ("stdha", "hr_qkv")
    is_peer = strategy.peer is not None
    if not moves_heads or (is_peer and config.heads is None):
        heads = parse_heads([], head_counts=counts, frames=frames)
    elif ratio:
        heads = heads_of_ratio(ratio, counts)
    else:
        heads = parse_heads(config.heads, head_counts=counts, frames=frames)
    if strategy.adapter == "heads" and not any(head != 0 for layout in heads for head in layout):
        raise ConfigError(f"strategy {config.strategy}: there are no temporal heads to train")
    return heads


def _first_adapted(config: ModelConfig, strategy: Strategy, blocks: int) -> int:
    """The number of the first block, from 0, that has adapters; the temporal embedding joins there."""
    if config.adapted_blocks is None:
        return 0
    if strategy.adapter is None:
        raise ConfigError(
            f"adapted_blocks: strategy {config.strategy} has no adapters of its own to leave out"
        )
    if config.adapted_blocks > blocks:
        raise ConfigError(
            f"adapted_blocks: {config.tower} has {blocks} attention blocks, got {config.adapted_blocks}"
        )
    return blocks - config.adapted_blocks


def _moves(
    config: ModelConfig, block: Block, layout: HeadLayout, ratio: Fraction
) -> tuple[Move, ...]:
    if config.operator in ("shift_kv", "shift_qkv"):
        return channel_moves(ratio, block.layout.head_count)
    return head_moves(layout)


def _trained(strategy: Strategy, tower: Survey) -> frozenset[str] | None:
    if strategy.trains_tower:
        return None
    return tower.norm_parameters if strategy.trains_norm else frozenset()


def _adapters(
    block: Block, heads: HeadLayout, strategy: Strategy, sites: Sequence[str], ratio: float
) -> dict[str, AdapterPlan]:
    """The adapters of one block by name, for the sites that the block has. Bottlenecks are `ratio` of the block's channels."""
    width = max(1, int(ratio * block.width))
    adapters: dict[str, AdapterPlan] = {}
    for name in sites:
        site = block.sites.get("qkv" if name in PARTS else name)
        if site is None:
            continue
        if strategy.adapter == "lora":
            for number, outputs in enumerate(site.outputs):
                made = _part_channels(block, name) if name in PARTS else outputs
                key = name if number == 0 else f"{name}_{number + 1}"
                adapters[key] = AdapterPlan(
                    "lora", name, number, inputs=site.inputs, width=width, outputs=made
                )
        elif strategy.adapter == "heads":
            temporal = [index for index, head in enumerate(heads) if head != 0]
            if temporal:
                adapters[name] = _trained_channels(block, name, temporal)
        elif strategy.adapter is not None:
            bias = site.bias if strategy.adapter == "linear" else True
            channels = site.channels
            adapters[name] = AdapterPlan(
                strategy.adapter, name, inputs=channels, width=width, outputs=channels, bias=bias
            )
    return adapters


def _part_channels(block: Block, part: str) -> int:
    layout = block.layout
    return layout.head_count * (layout.value_width if part == "v" else layout.key_width)


def _trained_channels(block: Block, site: str, temporal: Sequence[int]) -> AdapterPlan:
    """The rows of the fused projection, or the columns of the output projection, that belong to temporal heads."""
    if site == "qkv":
        rows = [row for part in block.layout.rows() for row in part[temporal].flatten().tolist()]
        return AdapterPlan("rows", site, channels=tuple(rows))
    columns = block.heads.columns[temporal].flatten().tolist()
    return AdapterPlan("columns", site, channels=tuple(columns))
