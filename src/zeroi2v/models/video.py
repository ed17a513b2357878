"""How does a clip become logits? An image tower gets temporal heads and adapters.

Shapes: B clips, F frames of a clip, S pixels along a side; T frames as attention sees them: F, or
F / tubelet; N tokens per frame, D channels.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroi2v.config import HEAD_OPERATORS, ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.errors import ConfigError, MergeError, ZeroI2VError
from zeroi2v.method import kernels
from zeroi2v.method.call import Call, begin_call, call_in_progress
from zeroi2v.method.gradients import exports, follows_operations
from zeroi2v.method.heads import HeadLayout, layout_text
from zeroi2v.models import peers
from zeroi2v.models.attach import attach, build_adapters, fold_adapters
from zeroi2v.models.card import CardFacts
from zeroi2v.models.compiled import compiled, ready
from zeroi2v.models.exchange import attention_reads
from zeroi2v.models.pictures import pictures_of, set_image_size
from zeroi2v.models.plan import Plan, frames_seen
from zeroi2v.models.saving import Stored, fingerprint, push_to_hub, write_model
from zeroi2v.models.spec import Spec, numbered_labels
from zeroi2v.models.survey import flat_tokens

logger = logging.getLogger(__name__)


class VideoClassifier(nn.Module):
    """A model that turns a normalised clip (B, F, 3, S, S) into logits (B, num_classes).

    The modules of the tower keep their weights and keys. timm's plain attention becomes a
    `FrameAttention`, which on a GPU reads other frames by itself. Hooks do three things: they move
    keys and values to other frames after each fused projection, they pass the inputs or outputs of
    adapted linears through the adapters, and they add the temporal embedding to the tokens.
    Whatever the hooks must know of a call travels with the call, so several threads can call one
    model. Outside of a call the hooks do nothing, and `model.tower` is the image transformer.
    """

    def __init__(self, tower: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.tower = tower
        self.plan = plan
        adapters = build_adapters(tower, plan)
        embedded = plan.entry_block
        self.temporal_embedding = nn.Parameter(torch.zeros(plan.frames, embedded.width))
        self.adapters = nn.ModuleList(nn.ModuleDict(block) for block in adapters)
        self.dropout = nn.Dropout(plan.classifier_dropout)
        self.classifier = nn.Linear(plan.tower.feature_width, plan.num_classes)
        if plan.strategy.classifier_std is not None:
            nn.init.normal_(self.classifier.weight, std=plan.strategy.classifier_std)
            nn.init.zeros_(self.classifier.bias)
        self.spec = Spec(
            model=plan.config,
            labels=numbered_labels(plan.num_classes),
            clip=ClipConfig(frames=plan.clip_frames),
            image_size=plan.tower.image_size,
            mean=plan.tower.mean,
            std=plan.tower.std,
        )
        self._adapter_hooks = attach(tower, plan, adapters)
        # How heads read other frames: whether attention does by itself, or else by an index.
        self.attention_reads = self.moves_by_index = False
        # This hook is registered last, and runs first (`prepend`). The model must keep the handle
        # of this hook: PyTorch numbers hooks, and reads from the handles in a pickle which numbers
        # are taken. Without this handle, a hook that is registered after unpickling could take a
        # number in use and replace an older hook.
        entry = tower.get_submodule(embedded.entry)
        embedding = TemporalEmbedding(embedded.entry_channel_axis)
        self._embedding_hook = entry.register_forward_pre_hook(embedding, prepend=True)
        self._freeze()

    def _freeze(self) -> None:
        """Let the parameters train that the strategy names, and freeze all others.

        No other code decides which parameters train.
        """
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

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> VideoClassifier:
        """Like nn.Module._apply, which moves a model to another device or dtype.

        Then the form of relocation is chosen again: it depends on the device and the dtype.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch's
        self._choose_form()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Like nn.Module.__setstate__, for a copy or a model from a pickle.

        The device may be another, so the form of relocation is chosen again.
        """
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # PyTorch's
        self._choose_form()

    def _choose_form(self) -> None:
        """Choose how heads read other frames on the device of the model."""
        self.attention_reads = attention_reads(self.tower)
        # An index starts the fewest kernels; on a CPU it takes longer than copies of what moves.
        self.moves_by_index = self.classifier.weight.device.type != "cpu"

    def train(self, mode: bool = True) -> VideoClassifier:
        """Like nn.Module.train, except that a frozen tower stays in eval mode.

        A frozen tower then drops no paths and updates no moving averages.
        """
        super().train(mode)
        if not self.plan.strategy.trains_tower:
            self.tower.eval()
        return self

    @property
    def heads(self) -> tuple[HeadLayout, ...]:
        """The head layout of each block.

        An entry ((offset, share), ...) of a layout is a split head.
        """
        return self.plan.heads

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
        """A copy of the model whose classes have other names.

        ConfigError unless there is a different name for each class.
        """
        spec = self.spec.with_labels(labels)
        renamed = copy.deepcopy(self)
        renamed.spec = spec
        return renamed

    def forward(self, clip: Tensor, fewer_frames: bool = False) -> Tensor:
        """Logits (B, num_classes) of a clip (B, F, 3, S, S). `fewer_frames`: as in `features`."""
        feature = self.features(clip, fewer_frames=fewer_frames).mean(1)
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits

    def features(self, clip: Tensor, *, fewer_frames: bool = False) -> Tensor:
        """The tower's feature of each frame (B, T, D), after the final norm.

        EVL and the published ST-Adapter give the feature of the clip for each frame.

        With `fewer_frames` a clip may have fewer than F frames that span the same stretch of video;
        a training can begin with such clips. The offsets are then scaled with the number of frames,
        and the temporal embedding is interpolated.
        """
        pictures, call = self._begin(clip, fewer_frames=fewer_frames)
        before = begin_call(call)
        try:
            pooled: Tensor = self.tower(pictures)
        finally:
            begin_call(before)
        return pooled.view(call.clips, call.frames, *pooled.shape[1:])

    def tokens(self, clip: Tensor) -> Tensor:
        """All tokens that the tower pools, class and register tokens first: (B, T, N, D).

        A map is flattened to N = H * W tokens.
        """
        pictures, call = self._begin(clip)
        before = begin_call(call)
        try:
            features = self.tower.forward_features(pictures)  # type: ignore[operator]  # timm's
        finally:
            begin_call(before)
        tokens = flat_tokens(self.tower, features)
        by_frame: Tensor = tokens.unflatten(0, (-1, call.frames))
        return by_frame

    def tower_input(self, clip: Tensor) -> Tensor:
        """The pictures (B*T, 3 * tubelet, S, S) that the tower takes, of a clip (B, F, 3, S, S)."""
        return self._begin(clip)[0]

    def _begin(self, clip: Tensor, *, fewer_frames: bool = False) -> tuple[Tensor, Call]:
        """The pictures of a clip, and the call that the hooks will read.

        ConfigError names the shape of a clip that does not fit the model.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # PyTorch's
            raise ZeroI2VError(
                "torch.jit.trace and the older ONNX exporter cannot follow a model of zeroi2v; "
                "use torch.export.export, or torch.onnx.export(..., dynamo=True)"
            )
        self._check_clip(clip, fewer_frames=fewer_frames)
        clips, clip_frames = clip.shape[:2]
        tubelet, whole_frames = self.plan.config.tubelet, self.plan.frames
        is_whole = clip_frames == self.frames
        call = Call(
            clips=clips,
            frames=whole_frames if is_whole else frames_seen(clip_frames, tubelet),
            whole_frames=whole_frames,
            # as plain mappings, where a hook finds an adapter soonest
            adapters=() if self.spec.merged else self._adapters_of_blocks(),
            temporal_embedding=self.temporal_embedding,
            # The kernel has no gradient, and its offsets are those of a whole clip.
            attention_reads=self.attention_reads
            and is_whole
            and not torch.is_grad_enabled()
            and not exports(),  # an exported graph must run anywhere
            moves_by_index=self.moves_by_index,
            changes_in_place=not (self.moves_by_index or kernels.MOVES or follows_operations()),
        )
        return pictures_of(clip, tubelet), call

    def _adapters_of_blocks(self) -> list[dict[str, nn.Module]]:
        """The adapters of each block by name, as plain dicts: many hooks look for an adapter."""
        blocks: Any = self.adapters
        return [dict(block.items()) for block in blocks]

    def _check_clip(self, clip: Tensor, *, fewer_frames: bool) -> None:
        """ConfigError if a clip has another shape than the model takes."""
        shape, frames = clip.shape, self.frames
        if (
            len(shape) != 5
            or shape[2] != 3
            or not (shape[1] == frames or (fewer_frames and shape[1] < frames))
        ):
            raise ConfigError(
                f"a clip must be (B, {frames}, 3, S, S) for this model, got {tuple(shape)}"
            )
        patches: Any = getattr(self.tower, "patch_embed", None)
        if getattr(patches, "strict_img_size", False) and shape[3:] != tuple(patches.img_size):
            raise ConfigError(
                f"frames must be {self.image_size} pixels a side, got {tuple(shape[3:])}; "
                "model.resize makes the model take another size"
            )

    def compiled(self, *, batch: int = 8, dtype: str = "bf16") -> Callable[[Tensor], Tensor]:
        """A callable for inference: normalised clips (B, F, 3, S, S) to logits (B, num_classes).

        On a CUDA device it replays captured kernels for batches of up to `batch` clips at once; on
        a CPU it is the model. Both go through torch.compile where a trial shows that this is
        faster. `dtype` is fp32, bf16 or fp16. The callable keeps the weights that the model has
        now. ConfigError names a setting that is wrong.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch}")
        model = ready(self, dtype)
        return compiled(model, model.blank_clips(batch))

    def blank_clips(self, count: int) -> Tensor:
        """Clips (count, F, 3, S, S) of zeros, with the device and the dtype of the weights."""
        size = self.image_size
        return self.classifier.weight.new_zeros(count, self.frames, 3, size, size)

    @torch.no_grad()
    def merge(self) -> VideoClassifier:
        """A copy whose linears have absorbed the adapters: equation 11, in float64, rounded once.

        The copy's tower has timm's own weights, shapes and keys. MergeError names an adapter that
        no linear can absorb. A merged model raises MergeError too.
        """
        if self.spec.merged:
            raise MergeError("the model is merged already and has no adapters; use it as it is")
        if (peer := peers.peer_of(self.plan.strategy)) is not None:
            raise MergeError(
                f"strategy {self.plan.config.strategy} cannot be merged: {peer.not_mergeable}; "
                "strategy 'zeroi2v' can"
            )
        merged = copy.deepcopy(self)
        adapters: Any = merged.adapters
        fold_adapters(merged.tower, merged.plan, adapters)
        for hook in merged._adapter_hooks:
            hook.remove()
        merged._adapter_hooks = []
        merged.adapters = nn.ModuleList(nn.ModuleDict() for _ in merged.plan.blocks)
        merged.spec = dataclasses.replace(self.spec, merged=True)
        return merged

    @torch.no_grad()
    def resize(self, *, frames: int | None = None, image_size: int | None = None) -> None:
        """Make the model take clips of another length, or frames of another size, from now on.

        The temporal embedding is interpolated linearly over the clip. timm's `set_input_size`
        changes the position embedding and the windows. Offsets stay as they are. ConfigError if the
        tower has no `set_input_size` or refuses the size; the model is then unchanged.
        """
        config, tower = self.plan.config, self.plan.config.tower
        clip = dataclasses.replace(self.clip, frames=self.frames if frames is None else frames)
        seen = frames_seen(clip.frames, config.tubelet)
        if image_size is not None and image_size != self.image_size:
            logger.info(
                "%s resized from %d to %d pixels a side", tower, self.image_size, image_size
            )
            set_image_size(self.tower, image_size, tower)
            config = dataclasses.replace(config, pretrained=False)  # a saved folder holds the tower
            self.spec = dataclasses.replace(self.spec, image_size=image_size)
        if clip.frames != self.frames:
            logger.info(
                "temporal embedding interpolated from %d to %d frames", self.plan.frames, seen
            )
            resized = interpolated(self.temporal_embedding, seen).contiguous()
            trains = self.temporal_embedding.requires_grad
            self.temporal_embedding = nn.Parameter(resized, requires_grad=trains)
            if config.ratio is None and config.operator in HEAD_OPERATORS:
                # With other frames, heads=None would mean another layout of the paper's table.
                layouts = tuple(map(layout_text, self.heads))
                config = dataclasses.replace(config, heads=layouts)
        self.set_config(config)
        self.plan = dataclasses.replace(self.plan, clip_frames=clip.frames)
        self.spec = dataclasses.replace(self.spec, clip=clip)
        peers.resize(self.tower, self.adapters, seen)

    @property
    def keeps_tower(self) -> bool:
        """Whether a saved folder holds the weights of the whole tower.

        False only if all of these hold: the tower is frozen, it is not merged, its weights are
        float32, and timm can fetch its weights by name.
        """
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
        """What a saved folder holds of this model beside its `Spec`."""
        trained = self.trained_in_tower()
        tower = self.tower.state_dict()
        frozen = {name: tensor for name, tensor in tower.items() if name not in trained}
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return Stored(
            tensors=self.stored_tensors(),
            fingerprint=None if self.keeps_tower else fingerprint(frozen),
            facts=CardFacts(
                parameters=sum(size for size, _ in sizes),
                trained=sum(size for size, trains in sizes if trains),
                heads=self.heads,
                spatial_blocks=self.plan.tower.spatial_blocks,
                holds_tower=self.keeps_tower,
            ),
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder from which `zeroi2v.load` rebuilds this model.

        CheckpointError if the folder cannot be written; files that were there stay as they were.
        """
        write_model(Path(folder), self.spec, self.stored())

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Save the model to the Hugging Face Hub as `user/model`, and return its address there.

        The Hub's model is created if it does not exist. CheckpointError if the Hub refuses.
        """
        return push_to_hub(name, self.spec, self.stored(), private=private)

    def set_config(self, config: ModelConfig) -> None:
        """Replace the configuration that is saved with the model.

        Callers need this after a change of the weights, if the old configuration would rebuild a
        model without the change.
        """
        self.plan = dataclasses.replace(self.plan, config=config)
        self.spec = dataclasses.replace(self.spec, model=config)


class TemporalEmbedding:
    """A forward pre-hook that adds the temporal embedding to all tokens that enter a module."""

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis

    def __call__(self, entry: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None:
            return inputs
        # (B*T*V, ..., D), where a frame has V windows; or a map (B*T, D, H, W)
        tokens, *others = inputs
        embedding = interpolated(call.temporal_embedding, call.frames)
        shape = [1] * tokens.ndim  # shape of the embedding of a frame; all axes but D are broadcast
        shape[self.channel_axis] = -1
        by_frame = tokens.view(call.clips, call.frames, -1, *tokens.shape[1:])
        added = by_frame + embedding.view(1, call.frames, *shape)
        return (added.view(tokens.shape), *others)


def interpolated(temporal_embedding: Tensor, frames: int) -> Tensor:
    """A temporal embedding (T, D), interpolated linearly for another number of frames."""
    if frames == len(temporal_embedding):
        return temporal_embedding
    series = temporal_embedding.T[None]  # (1, D, T)
    return nn.functional.interpolate(series, frames, mode="linear")[0].T
