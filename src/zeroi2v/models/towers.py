"""Which image transformers can be adapted, and where? A timm tower, its attention blocks and their adapter sites.

Blocks are found by structure: an attention module has a fused `qkv` linear and a `proj` linear whose input is a third as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.errors import ConfigError, TowerError, nearest
from zeroi2v.method.relocate import FusedLayout

TINY_NAME: Final = "zeroi2v_tiny"
TINY_FILE: Final = Path(__file__).with_name("zeroi2v_tiny.safetensors")
TINY: Final = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 12}
FAMILIES: Final = ("vit_", "deit")
WITHOUT_FUSED_QKV: Final = frozenset(  # of those families; a slow test builds every name and holds this against it
    {
        *("vit_5b_patch16_sapiens2", "vit_base_patch16_sapiens2", "vit_giant_patch16_sapiens2"),
        *("vit_huge_patch16_sapiens2", "vit_large_patch16_sapiens2"),  # separate q, k and v
        *("vit_base_patch16_xp_224", "vit_huge_patch14_xp_224", "vit_large_patch14_xp_224"),
        *("vit_dpwee_patch16_reg1_gap_256", "vit_pwee_patch16_reg1_gap_256"),  # one projection for attention and MLP
    }
)


@dataclass(frozen=True)
class Site:
    """A place for an adapter: the linears that absorb it when merged, and the module whose input or output it sees."""

    module: nn.Module
    linears: tuple[nn.Linear, ...]
    channels: int

    @property
    def bias(self) -> bool:
        """Whether every linear here stores a bias, so that it can absorb one."""
        return all(linear.bias is not None for linear in self.linears)


@dataclass(frozen=True)
class Block:
    """An attention block of a tower."""

    name: str  # of the attention module, in the tower
    projection: nn.Linear  # the fused q, k, v projection
    layout: FusedLayout  # of its output
    columns: Tensor  # the channels (H, D) of `proj`'s input that each head makes
    prefix: int  # class and register tokens before the patches'
    sites: Mapping[str, Site]

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.projection.in_features


def build_tower(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """The timm model of this name without its classifier, in eval mode. TowerError says why it cannot be had."""
    if name == TINY_NAME:
        return tiny_tower(pretrained=pretrained, **options)
    base = name.partition(".")[0]
    supported = supported_towers()
    if not timm.is_model(base):
        raise TowerError(f"unknown tower {name!r}{nearest(base, supported)}")
    if base not in supported:
        raise TowerError(
            f"{name}: not a plain vision transformer with a fused qkv projection{nearest(base, supported)}"
        )
    try:
        tower = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"tower_options of {name}: {error or 'timm refuses them'}") from error
    except (
        OSError,
        RuntimeError,
    ) as error:  # what the Hub's client raises offline, and timm for a tag it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "; connect, or give pretrained=False" if pretrained else ""
        raise TowerError(f"{name} cannot be had: {reason}{remedy}") from error
    tower.eval()
    if not isinstance(tower, nn.Module):
        raise TowerError(f"{name}: timm gave no module")
    return tower


def tiny_tower(*, pretrained: bool, **options: Any) -> VisionTransformer:
    """The embedded tower. Its heads are 8 channels wide, where explicit attention is three times as fast as the fused kernel."""
    try:
        tower = VisionTransformer(**{**TINY, "num_classes": 0, "global_pool": "token", **options})
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"tower_options of {TINY_NAME}: {error or 'timm refuses them'}") from error
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


def find_blocks(tower: nn.Module, name: str) -> tuple[Block, ...]:
    """Every attention block, in order, with the MLP that follows it. TowerError if a tower has none."""
    trunk = getattr(tower, "blocks", nn.ModuleList())  # not what pools its output
    attentions = [(path, module) for path, module in trunk.named_modules(prefix="blocks") if _is_attention(module)]
    inside = {
        part for _, attention in attentions for part in attention.modules()
    }  # where relative positions have an MLP too
    mlps = [module for module in trunk.modules() if _is_mlp(module) and module not in inside]
    if not attentions or len(mlps) != len(attentions):
        raise TowerError(
            f"{name}: {len(attentions)} attention modules with a fused qkv projection and {len(mlps)} MLPs, "
            "so its blocks cannot be told; zeroi2v.supported_towers() lists what works"
        )
    prefix = int(getattr(tower, "num_prefix_tokens", 0))
    return tuple(_block(path, attention, mlp, prefix) for (path, attention), mlp in zip(attentions, mlps, strict=True))


def _is_attention(module: nn.Module) -> bool:
    qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
    return isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and qkv.out_features == 3 * proj.in_features


def _is_mlp(module: nn.Module) -> bool:
    return isinstance(getattr(module, "fc2", None), nn.Linear) and bool(_mlp_inputs(module))


def _mlp_inputs(mlp: nn.Module) -> tuple[nn.Linear, ...]:
    """Every linear that the MLP's input feeds: one, or the two halves of a SwiGLU."""
    linears = (getattr(mlp, name, None) for name in ("fc1", "fc1_g", "fc1_x"))
    return tuple(linear for linear in linears if isinstance(linear, nn.Linear))


