"""Which heads of a tower are temporal, which adapters does a block get, and what trains?

A `Plan` is what a configuration means for one tower. A plan is made from the survey of the tower.
The plan names modules by their path in the tower, so the plan holds for every copy of the tower.

Shapes: F frames of a clip; T frames as attention sees them, F / tubelet; D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final, Literal, TypeAlias

from zeroi2v.config import HEAD_OPERATORS, ClipConfig, ModelConfig
from zeroi2v.errors import ConfigError, HeadsError, how_many, nearest
from zeroi2v.method.heads import HeadLayout, Heads, heads_of_ratio, parse_heads
from zeroi2v.method.relocate import Move, MovedParts, channel_moves, head_moves
from zeroi2v.method.strategies import PARTS, STRATEGIES, Strategy, strategy_with
from zeroi2v.models import peers
from zeroi2v.models.peers.settings import PeerSettings
from zeroi2v.models.survey import Block, Survey

# The parts that move, by operator. The class-token shift moves tokens before the projection.
MOVED_PARTS: Final[Mapping[str, MovedParts]] = {
    "stdha": "kv",
    "hr_v": "v",
    "hr_qkv": "qkv",
    "shift_kv": "kv",
    "shift_v": "v",
    "shift_qkv": "qkv",
}

Kind: TypeAlias = Literal["linear", "gelu", "st", "lora", "rows", "columns"]


@dataclass(frozen=True)
class AdapterPlan:
    """The site and the shape of one adapter."""

    kind: Kind
    site: str  # qkv, q, k, v, proj, up, down
    # Index of the linear at the site; only LoRA, trained rows and trained columns use it.
    linear: int = 0
    inputs: int = 0  # channels that the adapter reads
    width: int = 0  # channels of the bottleneck
    outputs: int = 0  # channels that the adapter makes
    bias: bool = False
    channels: tuple[int, ...] = ()  # the rows or columns of the linear that train


@dataclass(frozen=True)
class BlockPlan:
    """The heads and the adapters of one attention block."""

    block: Block
    heads: HeadLayout
    shifted: Fraction  # the share of every head's channels that a channel shift moves; 0: no shift
    adapters: Mapping[
        str, AdapterPlan
    ]  # by name: site, or up and up_2 where the site has two linears

    @property
    def moves(self) -> tuple[Move, ...]:
        """The heads, and channels of heads, that read other frames."""
        if self.shifted:
            return channel_moves(self.shifted, self.block.layout.head_count)
        return head_moves(self.heads)


@dataclass(frozen=True)
class Plan:
    """What a configuration means for one tower.

    The four fields decide everything else, so `dataclasses.replace` gives the plan of another
    configuration or of another number of frames. ConfigError or HeadsError names the setting that
    does not fit the tower. TowerError says why the tower cannot be adapted.
    """

    config: ModelConfig
    tower: Survey
    clip_frames: int  # F
    num_classes: int

    def __post_init__(self) -> None:
        self._check_adapted_blocks()
        self._check_decoder_layers()
        frames_seen(self.clip_frames, self.config.tubelet)  # refuses a wrong number of frames
        self._check_operator()
        has_temporal_heads = any(head != 0 for layout in self.heads for head in layout)
        if self.strategy.adapter == "heads" and not has_temporal_heads:
            raise ConfigError(
                f"strategy {self.config.strategy}: there are no temporal heads to train; "
                "choose heads with an offset other than 0, or another strategy"
            )
        if self.strategy.peer is not None:
            peers.check(self.config, self.tower, self.heads)
        self._check_moves()

    def _check_moves(self) -> None:
        """HeadsError if a share of channels that should read another frame holds no channel."""
        operator = self.config.operator
        for number, plan in enumerate(self.blocks):
            if operator == "cls_shift":
                owner, width, shares = "a token", plan.block.width, [self.moved_share / 2]
            else:
                owner, layout = "a head", plan.block.layout
                width = layout.narrowest
                shares = [move.stop - move.start for move in plan.moves]
            if shares and min(shares) * width < 1:
                least = f"ratio at least {math.ceil(2000 / width) / 1000}"
                remedy = "larger shares" if operator in HEAD_OPERATORS else least
                raise HeadsError(
                    f"block {number} (counted from 0): some shares of {owner} round to 0 of "
                    f"{width} channels, and would read no other frame; give {remedy}"
                )

    def _check_adapted_blocks(self) -> None:
        """ConfigError if `adapted_blocks` does not fit the strategy or the tower."""
        number, block_count = self.config.adapted_blocks, len(self.tower.blocks)
        if number is None:
            return
        if self.strategy.adapter is None:
            raise ConfigError(
                f"adapted_blocks has no meaning for strategy {self.config.strategy}; leave it out"
            )
        if number > block_count:
            raise ConfigError(
                f"adapted_blocks: {self.config.tower} has only "
                f"{how_many(block_count, 'attention block')}, got {number}; give a smaller number"
            )

    def _check_decoder_layers(self) -> None:
        """ConfigError if the tower has fewer blocks than the decoder would read."""
        number, block_count = self.config.decoder_layers, len(self.tower.blocks)
        if number is not None and number > block_count:
            raise ConfigError(
                f"decoder_layers: each layer reads a block, and {self.config.tower} has only "
                f"{how_many(block_count, 'attention block')}, got {number}; give a smaller number"
            )

    def _check_operator(self) -> None:
        """ConfigError if the operator does not fit the tower, or if `ratio` is too small."""
        if self.config.operator == "cls_shift" and not self.tower.has_class_token:
            raise ConfigError(
                f"operator cls_shift: {self.config.tower} has no class token; "
                "choose another operator or tower"
            )
        if self.config.ratio is not None and not self.moved_share:
            raise ConfigError(f"ratio must be at least 0.001, got {self.config.ratio}")

    @cached_property
    def strategy(self) -> Strategy:
        """The strategy that the configuration names."""
        return strategy_of(self.config)

    @property
    def frames(self) -> int:
        """T: the frames of a clip as attention sees them."""
        return self.clip_frames // self.config.tubelet

    @cached_property
    def heads(self) -> tuple[HeadLayout, ...]:
        """The head layout of every block."""
        config, counts = self.config, self.tower.head_counts
        moves_heads = config.operator in HEAD_OPERATORS
        if moves_heads and self.moved_share:
            return tuple(
                heads_of_ratio(self.moved_share, layout.head_count, layout.narrowest)
                for layout in (block.layout for block in self.tower.blocks)
            )
        is_spatial = not moves_heads or (self.strategy.peer is not None and config.heads is None)
        offsets: Heads = [] if is_spatial else config.heads
        return parse_heads(offsets, head_counts=counts, frames=self.frames)

    @cached_property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """The plans of all blocks. A peer builds its own adapters, so its blocks have none here."""
        shifts = self.config.operator.startswith("shift_")
        shifted = self.moved_share if shifts else Fraction(0)
        blocks = []
        for number, (block, layout) in enumerate(zip(self.tower.blocks, self.heads, strict=True)):
            adapted = number >= self.first_adapted and self.strategy.peer is None
            adapters = _adapters(block, layout, self) if adapted else {}
            blocks.append(BlockPlan(block, layout, shifted, adapters))
        return tuple(blocks)

    @property
    def first_adapted(self) -> int:
        """The number, from 0, of the first block that has adapters."""
        number, block_count = self.config.adapted_blocks, len(self.tower.blocks)
        return 0 if number is None else block_count - number

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that get adapters, by the configuration, or else by the strategy."""
        if self.config.sites is None:
            return self.strategy.sites
        return tuple(dict.fromkeys(self.config.sites))

    @property
    def adapter_ratio(self) -> float:
        """Channels of a bottleneck, divided by channels of a token."""
        return self.config.adapter_ratio or self.strategy.adapter_ratio

    @property
    def adapter_scale(self) -> float:
        """The factor of an adapter's branch."""
        return self.config.adapter_scale or self.strategy.adapter_scale

    @property
    def adapter_dropout(self) -> float:
        """Dropout between the two linear layers of an adapter; in the MLPs of EVL's decoder."""
        own = self.config.adapter_dropout
        return self.strategy.adapter_dropout if own is None else own

    @property
    def classifier_dropout(self) -> float:
        """Dropout before the classifier."""
        own = self.config.classifier_dropout
        return self.strategy.classifier_dropout if own is None else own

    @property
    def peer_settings(self) -> PeerSettings:
        """The settings with which a peer builds and attaches its modules."""
        strategy, config = self.strategy, self.config
        layers = min(strategy.decoder_layers or 0, len(self.tower.blocks))
        drop_path = strategy.drop_path if config.drop_path is None else config.drop_path
        return PeerSettings(
            sites=self.sites,
            frames=self.frames,
            ratio=self.adapter_ratio,
            scale=self.adapter_scale,
            dropout=self.adapter_dropout,
            drop_path=drop_path or 0.0,
            layers=config.decoder_layers or layers,
            activation=strategy.activation,
            averages_before_norm=strategy.averages_before_norm,
        )

    @property
    def moved_share(self) -> Fraction:
        """The share of all channels that read another frame; 0 where the head layout decides."""
        return Fraction(self.config.ratio or 0).limit_denominator(1000)

    @property
    def moved_parts(self) -> MovedParts:
        """Which of queries, keys and values move (Table 1a)."""
        return MOVED_PARTS[self.config.operator]

    @property
    def entry_block(self) -> Block:
        """The first adapted block. The temporal embedding joins the tokens that this block sees."""
        return self.blocks[self.first_adapted].block

    @property
    def trains_temporal_embedding(self) -> bool:
        """Whether the temporal embedding trains; otherwise the embedding stays zero."""
        trained = self.config.temporal_embedding == "trained"
        return trained and self.strategy.trains_temporal_embedding

    @property
    def trains_in_tower(self) -> frozenset[str] | None:
        """The names of the tower's parameters that train. None: all parameters of the tower."""
        if self.strategy.trains_tower:
            return None
        return self.tower.norm_parameters if self.strategy.trains_norm else frozenset()


