"""How does a clip become logits? An image tower with temporal heads and adapters, and the same tower merged.

Shapes: B clips, F frames, S pixels a side; T frames as attention sees them: F, or F / tubelet; N tokens per frame, D channels.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroi2v.config import ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.errors import ConfigError, MergeError, ZeroI2VError
from zeroi2v.method.call import Call, begin_call, call_in_progress
from zeroi2v.method.heads import HeadLayout, layout_text
from zeroi2v.models import peers, towers
from zeroi2v.models.attach import attach, build_adapters, fold_adapters
from zeroi2v.models.card import CardFacts
from zeroi2v.models.plan import Plan, frames_seen
from zeroi2v.models.saving import Stored, fingerprint, push_to_hub, write_model
from zeroi2v.models.spec import Spec, numbered_labels

logger = logging.getLogger(__name__)


class VideoClassifier(nn.Module):
    """A clip (B, F, 3, S, S), normalised, to logits (B, num_classes).

    The modules of the tower stay as they are. Hooks relocate keys and values after each fused projection, pass the inputs or
    outputs of the adapted linears through their adapters, and add the temporal embedding to the tokens. What the hooks must
    know of a call travels with the call, so several threads can call one model. Outside of a call of the model, the hooks do
    nothing: `model.tower` is then the image transformer.
    """

    def __init__(self, tower: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.tower = tower
        self.plan = plan
        peer = peers.peer_of(plan.strategy)
        if peer is None:
            adapters = build_adapters(tower, plan)
        else:
            adapters = peer.build(
                tower,
                plan.sites,
                frames=plan.frames,
                ratio=plan.adapter_ratio,
                scale=plan.adapter_scale,
                dropout=plan.config.adapter_dropout,
            )
        self.temporal_embedding = nn.Parameter(torch.zeros(plan.frames, plan.entry_width))
        self.adapters = nn.ModuleList(nn.ModuleDict(block) for block in adapters)
        self.dropout = nn.Dropout(plan.config.classifier_dropout)
        self.classifier = nn.Linear(plan.tower.feature_width, plan.num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        mean, std = towers.normalisation(tower)
        self.spec = Spec(
            model=plan.config,
            labels=numbered_labels(plan.num_classes),
            clip=ClipConfig(frames=plan.frames * plan.config.tubelet),
            image_size=towers.image_size(tower),
            mean=mean,
            std=std,
        )
        entry = tower.get_submodule(plan.entry)
        entry.register_forward_pre_hook(TemporalEmbedding(plan.entry_channel_axis))
        if peer is not None:
            peer.attach(tower, adapters)
        self._adapter_hooks = attach(tower, plan)
        self._freeze()

    def _freeze(self) -> None:
        """Everything trains that the strategy names, and nothing else. The one place where this is decided."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.adapters.requires_grad_(True)
        self.temporal_embedding.requires_grad_(self.plan.trains_temporal_embedding)
        trained = self.trained_in_tower()
        for name, parameter in self.tower.named_parameters():
            parameter.requires_grad_(name in trained)

    def trained_in_tower(self) -> frozenset[str]:
        """The names of the tower's own parameters that the strategy trains."""
        if self.plan.trains_in_tower is None:
            return frozenset(name for name, _ in self.tower.named_parameters())
        return self.plan.trains_in_tower

    def train(self, mode: bool = True) -> VideoClassifier:
        """As nn.Module.train, except that a frozen tower stays in eval mode: no drop path, no moving averages."""
        super().train(mode)
        if not self.plan.strategy.trains_tower:
            self.tower.eval()
        return self

    @property
    def heads(self) -> tuple[HeadLayout, ...]:
        """Offsets per block: one per head, or ((offset, share), ...) for a split head."""
        return tuple(block.heads for block in self.plan.blocks)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.spec.labels

    @property
    def clip(self) -> ClipConfig:
        """How a clip is cut out of a video."""
        return self.spec.clip

    @property
    def views(self) -> ViewsConfig:
        """The views of a video whose scores are averaged."""
        return self.spec.views

    @property
    def frames(self) -> int:
        """F: the frames of a clip."""
        return self.spec.clip.frames

    @property
    def image_size(self) -> int:
        """S: pixels along a side of a frame."""
        return self.spec.image_size

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per colour that the tower expects, for pixels of 0..1."""
        return self.spec.mean, self.spec.std

    def with_labels(self, labels: Sequence[str]) -> VideoClassifier:
        """A model of the same weights, shared, whose classes have other names. ConfigError unless each class has one name."""
        spec = self.spec.with_labels(labels)
        renamed = copy.copy(self)
        renamed.spec = spec
        return renamed

    def forward(self, clip: Tensor, *, fewer_frames: bool = False) -> Tensor:
        """Logits (B, num_classes) of a clip (B, F, 3, S, S). `fewer_frames`: as for `features`."""
        feature = self.features(clip, fewer_frames=fewer_frames).mean(1)
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits

    def features(self, clip: Tensor, *, fewer_frames: bool = False) -> Tensor:
        """The tower's feature of each frame of a clip (B, F, 3, S, S), after its final norm: (B, T, D).

        `fewer_frames`: the clip may have fewer than F frames, of as long a stretch of the video, as at the beginning of some
        trainings. Offsets are then scaled with the number of frames, and the temporal embedding is interpolated.
        """
        pictures, call = self._begin(clip, fewer_frames=fewer_frames)
        before = begin_call(call)
        try:
            pooled: Tensor = self.tower(pictures)
        finally:
            begin_call(before)
        by_frame: Tensor = pooled.unflatten(0, (-1, call.frames))
        return by_frame

    def tokens(self, clip: Tensor) -> Tensor:
        """Every token that the tower pools, class and register tokens first: (B, T, N, D). A map is flattened to N = H * W."""
        pictures, call = self._begin(clip)
        before = begin_call(call)
        try:
            features = self.tower.forward_features(pictures)  # type: ignore[operator]  # timm's method
        finally:
            begin_call(before)
        tokens = towers.flat_tokens(self.tower, features)
        by_frame: Tensor = tokens.unflatten(0, (-1, call.frames))
        return by_frame

    def tower_input(self, clip: Tensor) -> Tensor:
        """The pictures of a clip (B, F, 3, S, S): (B*T, 3 * tubelet, S, S), a view where it can be. The tower takes these."""
        return self._begin(clip)[0]

    def _begin(self, clip: Tensor, *, fewer_frames: bool = False) -> tuple[Tensor, Call]:
        """The pictures of a clip, and what hooks must know of the call. ConfigError names the shape that does not fit."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # PyTorch's
            raise ZeroI2VError(
                "torch.jit.trace and the older ONNX exporter cannot follow a model of zeroi2v; "
                "use torch.export.export, or torch.onnx.export(..., dynamo=True)"
            )
        fits = clip.ndim == 5 and clip.shape[2] == 3
        if not fits or not (
            clip.shape[1] == self.frames or (fewer_frames and clip.shape[1] < self.frames)
        ):
            raise ConfigError(
                f"a clip must be (B, {self.frames}, 3, S, S) for this model, got {tuple(clip.shape)}"
            )
        patches: Any = getattr(self.tower, "patch_embed", None)
        if getattr(patches, "strict_img_size", False) and clip.shape[3:] != tuple(patches.img_size):
            raise ConfigError(
                f"frames must be {self.image_size} pixels a side, got {tuple(clip.shape[3:])}; see resize"
            )
        tubelet = self.plan.config.tubelet
        call = Call(
            clips=clip.shape[0],
            frames=frames_seen(clip.shape[1], tubelet),
            whole_frames=self.plan.frames,
            adapters=self.adapters,
            temporal_embedding=self.temporal_embedding,
        )
        return pictures_of(clip, tubelet), call

    @torch.no_grad()
    def merge(self) -> VideoClassifier:
        """A copy whose linears have absorbed the adapters (equation 11, in float64, rounded once). Its tower is plain again.

        MergeError names an adapter that no linear can absorb.
        """
        if (peer := peers.peer_of(self.plan.strategy)) is not None:
            raise MergeError(
                f"strategy {self.plan.config.strategy} cannot be merged: {peer.remains}; strategy 'zeroi2v' can"
            )
        merged = copy.deepcopy(self)
        fold_adapters(merged.tower, merged.plan, merged.adapters)
        for hook in merged._adapter_hooks:
            hook.remove()
        merged._adapter_hooks = []
        merged.adapters = nn.ModuleList(nn.ModuleDict() for _ in merged.plan.blocks)
        merged.spec = dataclasses.replace(self.spec, merged=True)
        return merged

    @torch.no_grad()
    def resize(self, *, frames: int | None = None, image_size: int | None = None) -> None:
        """Take clips of another length, or frames of another size, from now on.

        The temporal embedding is interpolated linearly over the clip, the position embedding and windows by the tower's own
        rule. Offsets stay as they are. ConfigError if the tower has no such rule, or does not take that size; nothing has
        changed then.
        """
        config, tower = self.plan.config, self.plan.config.tower
        clip = dataclasses.replace(self.clip, frames=self.frames if frames is None else frames)
        seen = frames_seen(clip.frames, config.tubelet)
        if image_size is not None and image_size != self.image_size:
            logger.info(
                "%s resized from %d to %d pixels a side", tower, self.image_size, image_size
            )
            towers.set_image_size(self.tower, image_size, tower)
            config = dataclasses.replace(config, pretrained=False)  # saved with its tower
            self.spec = dataclasses.replace(self.spec, image_size=image_size)
        if clip.frames != self.frames:
            logger.info(
                "temporal embedding interpolated from %d to %d frames", self.plan.frames, seen
            )
            resized = interpolated(self.temporal_embedding, seen).contiguous()
            trains = self.temporal_embedding.requires_grad
            self.temporal_embedding = nn.Parameter(resized, requires_grad=trains)
            if config.ratio is None and config.operator in ("stdha", "hr_qkv"):
                layouts = tuple(
                    map(layout_text, self.heads)
                )  # those of the clips that it was made for
                config = dataclasses.replace(config, heads=layouts)
        self.set_config(config)
        self.plan = dataclasses.replace(self.plan, frames=seen)
        self.spec = dataclasses.replace(self.spec, clip=clip)
        peers.resize(self.tower, self.adapters, seen)

    @property
    def keeps_tower(self) -> bool:
        """Whether a saved folder holds the weights of the tower: trained, merged, cast, or not to be had by name."""
        cast = any(parameter.dtype != torch.float32 for parameter in self.tower.parameters())
        by_name = self.spec.model.pretrained
        return self.spec.merged or self.plan.strategy.trains_tower or cast or not by_name

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors that a saved folder holds, by name; a tensor with two names appears once."""
        persistent = self.state_dict().keys()
        tensors: dict[str, Tensor] = dict(self.named_parameters())
        tensors |= {name: buffer for name, buffer in self.named_buffers() if name in persistent}
        if self.keeps_tower:
            return tensors
        trained = {f"tower.{name}" for name in self.trained_in_tower()}
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name in trained or not name.startswith("tower.")
        }

    def stored(self) -> Stored:
        """What a saved folder holds beside the `spec`."""
        trained = self.trained_in_tower()
        tower = self.tower.state_dict()
        frozen = {name: tensor for name, tensor in tower.items() if name not in trained}
        parameters = list(self.parameters())
        return Stored(
            tensors=self.stored_tensors(),
            fingerprint=None if self.keeps_tower else fingerprint(frozen),
            facts=CardFacts(
                parameters=sum(one.numel() for one in parameters),
                trained=sum(one.numel() for one in parameters if one.requires_grad),
                heads=self.heads,
                spatial_blocks=self.plan.tower.spatial_blocks,
            ),
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder from which alone `zeroi2v.load` rebuilds this model.

        CheckpointError if the folder cannot be written; what was there stays.
        """
        write_model(Path(folder), self.spec, self.stored())

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Save into a model of the Hugging Face Hub, `user/model`, made if it is missing; returns its address."""
        return push_to_hub(name, self.spec, self.stored(), private=private)

    def set_config(self, config: ModelConfig) -> None:
        """Say how the model is to be built anew, where its weights have changed so that it cannot be built as it was."""
        self.plan = dataclasses.replace(self.plan, config=config)
        self.spec = dataclasses.replace(self.spec, model=config)


def pictures_of(clip: Tensor, tubelet: int) -> Tensor:
    """The pictures of a clip (B, F, 3, S, S), as a tower takes them: (B*T, 3 * tubelet, S, S), a view where it can be."""
    pictures: Tensor = clip.unflatten(1, (-1, tubelet)).flatten(2, 3).flatten(0, 1)
    return pictures


class TemporalEmbedding:
    """A forward pre-hook of the module that all tokens enter by: the temporal embedding is added to them."""

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis

    def __call__(self, entry: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None:
            return inputs
        tokens, *others = inputs  # (B*T*W, ..., D), or a map (B*T, D, H, W)
        by_frame = tokens.movedim(self.channel_axis, -1).unflatten(0, (call.clips, call.frames, -1))
        embedding = interpolated(call.temporal_embedding, call.frames)
        embedding = embedding.view(call.frames, *[1] * (by_frame.ndim - 3), -1)
        return ((by_frame + embedding).flatten(0, 2).movedim(-1, self.channel_axis), *others)


def interpolated(temporal_embedding: Tensor, frames: int) -> Tensor:
    """A temporal embedding (T, D) for clips of another number of frames, interpolated linearly: (frames, D)."""
    if frames == len(temporal_embedding):
        return temporal_embedding
    series = temporal_embedding.T[None]  # (1, D, T)
    return nn.functional.interpolate(series, frames, mode="linear")[0].T