def _block(name: str, attention: Any, mlp: Any, prefix: int) -> Block:
    if hasattr(
        attention, "qkv_bias_separate"
    ):  # call the projection as a module, and add its q and v biases afterwards
        attention.qkv_bias_separate = True
    qkv, proj, down, up = attention.qkv, attention.proj, mlp.fc2, _mlp_inputs(mlp)
    sites = {
        "qkv": Site(qkv, (qkv,), qkv.in_features),
        "proj": Site(proj, (proj,), proj.out_features),
        "up": Site(mlp, up, up[0].in_features),
        "down": Site(down, (down,), down.out_features),
    }
    width = proj.in_features // attention.num_heads
    columns = torch.arange(proj.in_features).view(attention.num_heads, width)
    return Block(name, qkv, FusedLayout(attention.num_heads, width, width), columns, prefix, sites)


def has_class_token(tower: nn.Module) -> bool:
    """Whether token 0 of each frame is a class token."""
    return getattr(tower, "cls_token", None) is not None


def token_entry(tower: nn.Module) -> nn.Module:
    """The module whose input is every token after the position embedding, before any pre-norm."""
    pre_norm = getattr(tower, "norm_pre", None)
    return pre_norm if isinstance(pre_norm, nn.Module) else next(tower.get_submodule("blocks").children())


def final_norms(tower: nn.Module) -> list[nn.Module]:
    """The norm, or norms, between the last block and the frame feature."""
    norms = (getattr(tower, name, None) for name in ("norm", "fc_norm"))
    return [norm for norm in norms if isinstance(norm, nn.Module)]


def feature_width(tower: nn.Module) -> int:
    """Channels of the frame feature."""
    return int(tower.num_features)  # type: ignore[arg-type]  # an int, seen through nn.Module


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
        raise ConfigError(f"{name} cannot change its image size; it takes {image_size(tower)} pixels")
    patch = getattr(getattr(tower, "patch_embed", None), "patch_size", (1, 1))
    if size % patch[0] or size % patch[1]:
        raise ConfigError(f"{name} does not take frames of {size} pixels: its patches are {patch[0]} pixels a side")
    try:
        setter(img_size=(size, size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip() or "it does not fit its patches"
        raise ConfigError(f"{name} does not take frames of {size} pixels: {reason}") from error


def normalisation(tower: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour, from the tower's own configuration, for pixels of 0..1."""
    config: Any = tower.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])


def supported_towers() -> list[str]:
    """The names that `create_model` accepts: timm's plain vision transformers, and the embedded tower."""
    plain = (name for name in timm.list_models() if name.startswith(FAMILIES) and name not in WITHOUT_FUSED_QKV)
    return sorted([TINY_NAME, *plain])
