"""What may a training step leave out? What the tower makes that no gradient and no feature needs; and, if asked, some more.

`spared` installs everything on a model for as long as training lasts, and takes everything away again. Outside of training a
model has none of it.

Shapes: B clips, T frames, N tokens per frame, the first P of them class and register tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers.activations import QuickGELU
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zeroi2v.config import TrainConfig
from zeroi2v.errors import ConfigError
from zeroi2v.method.call import call_in_progress, in_call
from zeroi2v.method.gradients import quick_gelu, remember_source
from zeroi2v.models.plan import Plan
from zeroi2v.models.towers import token_entry
from zeroi2v.models.video import VideoClassifier


def check_spared(plan: Plan, tower: nn.Module, settings: TrainConfig) -> None:
    """ConfigError names a setting of the training that the tower or the strategy cannot do."""
    name, strategy = plan.config.tower, plan.config.strategy
    if settings.few_frames and plan.strategy.peer is not None:
        raise ConfigError(f"few_frames: strategy {strategy} needs all frames of a clip")
    if settings.few_frames % plan.config.tubelet:
        raise ConfigError(
            f"few_frames must be a multiple of tubelet ({plan.config.tubelet}), got {settings.few_frames}"
        )
    if settings.token_share < 1:
        if plan.strategy.peer is not None:
            raise ConfigError(f"token_share: strategy {strategy} needs all patches of a frame")
        if not _is_plain(tower):
            raise ConfigError(
                f"token_share: {name} needs all of its patches: only a plain vision transformer does without some"
            )


@contextmanager
def spared(model: VideoClassifier, settings: TrainConfig) -> Iterator[None]:
    """Let the training steps within the block keep less for gradients, and leave out what nothing reads.

    Losses and gradients stay what they were. With `checkpointing` a step keeps the input of each block alone, and computes the
    rest again. With `token_share` a step sees a part of the patches of each frame.
    """
    tower, plan = model.tower, model.plan
    with ExitStack() as undo:
        for module in tower.modules():
            if isinstance(module, QuickGELU):
                undo.enter_context(replaced_forward(module, quick_gelu))
            elif isinstance(module, nn.LayerNorm) and not settings.checkpointing:
                undo.callback(module.register_forward_hook(remember_source).remove)
        needs_patches = plan.strategy.peer is not None or plan.strategy.adapter == "st"
        for module in () if needs_patches else _read_by_class_token(tower):
            undo.callback(module.register_forward_pre_hook(only_class_token).remove)
        if settings.token_share < 1:
            path, _ = token_entry(tower, plan.blocks[0].block, is_first=True)
            entry = tower.get_submodule(path)
            dropping = PatchDropping(settings.token_share, plan.tower.prefix)
            undo.callback(entry.register_forward_pre_hook(dropping).remove)
        if settings.checkpointing:
            owners = {tower.get_submodule(block.block.owner): None for block in plan.blocks}
            for module in owners:
                undo.enter_context(replaced_forward(module, Checkpointed(module.forward)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block a module computes with another function. Its hooks stay."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


class Checkpointed:
    """The forward of a module, of which a training step keeps the inputs alone, and computes the rest again."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **options)
        call = call_in_progress()  # of which the hooks inside ask, when the module computes again
        contexts = lambda: (nullcontext(), in_call(call))  # noqa: E731  two contexts: now, and then
        return checkpoint(
            self.forward, *inputs, use_reentrant=False, context_fn=contexts, **options
        )


def only_class_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook of what follows the last attention where token 0 is the feature: the module sees that token alone.

    The residual stream adds the result to all tokens. Nothing reads the other tokens, and none of them has a gradient.
    Without gradients the module sees all tokens.
    """
    return (inputs[0][:, :1], *inputs[1:]) if torch.is_grad_enabled() else inputs


def _read_by_class_token(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of the last block that need no token but the first; none where the feature is another.

    A class derived from timm's may read more: the distilled one reads its second token too.
    """
    if (
        type(tower) is not VisionTransformer
        or tower.global_pool != "token"
        or tower.attn_pool is not None
    ):
        return ()
    last: Any = tower.blocks[-1]
    is_plain = type(last) is Block and type(last.attn) is Attention
    return (last.attn.proj, last.norm2) if is_plain else ()


def _is_plain(tower: nn.Module) -> bool:
    """Whether every block is that of a plain vision transformer, whose attention does without some patches."""
    return isinstance(tower, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention for block in tower.blocks
    )


class PatchDropping:
    """A forward pre-hook of the module that all tokens enter by: a random `share` of the patches of a clip goes on.

    They are the same in all frames of the clip, so that a temporal head finds them in the frame that it reads.
    """

    def __init__(self, share: float, prefix: int) -> None:
        self.share, self.prefix = share, prefix

    def __call__(self, entry: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None or not torch.is_grad_enabled():
            return inputs
        tokens, *others = inputs  # (B*T, N, D)
        patches = tokens.shape[1] - self.prefix
        drawn = torch.rand(call.clips, patches, device=tokens.device).argsort(1)
        count = max(1, round(self.share * patches))
        kept = drawn[:, :count].sort(1).values + self.prefix
        first = torch.arange(self.prefix, device=tokens.device).expand(call.clips, -1)
        index = torch.cat([first, kept], 1).repeat_interleave(call.frames, 0)  # (B*T, P + count)
        return (tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2])), *others)
