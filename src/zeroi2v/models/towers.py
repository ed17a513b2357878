"""Which image transformers can be adapted, and where? A timm tower, its attention blocks and their adapter sites.

Blocks are found by structure, so a name that timm adds needs nothing here; `families.py` holds what the families do differently.
`towers.json` lists the names for which that works, for every attention block or for some, because building all of them takes
minutes; a slow test holds the two together.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import load_file
from timm.layers.norm import LayerNorm2d
from timm.models.davit import SpatialBlock as DaViTBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.volo import VOLO
from torch import Tensor, nn

from zeroi2v.config import ModelConfig
from zeroi2v.errors import ConfigError, TowerError, nearest
from zeroi2v.method.relocate import FusedLayout
from zeroi2v.models.families import (
    MLP,
    HeadPlaces,
    find_mlps,
    is_attention,
    is_separate_attention,
    mixes_pictures,
    read_heads,
)
from zeroi2v.models.weights import load_tower_weights

TINY_NAME: Final = "zeroi2v_tiny"
TINY_FILE: Final = Path(__file__).with_name("zeroi2v_tiny.safetensors")
TINY: Final = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 12}
NAMES_FILE: Final = Path(__file__).with_name("towers.json")  # written by benchmarks/towers.py
NOT_OPTIONS: Final = (
    "cache_dir",
    "checkpoint_path",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)
OFFLINE: Final = "; connect, or give pretrained=False"
NO_VECTOR: Final = ("", "align", "merge")  # poolings that leave many tokens of a picture


REFUSALS: Final = (
    AssertionError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)  # timm's, of options


@dataclass(frozen=True)
class Site:
    """A place for an adapter: the linears that absorb the adapter in a merge, and the module whose input or output it sees.

    Modules are named by their path in the tower. `feeds`: an adapter before the linears sees the output of `module`, which is
    a norm, not its input.
    """

    module: str
    linears: tuple[str, ...]
    inputs: int  # channels that the linears read
    outputs: tuple[int, ...]  # channels that each linear makes
    channels: int  # of what an adapter sees here
    bias: bool  # whether every linear stores a bias, so that it can absorb the bias of an adapter
    feeds: bool = False


@dataclass(frozen=True)
class Block:
    """An attention block of a tower. Without sites `up` and `down` its MLP is made of convolutions, or is another block's."""

    name: str  # path of the attention module in the tower
    owner: str  # path of the module that calls the attention module
    heads: HeadPlaces
    sites: Mapping[str, Site]

    @property
    def layout(self) -> FusedLayout:
        """How the output of the fused projection holds q, k and v."""
        return self.heads.layout

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.sites["qkv"].inputs