def strategy_of(config: ModelConfig) -> Strategy:
    """The strategy that a configuration names.

    ConfigError if the strategy is unknown, or if a setting does not fit the strategy.
    """
    if config.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(
            f"strategy must be one of {known}, got {config.strategy!r}"
            f"{nearest(config.strategy, STRATEGIES)}"
        )
    strategy = strategy_with(config.strategy, config.strategy_rules)
    for name in strategy.meaningless_settings:
        default = getattr(ModelConfig, name)
        # A dropout of 0 drops nothing, with a strategy that knows no dropout too.
        if getattr(config, name) not in (default, 0.0 if default is None else default):
            raise ConfigError(f"{name} has no meaning for strategy {config.strategy}; leave it out")
    _check_sites(config, strategy)
    return strategy


def frames_seen(frames: int, tubelet: int) -> int:
    """T of a clip of F frames. ConfigError if F is not a multiple of the tubelet."""
    ClipConfig(frames=frames)  # refuses a wrong number of frames
    if frames % tubelet:
        raise ConfigError(f"frames must be a multiple of tubelet ({tubelet}), got {frames}")
    return frames // tubelet


def _check_sites(config: ModelConfig, strategy: Strategy) -> None:
    """ConfigError names a site that the strategy does not allow, or that another site contains."""
    sites = config.sites
    for name in sites or ():
        if name not in strategy.allowed:
            known = (
                f"only {', '.join(strategy.allowed)}" if strategy.allowed else "nor any other site"
            )
            raise ConfigError(
                f"sites: strategy {config.strategy} has no site {name!r}, {known}"
                f"{nearest(name, strategy.allowed)}"
            )
    if sites and "qkv" in sites and not {*sites}.isdisjoint(PARTS):
        raise ConfigError(
            "sites: qkv already stands for q, k and v; name only qkv, or some of q, k and v"
        )


