"""How does a training step save memory and time? `spared` installs the savings on a model.

Some savings change no result: a step keeps no tensor that can be computed again cheaply, and leaves
out tokens that neither the feature nor a gradient needs. Settings ask for other savings:
`train.checkpointing` and `train.token_share`.

The savings are installed when training begins and removed when training ends. Outside of training a
model has no savings.

Shapes: B clips, T frames, N tokens per frame, D channels. The first P tokens of a frame are the
class token and the register tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from zeroi2v.method.gradients import quick_gelu, remember_norm_input
from zeroi2v.models.exchange import FrameAttention
from zeroi2v.models.plan import Plan
from zeroi2v.models.video import VideoClassifier


def check_spared(plan: Plan, settings: TrainConfig) -> None:
    """ConfigError if a saving that the settings ask for is impossible with the model.

    The message names the setting, and the tower or the strategy that prevents the saving.
    """
    name, strategy = plan.config.tower, plan.config.strategy
    if settings.few_frames and plan.strategy.peer is not None:
        raise ConfigError(
            f"few_frames: strategy {strategy} needs all frames of a clip; leave few_frames out"
        )
    if settings.few_frames % plan.config.tubelet:
        raise ConfigError(
            f"few_frames must be a multiple of tubelet ({plan.config.tubelet}), "
            f"got {settings.few_frames}"
        )
    if settings.token_share < 1:
        if plan.strategy.peer is not None:
            raise ConfigError(
                f"token_share: strategy {strategy} needs all patches of a frame; "
                "leave token_share out"
            )
        if not plan.tower.is_plain:
            raise ConfigError(
                f"token_share: {name} needs all of its patches, because only a plain vision "
                "transformer can leave patches out; leave token_share out"
            )


@contextmanager
def spared(model: VideoClassifier, settings: TrainConfig) -> Iterator[None]:
    """Install the savings on a model for the training steps within the block.

    With `settings.checkpointing`, a step keeps only the input of each transformer block, and
    computes the other tensors of the block again for the gradient. With `settings.token_share`
    below 1, a step sees a part of the patches of each frame. Only `token_share` changes losses and
    gradients.
    """
    tower, plan = model.tower, model.plan
    with ExitStack() as undo:
        for module in tower.modules():
            if isinstance(module, QuickGELU):
                undo.enter_context(replaced_forward(module, quick_gelu))
            elif isinstance(module, nn.LayerNorm) and not settings.checkpointing:
                undo.callback(module.register_forward_hook(remember_norm_input).remove)
        reads_patches = plan.strategy.peer is not None or plan.strategy.adapter == "st"
        for module in () if reads_patches else _class_token_modules(tower):
            undo.callback(module.register_forward_pre_hook(only_class_token).remove)
        if settings.token_share < 1:
            entry = tower.get_submodule(plan.blocks[0].block.entry)
            dropping = PatchDropping(settings.token_share, plan.tower.prefix)
            undo.callback(entry.register_forward_pre_hook(dropping).remove)
        if settings.checkpointing:
            owners = {tower.get_submodule(block.block.owner): None for block in plan.blocks}
            for module in owners:
                undo.enter_context(replaced_forward(module, Checkpointed(module.forward)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the `forward` of a module within the block. The hooks of the module stay."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


class Checkpointed:
    """A `forward` for which a training step keeps only the inputs.

    For the gradient, the step computes all other tensors of this forward pass again.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **options)
        call = call_in_progress()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            """The contexts of the first and of the second computation.

            The second computation runs after the call has ended, and its hooks need the call.
            """
            return nullcontext(), in_call(call)

        return checkpoint(
            self.forward, *inputs, use_reentrant=False, context_fn=contexts, **options
        )


def only_class_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook that leaves a module the class token, token 0, and no other token.

    The hook is for modules after the last attention of a tower whose feature is the class token.
    The residual stream adds the result of such a module to all tokens. That does no harm: nothing
    reads the other tokens, so they have no gradient. Without gradients the module gets all tokens.
    """
    return (inputs[0][:, :1], *inputs[1:]) if torch.is_grad_enabled() else inputs


def _class_token_modules(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The modules after the last attention that only the class token needs.

    There are none unless the feature of the tower is its class token. A class derived from timm's
    VisionTransformer is not changed, because it may read other tokens: the distilled tower's
    feature is the mean of two tokens.
    """
    if (
        type(tower) is not VisionTransformer
        or tower.global_pool != "token"
        or tower.attn_pool is not None
    ):
        return ()
    last: Any = tower.blocks[-1]
    is_plain = type(last) is Block and type(last.attn) in (Attention, FrameAttention)
    return (last.attn.proj, last.norm2) if is_plain else ()


class PatchDropping:
    """A forward pre-hook that keeps a random share of the patches of each clip.

    The hook is for the first module that gets the tokens of the frames. All frames of a clip keep
    the same patches, because a temporal head reads the patches of another frame.

    `share` is the share of patches that stay. The first `prefix` tokens, P, stay in any case.
    """

    def __init__(self, share: float, prefix: int) -> None:
        self.share, self.prefix = share, prefix

    def __call__(self, entry: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        call = call_in_progress()
        if call is None or not torch.is_grad_enabled():
            return inputs
        tokens, *others = inputs  # (B*T, N, D)
        patches = tokens.shape[1] - self.prefix
        order = torch.rand(call.clips, patches, device=tokens.device).argsort(1)  # random
        count = max(1, round(self.share * patches))
        kept = order[:, :count].sort(1).values + self.prefix
        first = torch.arange(self.prefix, device=tokens.device).expand(call.clips, -1)
        index = torch.cat([first, kept], 1).repeat_interleave(call.frames, 0)  # (B*T, P + count)
        return (tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2])), *others)