@dataclass(frozen=True)
class Survey:
    """What a tower consists of, as far as temporal heads and adapters need to know. Made once for a tower."""

    blocks: tuple[Block, ...]  # whose heads can be temporal, in order
    spatial_blocks: tuple[
        str, ...
    ]  # paths of the attention modules that stay spatial, without adapters
    prefix: int  # class and register tokens before those of the patches
    has_class_token: bool
    feature_width: int  # channels of the frame feature
    norm_parameters: frozenset[str]  # names of the parameters of the norms after the last block

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Heads of each block."""
        return tuple(block.layout.head_count for block in self.blocks)


def open_tower(config: ModelConfig) -> tuple[nn.Module, ModelConfig]:
    """The tower that a configuration names, with its weights, ready to take tubelets; and the configuration to save with it.

    Weights from a file travel with the saved model, so the saved configuration names neither the file nor pretrained weights.
    """
    by_name = config.pretrained and config.weights is None
    tower = build_tower(config.tower, pretrained=by_name, options=config.tower_options)
    if config.weights is not None:
        load_tower_weights(tower, config.weights)
        config = dataclasses.replace(config, pretrained=False, weights=None)
    inflate(tower, config.tubelet, config.tower)
    return tower, config


def build_tower(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """The timm model of this name without its classifier, in eval mode. TowerError says why it cannot be had."""
    for option in NOT_OPTIONS:
        if option in options:
            raise ConfigError(
                f"tower_options: {option} is not for the tower's shape; see weights and pretrained"
            )
    size = options.get("img_size", 1)
    if not isinstance(size, int) and len(set(size)) > 1:
        raise ConfigError(f"tower_options: img_size must be square, got {size}")
    if name == TINY_NAME:
        return tiny_tower(pretrained=pretrained, **options)
    base = name.partition(".")[0]
    known = {*supported_towers(), *partly_covered_towers()}
    if not timm.is_model(base):
        raise TowerError(f"unknown tower {name!r}{nearest(base, known)}")
    try:
        if base not in known:  # say why before any weights are fetched
            with torch.device("meta"):
                survey(timm.create_model(base, pretrained=False, num_classes=0, **options), name)
        tower = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except REFUSALS as error:
        raise ConfigError(f"tower_options of {name}: {error or 'timm refuses them'}") from error
    except (
        OSError,
        RuntimeError,
    ) as error:  # what the Hub's client raises offline, and timm for a tag it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = OFFLINE if pretrained else ""
        raise TowerError(f"{name} cannot be had: {reason}{remedy}") from error
    tower.eval()
    if not isinstance(tower, nn.Module):
        raise TowerError(f"{name}: timm gave no module")
    if "img_size" in options:
        _note_image_size(tower, size if isinstance(size, int) else size[0])
    return tower


def tiny_tower(*, pretrained: bool, **options: Any) -> VisionTransformer:
    """The embedded tower. Its heads are 8 channels wide, where explicit attention is three times as fast as the fused kernel."""
    try:
        tower = VisionTransformer(**{**TINY, "num_classes": 0, "global_pool": "token", **options})
    except (*REFUSALS, RuntimeError) as error:
        raise ConfigError(
            f"tower_options of {TINY_NAME}: {error or 'timm refuses them'}"
        ) from error
    attentions: Any = (block.attn for block in tower.blocks)
    for attention in attentions:
        attention.fused_attn = False
    setattr(tower, "pretrained_cfg", {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})  # noqa: B010  nn.Module types it a Tensor
    if pretrained:
        if options:
            raise ConfigError(
                f"{TINY_NAME}: its weights fit no other shape; drop tower_options, or give pretrained=False"
            )
        tower.load_state_dict(load_file(TINY_FILE))
    return tower.eval()


def inflate(tower: nn.Module, tubelet: int, name: str) -> None:
    """Let the patch embedding take `tubelet` frames, side by side in the channel axis: a 3-D convolution, written as a 2-D one.

    Its weights for each frame are the image tower's divided by `tubelet`, so that a still clip gives what its picture gives.
    """
    if tubelet == 1:
        return
    entries = [
        module
        for module in tower.modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    ]
    if not entries:
        raise ConfigError(f"tubelet: {name} has no convolution that takes pictures")
    for entry in entries:
        entry.weight = nn.Parameter(entry.weight.detach().repeat(1, tubelet, 1, 1) / tubelet)
        entry.in_channels *= tubelet


def survey(tower: nn.Module, name: str) -> Survey:
    """Find every attention block whose keys and values can be moved head by head.

    TowerError if there is none, if a block mixes the pictures of a batch, or if the tower gives no vector per picture.
    """
    movable: list[tuple[str, Any, HeadPlaces]] = []
    refused: dict[str, str] = {}  # path -> reason
    mixes = False
    for path, module in tower.named_modules():
        heads = _heads(module)
        if isinstance(heads, HeadPlaces):
            movable.append((path, module, heads))
        elif heads is not None:
            refused[path] = f"{type(module).__name__} {heads}"
            mixes = mixes or mixes_pictures(module)
    if mixes or not movable:
        total = len(movable) + len(refused)
        counts = Counter(refused.values())
        reasons = "; ".join(f"{why} ({count} of {total} blocks)" for why, count in counts.items())
        raise TowerError(
            f"{name}: {reasons or 'no attention with a fused qkv projection'}; "
            "zeroi2v.supported_towers() lists what works"
        )
    if getattr(tower, "global_pool", None) in NO_VECTOR:
        raise TowerError(
            f"{name}: gives no one vector per picture; tower_options={{'global_pool': 'avg'}} makes it"
        )
    paths = {module: path for path, module in tower.named_modules()}
    owners = {path: owner(tower, path) for path, _, _ in movable}
    mlps = {module: list(find_mlps(module)) for module in owners.values()}
    blocks = tuple(
        _block(path, attention, heads, owners[path], mlps[owners[path]], paths)
        for path, attention, heads in movable
    )
    norms = {parameter for norm in final_norms(tower) for parameter in norm.parameters()}
    return Survey(
        blocks=blocks,
        spatial_blocks=tuple(refused),
        prefix=prefix_tokens(tower),
        has_class_token=_class_token(tower) is not None,
        feature_width=feature_width(tower),
        norm_parameters=frozenset(
            key for key, parameter in tower.named_parameters() if parameter in norms
        ),
    )


def _heads(module: nn.Module) -> HeadPlaces | str | None:
    """Where the heads of an attention module lie, or why they cannot be moved one by one. None: the module is no attention."""
    if is_attention(module):
        return read_heads(module)
    return "has no fused qkv projection" if is_separate_attention(module) else None


def owner(tower: nn.Module, path: str) -> nn.Module:
    """The module that calls an attention module: the nearest module above it that is no list."""
    while True:
        path = path.rpartition(".")[0]
        module = tower.get_submodule(path)
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            return module


def _block(
    path: str,
    attention: Any,
    heads: HeadPlaces,
    caller: nn.Module,
    mlps: list[MLP | None],
    paths: Mapping[nn.Module, str],
) -> Block:
    """The block of an attention module, with the next MLP of its caller, which is taken off the list `mlps`."""

    def site(module: nn.Module, linears: Sequence[nn.Linear], channels: int, feeds: bool) -> Site:
        return Site(
            module=paths[module],
            linears=tuple(paths[linear] for linear in linears),
            inputs=linears[0].in_features,
            outputs=tuple(linear.out_features for linear in linears),
            channels=channels,
            bias=all(linear.bias is not None for linear in linears),
            feeds=feeds,
        )

    qkv, proj = attention.qkv, attention.proj
    sites = {
        "qkv": site(qkv, (qkv,), qkv.in_features, False),
        "proj": site(proj, (proj,), proj.out_features, False),
    }
    mlp = mlps.pop(0) if mlps else None
    if mlp is not None:
        sites["up"] = site(mlp.entry, mlp.up, mlp.up[0].in_features, mlp.entry_is_norm)
        sites["down"] = site(mlp.down, (mlp.down,), mlp.down.out_features, False)
    return Block(path, paths[caller], heads, sites)


def _class_token(tower: nn.Module) -> Tensor | None:
    if isinstance(tower, VOLO):
        return None  # it joins after the last block whose heads can be moved
    embeds: Any = getattr(
        tower, "embeds", None
    )  # where NaFlexViT keeps it, with its position embedding
    for holder, name in (
        (tower, "cls_token"),
        (tower, "cls_token_0"),
        (embeds, "cls_token"),
    ):  # CrossViT has one per branch
        token = getattr(holder, name, None)
        if isinstance(token, Tensor):
            return token
    return None


def prefix_tokens(tower: nn.Module) -> int:
    """How many class and register tokens come before the patches'."""
    stated = getattr(tower, "num_prefix_tokens", None)
    if isinstance(stated, int):
        return stated
    token = _class_token(tower)
    return 0 if token is None else token.shape[1]  # PiT: (1, class and distillation, D)