def _adapters(block: Block, heads: HeadLayout, plan: Plan) -> dict[str, AdapterPlan]:
    """The adapters of one block, by name, at each site of the plan that the block has."""
    strategy, width = plan.strategy, max(1, int(plan.adapter_ratio * block.width))
    adapters: dict[str, AdapterPlan] = {}
    for name in plan.sites:
        site = block.sites.get("qkv" if name in PARTS else name)
        if site is None:
            continue
        if strategy.adapter == "lora":
            for number, outputs in enumerate(site.outputs):
                if name in PARTS:
                    outputs = _part_channels(block, name)
                key = name if number == 0 else f"{name}_{number + 1}"
                adapters[key] = AdapterPlan(
                    "lora", name, number, inputs=site.inputs, width=width, outputs=outputs
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
    """The number of output channels of the fused projection that hold q, k or v."""
    layout = block.layout
    return layout.head_count * (layout.value_width if part == "v" else layout.key_width)


def _trained_channels(block: Block, site: str, temporal: Sequence[int]) -> AdapterPlan:
    """The rows or columns of one site that train: they belong to the temporal heads of the block.

    Rows of the fused projection train, and columns of the output projection. `temporal` holds the
    numbers of the temporal heads.
    """
    if site == "qkv":
        rows = [row for part in block.layout.rows() for row in part[temporal].flatten().tolist()]
        return AdapterPlan("rows", site, channels=tuple(rows))
    columns = block.head_channels.columns[temporal].flatten().tolist()
    return AdapterPlan("columns", site, channels=tuple(columns))
