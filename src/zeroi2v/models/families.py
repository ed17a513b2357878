"""Which channels belong to a head of an attention module of timm, and which linears form an MLP?

An attention module has a child `qkv`, the fused projection. Most attention modules are alike: `qkv`
is a linear whose output holds [(q, k, v), head, channel], `num_heads` is the number of heads, and
`proj` is a linear. Other attention modules declare their layout (`key_dim`, `head_first`), or this
file names their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.nest import Attention as NestAttention
from torch import Tensor, nn

from zeroi2v.method.relocate import FusedLayout

MIXES_PICTURES: Final = "timm.models.csatv2.SpatialTransformerBlock"
# Types of attention with a fused projection that equations 7-9 do not describe, and the reason.
NOT_PER_HEAD: Final = {
    "timm.models.cait.TalkingHeadAttn": "mixes the attention maps of all heads",
    "timm.models.coat.FactorAttnConvRelPosEnc": (
        "is linear attention, with a convolution of v beside it"
    ),
    MIXES_PICTURES: "multiplies the pictures of a batch, not the tokens of a picture",
    "timm.models.davit.ChannelAttention": "attends over channels",
    "timm.models.davit.ChannelAttentionV2": "attends over channels",
    "timm.models.edgenext.CrossCovarianceAttn": "attends over channels",
    "timm.models.xcit.XCA": "attends over channels",
}
SEPARATE: Final = frozenset(  # names of projections in attention without a fused projection
    [
        "q",
        "k",
        "v",
        "kv",
        "qk",
        "q_proj",
        "k_proj",
        "v_proj",
        "wq",
        "wk",
        "wv",
        "query",
        "key",
        "value",
        "to_query",
        "qkvs",
    ]
)
UP: Final = ("fc1", "fc1_g", "fc1_x", "w0", "w1")  # names of linears that read an MLP's input
DOWN: Final = ("fc2", "w2")  # names of the last linear of an MLP


@dataclass(frozen=True)
class HeadChannels:
    """Which channels each head has in the fused projection's output, and in the input of `proj`."""

    layout: FusedLayout
    channel_first: bool  # the input of `proj` holds [channel, head] instead of [head, channel]

    @property
    def columns(self) -> Tensor:
        """The input channels of `proj` that each head computes: (H, D_v) int64."""
        heads, width = self.layout.head_count, self.layout.value_width
        channels = torch.arange(heads * width, device="cpu")  # also inside torch.device("meta")
        return channels.view(width, heads).T if self.channel_first else channels.view(heads, width)


def type_name(module: nn.Module) -> str:
    """The type of a module with the Python module that defines the type: `timm.models.xcit.XCA`."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_attention(module: nn.Module) -> bool:
    """Whether a module is attention with a fused projection, of whatever kind."""
    return isinstance(getattr(module, "qkv", None), nn.Module)


def is_separate_attention(module: nn.Module) -> bool:
    """Whether a module is attention without a fused projection.

    The attention that pools the output of a tower does not count.
    """
    children = dict(module.named_children())
    return (
        "qkv" not in children
        and not SEPARATE.isdisjoint(children)
        and not isinstance(module, AttentionPoolLatent)
    )


def mixes_pictures(module: nn.Module) -> bool:
    """Whether an attention module makes one picture of a batch depend on another picture."""
    return type_name(module) == MIXES_PICTURES


def read_heads(attention: Any) -> HeadChannels | str:
    """The channels of the heads of an attention module that has a `qkv`.

    If keys and values cannot be moved head by head, the result is the reason, a text. In a message,
    the text follows the module's name.
    """
    name = type_name(attention)
    if name in NOT_PER_HEAD:
        return NOT_PER_HEAD[name]
    qkv, proj = attention.qkv, getattr(attention, "proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear):
        return "has a `qkv` or `proj` that is no linear layer"
    head_count = getattr(attention, "num_heads", getattr(attention, "heads", None))
    if not isinstance(head_count, int) or proj.in_features % head_count:
        return "does not state the number of its heads"
    value_width = proj.in_features // head_count
    key_width = getattr(attention, "key_dim", value_width)
    if qkv.out_features != head_count * (2 * key_width + value_width):
        return "has a `qkv` whose channels are not just q, k and v of its heads"
    head_first = bool(getattr(attention, "head_first", hasattr(attention, "key_dim")))
    layout = FusedLayout(head_count, key_width, value_width, head_first)
    return HeadChannels(layout, channel_first=isinstance(attention, NestAttention))


@dataclass(frozen=True)
class MLP:
    """The linears of an MLP."""

    up: tuple[nn.Linear, ...]  # the linears that read the MLP's input, side by side
    down: nn.Linear  # the last linear
    # The input of this module feeds `up`. If `entry_is_norm`, the output of the module feeds `up`.
    entry: nn.Module
    entry_is_norm: bool  # `entry` is a norm inside the MLP, before `up`


def find_mlps(block: nn.Module) -> Iterator[MLP | None]:
    """The MLPs of a block, in order. None stands for an MLP that consists of convolutions.

    An MLP inside an attention module does not count: it computes relative positions.
    """
    inside_attention = {
        part
        for attention in block.modules()
        if is_attention(attention)
        for part in attention.modules()
    }
    for module in block.modules():
        children = dict(module.named_children())
        down = next((children[name] for name in DOWN if name in children), None)
        if module in inside_attention or down is None:
            continue
        up = tuple(linear for name in UP if isinstance(linear := children.get(name), nn.Linear))
        if up and isinstance(down, nn.Linear):
            first = next(iter(children.values()))
            entry_is_norm = len(up) > 1 and first not in up  # ViTamin: a norm before two linears
            if len(up) == 1:
                entry: nn.Module = up[0]
            else:
                entry = first if entry_is_norm else module
            yield MLP(up, down, entry, entry_is_norm)
        else:
            yield None