def token_entry(tower: nn.Module, block: Block, *, is_first: bool) -> tuple[str, int]:
    """The path of the module whose input is every token that a block will see; and which axis holds their channels.

    For the first block the module is the pre-norm of a vision transformer, after the position embedding. Elsewhere it is the
    block itself: what comes before, such as stages of convolutions, has another width.
    """
    children = [name for name, _ in tower.named_children()]
    if is_first and "norm_pre" in children[: children.index(block.name.partition(".")[0])]:
        return "norm_pre", -1
    module = tower.get_submodule(block.owner)
    normed_as_map = any(
        isinstance(child, nn.BatchNorm2d | LayerNorm2d) for child in module.children()
    )
    as_map = normed_as_map or isinstance(module, DaViTBlock)  # (B, D, H, W)
    return block.owner, 1 if as_map else -1


def flat_tokens(tower: nn.Module, features: Tensor | list[Tensor]) -> Tensor:
    """What `forward_features` gives, as tokens (B, N, D): a map (B, D, H, W), or (B, H, W, D) where the tower says so, is flattened.

    TowerError if the tower gives several sets of tokens, of different widths.
    """
    if not isinstance(features, Tensor):
        raise TowerError(
            f"{type(tower).__name__} has {len(features)} branches of tokens, each of its own width"
        )
    if features.ndim == 3:
        return features
    if getattr(tower, "output_fmt", None) == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def final_norms(tower: nn.Module) -> list[nn.Module]:
    """The norms between the last block and the frame feature; empty where the tower ends in a convolution or in its last block."""
    return [
        norm
        for norm in _final_norms(tower)
        if not isinstance(norm, nn.Sequential) and list(norm.parameters(recurse=False))
    ]


