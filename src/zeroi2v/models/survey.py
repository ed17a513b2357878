"""What does a tower consist of? Attention blocks, sites of adapters, tokens and norms.

Blocks are recognised by their structure, so a tower that timm adds needs no entry here. The file
`families.py` holds what single families of towers do differently.

A linear is a linear layer, `nn.Linear`.

Shapes: B pictures, N tokens per picture, D channels; H, W rows and columns of a map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from timm.layers.attention import Attention
from timm.layers.norm import LayerNorm2d
from timm.models.davit import SpatialBlock as DaViTBlock
from timm.models.vision_transformer import Block as PlainBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.volo import VOLO
from torch import Tensor, nn

from zeroi2v.errors import TowerError, how_many
from zeroi2v.method.relocate import FusedLayout
from zeroi2v.models.families import (
    MLP,
    HeadChannels,
    find_mlps,
    is_attention,
    is_separate_attention,
    mixes_pictures,
    read_heads,
)
from zeroi2v.models.pictures import image_size, normalisation

MANY_TOKENS: Final = ("", "align", "merge")  # values of timm's global_pool that pool no tokens
SEE_SUPPORTED: Final = "; zeroi2v.supported_towers() lists what works"


@dataclass(frozen=True)
class Site:
    """The linears beside which an adapter sits, and which absorb the adapter in a merge.

    Modules are named by their path in the tower.
    """

    module: str  # the adapter sees the input or the output of this module
    linears: tuple[str, ...]
    inputs: int  # channels that each linear reads
    outputs: tuple[int, ...]  # channels that each linear makes
    channels: int  # channels of the tensor that the adapter sees
    bias: bool  # whether every linear stores a bias, and so can absorb the bias of an adapter
    after_norm: bool = False  # `module` is a norm that feeds the linears: adapt the norm's output


@dataclass(frozen=True)
class Block:
    """An attention block of a tower: an attention module, and the MLP that follows.

    The sites `up` and `down` are missing where the MLP consists of convolutions, and where the MLP
    belongs to another block.
    """

    name: str  # path of the attention module in the tower
    owner: str  # path of the module that calls the attention module
    head_channels: HeadChannels
    sites: Mapping[str, Site]
    entry: str  # path of the module whose input holds every token that the block will see
    entry_channel_axis: int  # axis of the input of `entry` that holds the channels

    @property
    def layout(self) -> FusedLayout:
        """How the output of the fused projection holds q, k and v."""
        return self.head_channels.layout

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.sites["qkv"].inputs


@dataclass(frozen=True)
class Survey:
    """What temporal heads, adapters and the classifier must know of a tower."""

    blocks: tuple[Block, ...]  # the blocks whose heads can be temporal, in order
    spatial_blocks: tuple[str, ...]  # paths of the attention modules that must stay spatial
    prefix: int  # number of class and register tokens, which come before the patches
    has_class_token: bool
    feature_width: int  # channels of the feature of a picture
    norm_parameters: frozenset[str]  # names of the parameters of the norms after the last block
    image_size: int  # pixels along a side of a picture
    mean: tuple[float, ...]  # of the pixels, per colour, for pixels of 0..1
    std: tuple[float, ...]
    is_plain: bool  # whether every block is a plain vision transformer's, as timm builds it
    block_type: str  # type of the first block; type of the tower where the tower lists no blocks

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Number of heads of each block."""
        return tuple(block.layout.head_count for block in self.blocks)


