"""How does a clip become logits? An image tower with temporal heads and adapters, and the same tower merged.

Shapes: B clips, F frames, S pixels a side; T frames as attention sees them: F, or F / tubelet; N tokens per frame, D channels.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zeroi2v.config import ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.errors import ConfigError, MergeError, nearest
from zeroi2v.method.heads import HeadLayout, Heads, heads_of_ratio, layout_text, parse_heads
from zeroi2v.method.relocate import (
    ClassTokenShift,
    ClipCount,
    TemporalHeads,
    channel_moves,
    head_moves,
)
from zeroi2v.method.strategies import STRATEGIES, Strategy
from zeroi2v.models import peers, shortcuts, towers
from zeroi2v.models.attach import attach, build_adapters, chosen_sites, first_adapted_block, fold
from zeroi2v.recipes import from_dict

logger = logging.getLogger(__name__)


class VideoClassifier(nn.Module):
    """A clip (B, F, 3, S, S), normalised, to logits (B, num_classes).

    The tower's own modules stay as they are. Hooks relocate keys and values after each fused projection, pass the inputs or
    outputs of the adapted linears through their adapters, and add the temporal embedding to the first block's tokens. The hooks learn
    B from the call in progress, so one model serves one thread at a time.
    """

    def __init__(
        self,
        tower: nn.Module,
        blocks: Sequence[towers.Block],
        *,
        heads: Sequence[HeadLayout],
        operator: str,
        ratio: Fraction,
        strategy: Strategy,
        trains_temporal_embedding: bool,
        adapters: Sequence[Mapping[str, nn.Module]],
        count: ClipCount,
        tubelet: int,
        first_adapted: int,
        num_classes: int,
        classifier_dropout: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.heads = tuple(heads)
        self.strategy = strategy
        self.temporal_embedding = nn.Parameter(
            torch.zeros(count.frames, blocks[first_adapted].width)
        )
        self.adapters = nn.ModuleList(nn.ModuleDict(dict(one)) for one in adapters)
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(towers.feature_width(tower), num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

        self._count = count
        self._tubelet = tubelet
        embedded, self._channel_axis = towers.token_entry(tower, blocks, first_adapted)
        embedded.register_forward_pre_hook(self._add_temporal_embedding)
        peer = peers.peer_of(strategy)
        if peer is not None:
            peer.attach(tower, adapters, count)
        needs_patches = peer is not None or strategy.adapter == "st"
        self._training_hooks = shortcuts.spare_memory(tower, count, needs_patches=needs_patches)
        self._patch_hooks: list[RemovableHandle] = []
        every_move = []
        for block, layout, block_adapters in zip(blocks, heads, adapters, strict=True):
            if operator == "cls_shift":  # before the adapters: it acts on what the norms give
                shift = ClassTokenShift(ratio, count)
                block.projection.register_forward_pre_hook(shift.hook)
                if "up" in block.sites:
                    block.sites["up"].module.register_forward_pre_hook(shift.hook)
            if peer is None:
                self._training_hooks += [
                    attach(block, name, adapter) for name, adapter in block_adapters.items()
                ]
            head_count = block.layout.head_count
            moves = (
                channel_moves(ratio, head_count)
                if operator in ("shift_kv", "shift_qkv")
                else head_moves(layout)
            )
            every_move.append(moves)
            if moves:
                temporal = TemporalHeads(
                    block.layout, moves, count, queries=operator in ("hr_qkv", "shift_qkv")
                )
                block.projection.register_forward_hook(temporal.hook)
        self.moves = tuple(every_move)  # per block, what of K and V leaves its own frame
        self._freeze(trains_temporal_embedding)

        # What a saved folder needs beside the weights; `create_model`, training and `merge` set these.
        self.config = ModelConfig()
        self.labels: tuple[str, ...] = tuple(str(index) for index in range(num_classes))
        self.clip = ClipConfig(frames=self.frames)
        self.views = ViewsConfig()
        self.multi_label = (
            False  # whether a video may have several labels: scores are then sigmoid, not softmax
        )
        self.merged = False
        self.results: dict[str, float] = {}  # how well it did, for its card: name -> figure

    def _freeze(self, trains_temporal_embedding: bool) -> None:
        """Everything trains that the strategy names, and nothing else. The one place where this is decided."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.adapters.requires_grad_(True)
        self.temporal_embedding.requires_grad_(trains_temporal_embedding)
        trained = self.trained_in_tower()
        for name, parameter in self.tower.named_parameters():
            parameter.requires_grad_(name in trained)

    def trained_in_tower(self) -> set[str]:
        """The names of the tower's own parameters that the strategy trains."""
        if self.strategy.trains_tower:
            return {name for name, _ in self.tower.named_parameters()}
        norms = towers.final_norms(self.tower) if self.strategy.trains_norm else []
        own = {parameter for norm in norms for parameter in norm.parameters()}
        return {name for name, parameter in self.tower.named_parameters() if parameter in own}

    def train(self, mode: bool = True) -> VideoClassifier:
        """As nn.Module.train, except that a frozen tower stays in eval mode: no drop path, no moving averages."""
        super().train(mode)
        self._count.trains = False  # until the next step
        if not self.strategy.trains_tower:
            self.tower.eval()
        return self

    @property
    def frames(self) -> int:
        """F: the frames of a clip."""
        return self._count.frames * self._tubelet

    @property
    def image_size(self) -> int:
        """S: pixels along a side of a frame."""
        return towers.image_size(self.tower)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per colour that the tower expects, for pixels of 0..1."""
        return towers.normalisation(self.tower)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, num_classes) of a clip (B, F, 3, S, S)."""
        feature = self.features(clip).mean(1)
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits

    def features(self, clip: Tensor) -> Tensor:
        """The tower's feature of each frame, after its final norm: (B, T, D)."""
        self._count.trains = self.training and torch.is_grad_enabled()
        pooled: Tensor = self.tower(self.tower_input(clip))
        if (
            self._count.checkpointed and pooled.requires_grad
        ):  # blocks that are worked out again must read this call's count
            call = dict(vars(self._count))
            pooled.register_hook(lambda gradient: vars(self._count).update(call))
        by_frame: Tensor = pooled.unflatten(0, (-1, self._count.frames))
        return by_frame

    def tokens(self, clip: Tensor) -> Tensor:
        """Every token that the tower pools, class and register tokens first: (B, T, N, D). A map is flattened to N = H * W."""
        self._count.trains = False
        features = self.tower.forward_features(self.tower_input(clip))  # type: ignore[operator]  # timm's method
        by_frame: Tensor = towers.flat_tokens(self.tower, features).unflatten(
            0, (-1, self._count.frames)
        )
        return by_frame

    def tower_input(self, clip: Tensor) -> Tensor:
        """The pictures of a clip (B, F, 3, S, S), as the tower takes them next: (B*T, 3 * tubelet, S, S), a view where it can be."""
        if clip.ndim != 5 or clip.shape[1:3] != (self.frames, 3):
            raise ConfigError(
                f"a clip must be (B, {self.frames}, 3, S, S) for this model, got {tuple(clip.shape)}"
            )
        patches: Any = getattr(self.tower, "patch_embed", None)
        if getattr(patches, "strict_img_size", False) and clip.shape[3:] != tuple(patches.img_size):
            raise ConfigError(
                f"frames must be {self.image_size} pixels a side, got {tuple(clip.shape[3:])}; see resize"
            )
        self._count.clips = clip.shape[0]
        pictures: Tensor = clip.unflatten(1, (-1, self._tubelet)).flatten(2, 3).flatten(0, 1)
        return pictures

    def _add_temporal_embedding(
        self, entry: nn.Module, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        tokens, *others = inputs  # (B*T*W, ..., D), or a map (B*T, D, H, W)
        by_frame = tokens.movedim(self._channel_axis, -1).unflatten(
            0, (self._count.clips, self._count.frames, -1)
        )
        embedding = self._embedding_of(self._count.frames).view(
            self._count.frames, *[1] * (by_frame.ndim - 3), -1
        )
        return ((by_frame + embedding).flatten(0, 2).movedim(-1, self._channel_axis), *others)

    def _embedding_of(self, frames: int) -> Tensor:
        """The temporal embedding for clips of so many frames, interpolated linearly: (T, D)."""
        if frames == len(self.temporal_embedding):
            return self.temporal_embedding
        series = self.temporal_embedding.T[None]  # (1, D, T)
        return nn.functional.interpolate(series, frames, mode="linear")[0].T

    def merge(self) -> VideoClassifier:
        """A copy whose linears have absorbed the adapters (equation 11, in float64, rounded once). Its tower is plain again.

        MergeError names an adapter that no linear can absorb.
        """
        if (peer := peers.peer_of(self.strategy)) is not None:
            raise MergeError(
                f"strategy {self.config.strategy} cannot be merged: {peer.remains}; strategy 'zeroi2v' can"
            )
        merged = copy.deepcopy(self)
        with torch.no_grad():
            blocks = towers.find_blocks(merged.tower, merged.config.tower)
            every_adapter: Any = merged.adapters
            for block, adapters in zip(blocks, every_adapter, strict=True):
                for name, adapter in adapters.items():
                    fold(block, name, adapter)
        for hook in (*merged._training_hooks, *merged._patch_hooks):
            hook.remove()
        merged._training_hooks, merged._patch_hooks = [], []
        shortcuts.plain_again(merged.tower)
        merged.adapters = nn.ModuleList(nn.ModuleDict() for _ in blocks)
        merged.merged = True
        return merged

    @torch.no_grad()
    def resize(self, *, frames: int | None = None, image_size: int | None = None) -> None:
        """Take clips of another length, or frames of another size, from now on.

        The temporal embedding is interpolated linearly over the clip, the position embedding and windows by the tower's own rule.
        Offsets stay as they are. ConfigError if the tower has no such rule, or does not take that size; nothing has changed then.
        """
        clip = dataclasses.replace(
            self.clip, frames=self.frames if frames is None else frames
        )  # checks it
        seen = frames_seen(clip.frames, self._tubelet)
        if image_size is not None and image_size != self.image_size:
            logger.info(
                "%s resized from %d to %d pixels a side",
                self.config.tower,
                self.image_size,
                image_size,
            )
            towers.set_image_size(self.tower, image_size, self.config.tower)
            self.config = dataclasses.replace(self.config, pretrained=False)  # saved with its tower
        if clip.frames != self.frames:
            logger.info(
                "temporal embedding interpolated from %d to %d frames", self._count.frames, seen
            )
            resized = self._embedding_of(seen).contiguous()
            self.temporal_embedding = nn.Parameter(
                resized, requires_grad=self.temporal_embedding.requires_grad
            )
            self._count.frames = self._count.whole = seen
            self.clip = clip
            if self.config.ratio is None and self.config.operator in (
                "stdha",
                "hr_qkv",
            ):  # not the rule for so many frames
                self.config = dataclasses.replace(
                    self.config, heads=tuple(map(layout_text, self.heads))
                )
        peers.resize(self.tower, self.adapters, self._count.frames)

    def take_frames(self, frames: int) -> None:
        """Take clips of so few frames of the same videos from now on, or of all again: a training may begin with fewer.

        Offsets are scaled with the number of frames, and the temporal embedding is interpolated; neither changes for good.
        ConfigError if the frames are no whole number of tubelets, or the strategy is a rival's, which may count on all.
        """
        if frames != self.clip.frames and self.strategy.peer is not None:
            raise ConfigError(
                f"few_frames: strategy {self.config.strategy} needs all frames of a clip"
            )
        self._count.frames = frames_seen(frames, self._tubelet)

    def drop_patches(self, share: float) -> None:
        """Let training steps see a random `share` of a clip's patches. ConfigError if the tower or the strategy needs them all."""
        if self.strategy.peer is not None:
            raise ConfigError(
                f"token_share: strategy {self.config.strategy} needs all patches of a frame"
            )
        handle = shortcuts.drop_patches(self.tower, self._count, share, self.config.tower)
        for earlier in self._patch_hooks:
            earlier.remove()
        self._patch_hooks = [handle]

    def checkpoint_blocks(self) -> None:
        """Let training steps keep the input of each block alone. ConfigError if the tower has no way for it."""
        shortcuts.checkpoint_blocks(self.tower, self._count, self.config.tower)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder from which alone `zeroi2v.load` rebuilds this model."""
        from zeroi2v.models.checkpoints import save_pretrained  # which builds models

        save_pretrained(self, folder)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Save into a model of the Hugging Face Hub, `user/model`, made if it is missing; returns its address."""
        from zeroi2v.models.checkpoints import push_to_hub  # which builds models

        return push_to_hub(self, name, private=private)


def frames_seen(frames: int, tubelet: int) -> int:
    """T of F frames. ConfigError if they are no whole number of tubelets."""
    if frames % tubelet:
        raise ConfigError(f"frames must be a multiple of tubelet ({tubelet}), got {frames}")
    return frames // tubelet


def create_model(
    tower: str,
    *,
    num_classes: int,
    frames: int = 8,
    heads: Heads = None,
    operator: str = "stdha",
    strategy: str = "zeroi2v",
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    tower_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> VideoClassifier:
    """Turn an image tower into a video classifier. Attaching changes no output, exactly, where all offsets are 0.

    `tower` is one of `supported_towers()` or, with a warning that names the blocks that stay spatial, of `partly_covered_towers()`.
    `weights` is a file, or a folder with one, that holds its weights as timm, OpenAI CLIP, open_clip or transformers write them.
    `heads`: see `zeroi2v.method.heads.parse_heads`. `operator`, `ratio`: a row of Table 1a. `strategy`, `sites`: a row of Table 2.
    `tubelet`: so many neighbouring frames make one picture (Swin in Table 11: 2); offsets and heads=None then count the pictures.
    `options` are the other fields of `ModelConfig`. ConfigError, HeadsError, TowerError or CheckpointError names the setting or the
    file that is wrong.
    """
    settings = {
        "tower": tower,
        "heads": heads,
        "operator": operator,
        "strategy": strategy,
        "pretrained": pretrained,
    }
    file = None if weights is None else os.fspath(weights)
    config = from_dict(
        ModelConfig,
        {**settings, "weights": file, "tower_options": dict(tower_options or {}), **options},
    )
    return build_model(config, num_classes=num_classes, frames=frames)


def build_model(config: ModelConfig, *, num_classes: int, frames: int) -> VideoClassifier:
    """`create_model` from a checked configuration."""
    if config.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(
            f"strategy must be one of {known}, got {config.strategy!r}{nearest(config.strategy, STRATEGIES)}"
        )
    ClipConfig(frames=frames)  # checks it
    if num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
    strategy = STRATEGIES[config.strategy]
    for name in strategy.meaningless:
        if getattr(config, name) != getattr(ModelConfig, name):
            raise ConfigError(f"{name} has no meaning for strategy {config.strategy}; leave it out")
    sites = chosen_sites(strategy, config.sites)
    by_name = config.pretrained and config.weights is None
    tower = towers.build_tower(config.tower, pretrained=by_name, options=config.tower_options)
    if config.weights is not None:
        from zeroi2v.models.weights import load_tower_weights  # which builds models

        load_tower_weights(tower, config.weights)
        config = dataclasses.replace(
            config, pretrained=False, weights=None
        )  # saved with its tower, without a path
    towers.inflate(tower, config.tubelet, config.tower)
    blocks = towers.find_blocks(tower, config.tower)
    if spatial := towers.spatial_blocks(tower):
        logger.warning(
            "%s is partly covered: %d of its %d attention blocks have no heads that can be moved and stay spatial: %s",
            config.tower,
            len(spatial),
            len(spatial) + len(blocks),
            ", ".join(spatial),
        )
    if config.operator == "cls_shift" and not towers.has_class_token(tower):
        raise ConfigError(f"operator cls_shift: {config.tower} has no class token")
    count = ClipCount(frames_seen(frames, config.tubelet))
    ratio = Fraction(config.ratio or 0).limit_denominator(1000)
    if config.ratio is not None and not ratio:
        raise ConfigError(f"ratio must be at least 0.001, got {config.ratio}")
    head_counts = [block.layout.head_count for block in blocks]
    peer = peers.peer_of(strategy)
    if config.operator not in ("stdha", "hr_qkv") or (peer and config.heads is None):
        heads = parse_heads([], head_counts=head_counts, frames=count.frames)
    elif ratio:
        heads = heads_of_ratio(ratio, head_counts)
    else:
        heads = parse_heads(config.heads, head_counts=head_counts, frames=count.frames)
    if strategy.adapter == "heads" and not any(head != 0 for layout in heads for head in layout):
        raise ConfigError(f"strategy {config.strategy}: there are no temporal heads to train")
    shape: dict[str, Any] = {
        "ratio": strategy.adapter_ratio if config.adapter_ratio is None else config.adapter_ratio,
        "scale": strategy.adapter_scale if config.adapter_scale is None else config.adapter_scale,
        "dropout": config.adapter_dropout,
    }
    first_adapted = first_adapted_block(config, strategy, len(blocks))
    if peer is None:
        adapters = [
            build_adapters(block, strategy, sites, layout, count, **shape)
            if number >= first_adapted
            else {}
            for number, (block, layout) in enumerate(zip(blocks, heads, strict=True))
        ]
    else:
        peers.check(config, tower, heads)
        adapters = peer.build(tower, sites, count, **shape)
    model = VideoClassifier(
        tower,
        blocks,
        heads=heads,
        operator=config.operator,
        ratio=ratio,
        strategy=strategy,
        trains_temporal_embedding=strategy.trains_temporal_embedding
        and config.temporal_embedding == "trained",
        adapters=adapters,
        count=count,
        tubelet=config.tubelet,
        first_adapted=first_adapted,
        num_classes=num_classes,
        classifier_dropout=config.classifier_dropout,
    )
    model.config = config
    return model