def _final_norms(tower: nn.Module) -> Iterator[nn.Module]:
    for holder in (tower, getattr(tower, "head", None), getattr(tower, "encoder", None)):
        for name in ("norm", "fc_norm", "neck"):
            norm = getattr(holder, name, None)
            if isinstance(norm, nn.ModuleList):  # one per branch
                yield from norm
            elif isinstance(norm, nn.Module):
                yield norm


def feature_width(tower: nn.Module) -> int:
    """Channels of the frame feature."""
    width: Any = getattr(tower, "head_hidden_size", None) or tower.num_features
    return int(width)


def image_size(tower: nn.Module) -> int:
    """Pixels along a side of the square picture that the tower takes."""
    size = getattr(getattr(tower, "patch_embed", None), "img_size", None)
    if size is None:
        size = tower.pretrained_cfg["input_size"][1:]  # type: ignore[index]  # a dict, seen through nn.Module
    return int(size[0])


def set_image_size(tower: nn.Module, size: int, name: str) -> None:
    """Make a tower take frames of `size` pixels a side. ConfigError if it cannot."""
    setter = getattr(tower, "set_input_size", None)
    if setter is None:
        raise ConfigError(
            f"{name} cannot change its image size; it takes {image_size(tower)} pixels"
        )
    patch = getattr(getattr(tower, "patch_embed", None), "patch_size", (1, 1))
    if size % patch[0] or size % patch[1]:
        raise ConfigError(
            f"{name} does not take frames of {size} pixels: its patches are {patch[0]} pixels a side"
        )
    try:
        setter(img_size=(size, size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip() or "it does not fit its patches"
        raise ConfigError(f"{name} does not take frames of {size} pixels: {reason}") from error
    _note_image_size(tower, size)


def _note_image_size(tower: Any, size: int) -> None:
    """Write the size into the tower's configuration, where `image_size` finds it: not every tower keeps it elsewhere."""
    tower.pretrained_cfg = {**tower.pretrained_cfg, "input_size": (3, size, size)}


def normalisation(tower: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour, from the tower's own configuration, for pixels of 0..1."""
    config: Any = tower.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])


@functools.cache
def _listed(key: str) -> frozenset[str]:
    """The names under this key of `towers.json` that this version of timm has."""
    names = json.loads(NAMES_FILE.read_text(encoding="utf-8"))[key]
    return frozenset({*names} & {*timm.list_models()})


def supported_towers() -> list[str]:
    """The names, sorted, of the towers whose every attention block can be temporal: timm's, and the embedded tower."""
    return sorted({TINY_NAME, *_listed("every_block")})


def partly_covered_towers() -> list[str]:
    """The names, sorted, of timm's towers some of whose attention blocks can be temporal; the others stay spatial."""
    return sorted(_listed("some_blocks"))