def survey(tower: nn.Module, name: str) -> Survey:
    """Describe a tower; `name` stands for the tower in messages.

    TowerError if no attention block has keys and values that can be moved head by head, if a block
    mixes the pictures of a batch, or if the tower gives no single feature per picture.
    """
    movable, spatial = _attention_modules(tower, name)
    if getattr(tower, "global_pool", None) in MANY_TOKENS:
        raise TowerError(
            f"{name}: gives no single feature per picture; "
            "tower_options={'global_pool': 'avg'} makes the tower give a single feature"
        )
    norms = {parameter for norm in final_norms(tower) for parameter in norm.parameters()}
    mean, std = normalisation(tower)
    return Survey(
        blocks=_blocks(tower, movable),
        spatial_blocks=spatial,
        prefix=prefix_tokens(tower),
        has_class_token=_class_token(tower) is not None,
        feature_width=feature_width(tower),
        norm_parameters=frozenset(
            key for key, parameter in tower.named_parameters() if parameter in norms
        ),
        image_size=image_size(tower),
        mean=mean,
        std=std,
        is_plain=_is_plain(tower),
        block_type=type(next(iter(_listed_blocks(tower)), tower)).__name__,
    )


def _listed_blocks(tower: nn.Module) -> tuple[nn.Module, ...]:
    """The modules in the list `blocks` of a tower. Only some towers have this list."""
    blocks = getattr(tower, "blocks", None)
    return (*blocks,) if isinstance(blocks, nn.Sequential | nn.ModuleList) else ()


def _is_plain(tower: nn.Module) -> bool:
    """Whether every block is a plain vision transformer's. Such blocks take any set of patches."""
    return isinstance(tower, VisionTransformer) and all(
        type(block) is PlainBlock and type(block.attn) is Attention
        for block in _listed_blocks(tower)
    )


def _attention_modules(
    tower: nn.Module, name: str
) -> tuple[dict[str, HeadChannels], tuple[str, ...]]:
    """The attention modules whose heads can be temporal, by path; and the paths of all others.

    TowerError if no attention module can have temporal heads, or if a module mixes the pictures of
    a batch.
    """
    movable: dict[str, HeadChannels] = {}
    reasons: dict[str, str] = {}  # path of an attention module -> why the module stays spatial
    mixed = False
    for path, module in tower.named_modules():
        if is_attention(module):
            heads = read_heads(module)
        elif is_separate_attention(module):
            heads = "has no fused qkv projection"
        else:
            continue
        if isinstance(heads, HeadChannels):
            movable[path] = heads
        else:
            reasons[path] = f"{type(module).__name__} {heads}"
            mixed = mixed or mixes_pictures(module)
    if mixed or not movable:
        total = len(movable) + len(reasons)
        text = "; ".join(
            f"{reason} ({count} of {how_many(total, 'block')})"
            for reason, count in Counter(reasons.values()).items()
        )
        text = text or "no attention with a fused qkv projection"
        raise TowerError(f"{name}: {text}{SEE_SUPPORTED}")
    return movable, tuple(reasons)


def _blocks(tower: nn.Module, movable: Mapping[str, HeadChannels]) -> tuple[Block, ...]:
    """The blocks of the attention modules of these paths, in order.

    Each block takes the next MLP of the module that calls the attention module.
    """
    paths = {module: path for path, module in tower.named_modules()}
    owners = {path: _owner(tower, path) for path in movable}
    mlps = {owner: find_mlps(owner) for owner in owners.values()}
    blocks = []
    for number, (path, heads) in enumerate(movable.items()):
        owner = owners[path]
        sites = _sites(tower.get_submodule(path), next(mlps[owner], None), paths)
        entry, channel_axis = paths[owner], _channel_axis(owner)
        if number == 0 and _has_norm_pre(tower, path):
            entry, channel_axis = "norm_pre", -1
        blocks.append(Block(path, paths[owner], heads, sites, entry, channel_axis))
    return tuple(blocks)


def _owner(tower: nn.Module, path: str) -> nn.Module:
    """The module that calls an attention module: the nearest parent that is not a list."""
    while True:
        path = path.rpartition(".")[0]
        module = tower.get_submodule(path)
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            return module


