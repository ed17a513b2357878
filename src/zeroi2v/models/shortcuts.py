"""What need a training step not do? What the tower makes that no gradient and no feature needs, and, if asked, some that they do.

Hooks again, and for QuickGELU another way to write the same formula, which merging takes back; evaluation does all of it.
Shapes: B clips, T frames, N tokens per frame, the first P of them class and register tokens, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.activations import QuickGELU
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zeroi2v.errors import ConfigError
from zeroi2v.method.gradients import NormSource, quick_gelu
from zeroi2v.method.relocate import ClipCount
from zeroi2v.models.towers import find_blocks, prefix_tokens, token_entry


def spare_memory(
    tower: nn.Module, count: ClipCount, *, needs_patches: bool
) -> list[RemovableHandle]:
    """Let training steps keep less, and leave out what nothing reads. Their losses and gradients stay what they were.

    `needs_patches`: an adapter in the last block reads more of a frame than the token it gives.
    """
    for module in tower.modules():
        if isinstance(module, QuickGELU):
            setattr(module, "forward", quick_gelu)  # noqa: B010  the same formula, whose gradient keeps less
    norms = (module for module in tower.modules() if isinstance(module, nn.LayerNorm))
    handles = [norm.register_forward_hook(NormSource(count).hook) for norm in norms]
    if not needs_patches:
        shortcut = OnlyClassToken(count)
        handles += [
            module.register_forward_pre_hook(shortcut.hook)
            for module in _read_by_class_token(tower)
        ]
    return handles


def plain_again(tower: nn.Module) -> None:
    """Give activations back their own way to be written."""
    for module in tower.modules():
        vars(module).pop("forward", None)


class OnlyClassToken:
    """A forward pre-hook of what comes after the last attention, where token 0 is the feature: it works out that token alone.

    The residual stream takes the result in for all tokens; of the others nothing is read, and none has a gradient.
    """

    def __init__(self, count: ClipCount) -> None:
        self.count = count

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][:, :1], *inputs[1:]) if self.count.trains else inputs


def _read_by_class_token(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of the last block that need no token but the first; none where the feature is another, or the block no plain one.

    A class derived from timm's may read more, as the distilled one does its second token.
    """
    if (
        type(tower) is not VisionTransformer
        or tower.global_pool != "token"
        or tower.attn_pool is not None
    ):
        return ()
    last: Any = tower.blocks[-1]
    return (
        (last.attn.proj, last.norm2) if type(last) is Block and type(last.attn) is Attention else ()
    )


class PatchDropping:
    """A forward pre-hook of the module that all tokens enter by: a training step sees a random `share` of a clip's patches.

    They are the same in all frames of the clip, so that a temporal head finds them in the frame that it reads.
    """

    def __init__(self, count: ClipCount, share: float, prefix: int) -> None:
        self.count, self.share, self.prefix = count, share, prefix

    def hook(self, entry: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = inputs  # (B*T, N, D)
        if not self.count.trains:
            return inputs
        patches = tokens.shape[1] - self.prefix
        drawn = torch.rand(self.count.clips, patches, device=tokens.device).argsort(1)
        kept = drawn[:, : max(1, round(self.share * patches))].sort(1).values + self.prefix
        first = torch.arange(self.prefix, device=tokens.device).expand(self.count.clips, -1)
        index = torch.cat([first, kept], 1).repeat_interleave(
            self.count.frames, 0
        )  # (B*T, P + kept)
        return (tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2])), *others)


def drop_patches(tower: nn.Module, count: ClipCount, share: float, name: str) -> RemovableHandle:
    """Let training steps see a share of the patches. ConfigError if the tower's attention counts on all of them."""
    plain = isinstance(tower, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention for block in tower.blocks
    )
    if not plain:
        raise ConfigError(
            f"token_share: {name} needs all of its patches: only a plain vision transformer does without some"
        )
    entry, _ = token_entry(tower, find_blocks(tower, name))
    return entry.register_forward_pre_hook(PatchDropping(count, share, prefix_tokens(tower)).hook)


def checkpoint_blocks(tower: nn.Module, count: ClipCount, name: str) -> None:
    """Let a training step keep the input of each block alone and work out the rest again. ConfigError if timm has no way for it."""
    setter: Any = getattr(tower, "set_grad_checkpointing", None)
    try:
        if setter is not None:
            setter(True)
    except AssertionError as error:  # how timm says that a model has none
        raise ConfigError(f"checkpointing: {name} cannot be checkpointed: {error}") from error
    if setter is None:
        raise ConfigError(f"checkpointing: {name} cannot be checkpointed")
    count.checkpointed = True
