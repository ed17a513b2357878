"""How does an attention module of timm lay out its heads, and which linears does its MLP have? What the families do differently.

An attention module is one with a `qkv`. Most are alike: one linear that gives [(q, k, v), head, channel], as many heads as
`num_heads` says, one linear `proj`. The others are told by what they declare (`key_dim`, `head_first`), or are named here.
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
NOT_PER_HEAD: Final = {  # attention with a fused projection that equations 7-9 do not describe
    "timm.models.cait.TalkingHeadAttn": "mixes the attention maps of all heads",
    "timm.models.coat.FactorAttnConvRelPosEnc": "is linear attention, with a convolution of v beside it",
    MIXES_PICTURES: "multiplies the pictures of a batch, not the tokens of a picture",
    "timm.models.davit.ChannelAttention": "attends over channels",
    "timm.models.davit.ChannelAttentionV2": "attends over channels",
    "timm.models.edgenext.CrossCovarianceAttn": "attends over channels",
    "timm.models.xcit.XCA": "attends over channels",
}
SEPARATE: Final = frozenset(  # children of attention whose projections are not fused into one
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
UP: Final = ("fc1", "fc1_g", "fc1_x", "w0", "w1")  # the linears that the input of an MLP feeds
DOWN: Final = ("fc2", "w2")  # and the last one


@dataclass(frozen=True)
class HeadPlaces:
    """Where the heads of an attention module lie in the output of its fused projection, and in the input of its `proj`."""

    layout: FusedLayout
    channel_first: bool  # the input of `proj` is [channel, head] instead of [head, channel]

    @property
    def columns(self) -> Tensor:
        """The input channels of `proj` that each head makes: (H, D_v) int64."""
        heads, width = self.layout.head_count, self.layout.value_width
        channels = torch.arange(heads * width, device="cpu")
        return channels.view(width, heads).T if self.channel_first else channels.view(heads, width)


def type_name(module: nn.Module) -> str:
    """The module's type with its home, `timm.models.xcit.XCA`."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_attention(module: nn.Module) -> bool:
    """Whether this is attention with a fused projection, of whatever kind."""
    return isinstance(getattr(module, "qkv", None), nn.Module)


def is_separate_attention(module: nn.Module) -> bool:
    """Whether this is attention without a fused projection. What pools a tower's output is not meant."""
    children = dict(module.named_children())
    return (
        "qkv" not in children
        and not SEPARATE.isdisjoint(children)
        and not isinstance(module, AttentionPoolLatent)
    )


def mixes_pictures(module: nn.Module) -> bool:
    """Whether this attention makes one picture of a batch depend on another."""
    return type_name(module) == MIXES_PICTURES


def read_heads(attention: Any) -> HeadPlaces | str:
    """The heads of an attention module with a `qkv`, or why its keys and values cannot be moved head by head."""
    name = type_name(attention)
    if name in NOT_PER_HEAD:
        return NOT_PER_HEAD[name]
    qkv, proj = attention.qkv, getattr(attention, "proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear):
        return "projects with convolutions, or with a norm between"
    head_count = getattr(attention, "num_heads", getattr(attention, "heads", None))
    if not isinstance(head_count, int) or proj.in_features % head_count:
        return "does not tell its heads"
    value_width = proj.in_features // head_count
    key_width = getattr(attention, "key_dim", value_width)
    if qkv.out_features != head_count * (2 * key_width + value_width):
        return "does not project to q, k and v of its heads alone"
    head_first = bool(getattr(attention, "head_first", hasattr(attention, "key_dim")))
    layout = FusedLayout(head_count, key_width, value_width, head_first)
    return HeadPlaces(layout, channel_first=isinstance(attention, NestAttention))


@dataclass(frozen=True)
class MLP:
    """The linears of an MLP. `entry` is what they are fed through: its input, or its output if it is the MLP's own norm."""

    up: tuple[nn.Linear, ...]
    down: nn.Linear
    entry: nn.Module
    entry_is_norm: bool


def find_mlps(block: nn.Module) -> Iterator[MLP | None]:
    """The MLPs of a block in order, without those inside its attention (relative positions have some). None: one of convolutions."""
    inside = {
        part
        for attention in block.modules()
        if is_attention(attention)
        for part in attention.modules()
    }
    for module in block.modules():
        children = dict(module.named_children())
        down = [children[name] for name in DOWN if name in children]
        if module in inside or not down:
            continue
        up = tuple(linear for name in UP if isinstance(linear := children.get(name), nn.Linear))
        if up and isinstance(down[0], nn.Linear):
            first = next(iter(children.values()))
            normed = len(up) > 1 and first not in up  # ViTamin's has a norm of its own before them
            yield MLP(up, down[0], up[0] if len(up) == 1 else first if normed else module, normed)
        else:
            yield None