def _sites(attention: Any, mlp: MLP | None, paths: Mapping[nn.Module, str]) -> dict[str, Site]:
    """The sites of a block, by name."""

    def site(
        module: nn.Module, linears: Sequence[nn.Linear], channels: int, after_norm: bool = False
    ) -> Site:
        return Site(
            module=paths[module],
            linears=tuple(paths[linear] for linear in linears),
            inputs=linears[0].in_features,
            outputs=tuple(linear.out_features for linear in linears),
            channels=channels,
            bias=all(linear.bias is not None for linear in linears),
            after_norm=after_norm,
        )

    qkv, proj = attention.qkv, attention.proj
    sites = {
        "qkv": site(qkv, (qkv,), qkv.in_features),
        "proj": site(proj, (proj,), proj.out_features),
    }
    if mlp is not None:
        sites["up"] = site(mlp.entry, mlp.up, mlp.up[0].in_features, mlp.entry_is_norm)
        sites["down"] = site(mlp.down, (mlp.down,), mlp.down.out_features)
    return sites


def _has_norm_pre(tower: nn.Module, path: str) -> bool:
    """Whether all tokens pass through `norm_pre` before they reach the attention module at `path`.

    A vision transformer of timm calls `norm_pre` after the position embedding was added.
    """
    children = [name for name, _ in tower.named_children()]
    return "norm_pre" in children[: children.index(path.partition(".")[0])]


def _channel_axis(owner: nn.Module) -> int:
    """The axis of a block's input that holds the channels: 1 of a map (B, D, H, W), else -1."""
    normed_as_map = any(
        isinstance(child, nn.BatchNorm2d | LayerNorm2d) for child in owner.children()
    )
    return 1 if normed_as_map or isinstance(owner, DaViTBlock) else -1


def _class_token(tower: nn.Module) -> Tensor | None:
    """The weights of the class token that a tower's blocks see; None if there is no such token."""
    if isinstance(tower, VOLO):
        return None  # the class token joins after the last block whose heads can be temporal
    embeds: Any = getattr(tower, "embeds", None)  # NaFlexViT keeps the class token in `embeds`
    holders = (
        (tower, "cls_token"),
        (tower, "cls_token_0"),  # CrossViT has a class token for each branch
        (embeds, "cls_token"),
    )
    for holder, name in holders:
        token = getattr(holder, name, None)
        if isinstance(token, Tensor):
            return token
    return None


def prefix_tokens(tower: nn.Module) -> int:
    """The number of class and register tokens, which come before the tokens of the patches."""
    stated = getattr(tower, "num_prefix_tokens", None)
    if isinstance(stated, int):
        return stated
    token = _class_token(tower)
    return 0 if token is None else token.shape[1]  # PiT: (1, class and distillation token, D)


def flat_tokens(tower: nn.Module, features: Tensor | list[Tensor]) -> Tensor:
    """The tokens (B, N, D) in the output of a tower's `forward_features`.

    A map (B, D, H, W), or (B, H, W, D) where the tower says so, is flattened to N = H * W tokens.
    TowerError if the tower gives several sets of tokens, which differ in width.
    """
    if not isinstance(features, Tensor):
        raise TowerError(
            f"{type(tower).__name__} has {len(features)} branches of tokens, "
            "each of its own width; model.features gives one feature per frame"
        )
    if features.ndim == 3:
        return features
    if getattr(tower, "output_fmt", None) == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def final_norms(tower: nn.Module) -> list[nn.Module]:
    """The norms with weights between the last block and the feature of a picture.

    The list is empty where a tower ends in a convolution or in its last block.
    """
    return [
        norm
        for norm in _modules_after_blocks(tower)
        if not isinstance(norm, nn.Sequential) and list(norm.parameters(recurse=False))
    ]


def _modules_after_blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The modules after the last block that have one of timm's names for a norm there."""
    for holder in (tower, getattr(tower, "head", None), getattr(tower, "encoder", None)):
        for name in ("norm", "fc_norm", "neck"):
            norm = getattr(holder, name, None)
            if isinstance(norm, nn.ModuleList):  # a norm for each branch of the tower
                yield from norm
            elif isinstance(norm, nn.Module):
                yield norm


def feature_width(tower: nn.Module) -> int:
    """Channels of the feature of a picture."""
    width: Any = getattr(tower, "head_hidden_size", None) or tower.num_features
    return int(width)
