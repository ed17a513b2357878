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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

PARTS: Final = ("q", "k", "v")  # sites that share the fused projection
# The four sites of a block; and the same sites with q, k and v apart.
FOUR: Final = ("qkv", "proj", "up", "down")
SIX: Final = (*PARTS, "proj", "up", "down")
# At these sites an adapter changes the input of the linear layer, at all other sites the output.
BEFORE: Final = ("qkv", *PARTS, "up")


@dataclass(frozen=True)
class PublishedTraining:
    """How the authors of a peer train, apart from data and number of epochs."""

    learning_rate: float  # for batches of `clips` clips; proportional to the size of the batch
    clips: int
    weight_decay: float
    warmup_epochs: float
    warmup_start: float | None = None  # None where there is no warm-up


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
    # Whether nothing but the temporal embedding tells the order of frames.
    needs_temporal_embedding: bool = False
    # Part of the model -> factor of `TrainConfig.learning_rate` for this part, where not 1.
    learning_rate_shares: Mapping[str, float] = field(default_factory=dict)
    # Weight decay applies to linear layers, convolutions and all modules of adapters. These fields
    # say whether the biases of these modules decay, and the temporal embedding.
    decays_biases: bool = True
    decays_temporal_embedding: bool = False
    # Standard deviation of the first weights of the classifier, whose biases are then 0. None: the
    # classifier starts as PyTorch starts a linear layer.
    classifier_std: float | None = 0.01
    # Values of settings where `ModelConfig` has None:
    adapter_ratio: float = 0.25
    adapter_scale: float = 1.0
    adapter_dropout: float = 0.0
    classifier_dropout: float = 0.0
    drop_path: float | None = None  # None: the strategy has no drop path
    decoder_layers: int | None = None  # None: the strategy has no decoder
    # After the convolution of an ST-Adapter; in the MLPs of EVL's decoder.
    activation: Literal["gelu", "quick_gelu"] | None = None
    averages_before_norm: bool = False  # frames are averaged before the last norm, not after it
    peer: Literal["evl", "aim", "st_adapter", "joint"] | None = None  # None: a row of Table 2
    training: PublishedTraining | None = None  # None: the authors of the strategy state no training
    unused_settings: tuple[str, ...] = ()  # settings of ModelConfig that must keep their defaults

    @property
    def meaningless_settings(self) -> tuple[str, ...]:
        """The settings of ModelConfig that must keep their defaults under this strategy."""
        return (
            *self.unused_settings,
            *(("drop_path",) if self.drop_path is None else ()),
            *(("decoder_layers",) if self.decoder_layers is None else ()),
        )


# Settings of temporal heads. Peers do not use these settings: all heads of a peer are spatial.
HEAD_SETTINGS: Final = ("operator", "ratio")
ADAPTER_SETTINGS: Final = ("adapter_ratio", "adapter_scale")  # settings of adapters
# Where the whole tower trains, the learning rate of all but the classifier is lower (appendix A.2,
# and the authors' code, which lowers the learning rate of the backbone).
SLOW_TOWER: Final = {"tower": 0.1, "temporal_embedding": 0.1}
STRATEGIES: Final = {
    "zeroi2v": Strategy("linear", FOUR, ("qkv", *SIX), trains_norm=True),
    "gelu_adapter": Strategy("gelu", FOUR, ("qkv", *SIX), trains_norm=True),
    "st_adapter": Strategy("st", FOUR, FOUR, trains_norm=True),
    "lora": Strategy("lora", ("q", "k", "v", "proj"), SIX, trains_norm=True),
    "temporal_heads": Strategy("heads", ("qkv", "proj"), ("qkv", "proj"), trains_norm=True),
    "linear_probe": Strategy(trains_temporal_embedding=False),
    "full": Strategy(trains_tower=True, learning_rate_shares=SLOW_TOWER),
    "evl": Strategy(
        trains_temporal_embedding=False,
        classifier_std=None,
        adapter_dropout=0.5,
        classifier_dropout=0.5,
        decoder_layers=4,
        activation="quick_gelu",
        peer="evl",
        training=PublishedTraining(4e-4, 256, weight_decay=0.05, warmup_epochs=0.0),
        unused_settings=(*HEAD_SETTINGS, *ADAPTER_SETTINGS, "temporal_embedding"),
    ),
    "aim": Strategy(
        sites=("temporal", "spatial", "joint"),
        allowed=("temporal_in", "temporal", "spatial", "joint"),
        trains_norm=True,
        needs_temporal_embedding=True,
        decays_temporal_embedding=True,
        adapter_scale=0.5,
        classifier_dropout=0.5,
        drop_path=0.2,
        peer="aim",
        training=PublishedTraining(
            3e-4, 64, weight_decay=0.05, warmup_epochs=2.5, warmup_start=0.1
        ),
        unused_settings=HEAD_SETTINGS,
    ),
    "st_adapter_published": Strategy(
        sites=("mlp",),
        allowed=("block", "mlp"),
        trains_temporal_embedding=False,
        decays_biases=False,
        classifier_std=0.02,
        adapter_ratio=0.5,
        classifier_dropout=0.5,
        averages_before_norm=True,
        peer="st_adapter",
        training=PublishedTraining(
            1e-3, 256, weight_decay=0.01, warmup_epochs=2.0, warmup_start=0.0
        ),
        unused_settings=(*HEAD_SETTINGS, "temporal_embedding"),
    ),
    "joint": Strategy(
        trains_tower=True,
        needs_temporal_embedding=True,
        learning_rate_shares=SLOW_TOWER,
        peer="joint",
        unused_settings=(*HEAD_SETTINGS, *ADAPTER_SETTINGS, "adapter_dropout"),
    ),
}

# The strategies that compute or train otherwise in folders of format 1, with the rules of these
# folders. A model in such a folder keeps these rules, because its weights were trained under them.
# New models start with the same weights under all rules.
_ALL_SLOW: Final = {**SLOW_TOWER, "classifier": 0.1}
RULES_0_1_0: Final = {
    "full": replace(STRATEGIES["full"], learning_rate_shares=_ALL_SLOW),
    "joint": replace(STRATEGIES["joint"], learning_rate_shares=_ALL_SLOW),
    "st_adapter": replace(STRATEGIES["st_adapter"], activation="gelu"),
    "evl": replace(
        STRATEGIES["evl"], activation="gelu", adapter_dropout=0.0, classifier_dropout=0.0
    ),
    "aim": replace(
        STRATEGIES["aim"], decays_temporal_embedding=False, classifier_dropout=0.0, drop_path=0.0
    ),
    "st_adapter_published": replace(
        STRATEGIES["st_adapter_published"],
        sites=("block",),
        activation="gelu",
        averages_before_norm=False,
        decays_biases=True,
        classifier_dropout=0.0,
    ),
}


def strategy_with(name: str, rules: Literal["authors", "0.1.0"]) -> Strategy:
    """The strategy of a name in STRATEGIES, under `ModelConfig.strategy_rules`."""
    return RULES_0_1_0.get(name, STRATEGIES[name]) if rules == "0.1.0" else STRATEGIES[name]
