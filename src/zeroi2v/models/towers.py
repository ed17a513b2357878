"""Which towers are there, and how is a tower opened? timm's image transformers, and a tiny tower.

`towers.json` lists the names of the towers that can be adapted in every attention block, or in
some. The list is stored, because building all towers of timm takes minutes. A slow test compares
the list with the survey of every tower.
"""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from zeroi2v.errors import CheckpointError, ConfigError, TowerError, nearest, one_line
from zeroi2v.models.pictures import inflate, note_image_size
from zeroi2v.models.survey import survey
from zeroi2v.models.weights import load_tower_weights

TINY_NAME: Final = "zeroi2v_tiny"
TINY_FILE: Final = Path(__file__).with_name("zeroi2v_tiny.safetensors")
TINY: Final = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 12}
NAMES_FILE: Final = Path(__file__).with_name("towers.json")  # benchmarks/towers.py writes the file
NOT_OPTIONS: Final = (  # arguments of timm.create_model that are no options of a tower's shape
    "cache_dir",
    "checkpoint_path",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)
OFFLINE: Final = (
    "; connect to the internet, or give pretrained=False"  # if weights cannot be fetched
)
REFUSALS: Final = (  # errors that timm raises when it refuses options
    AssertionError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """Where a tower and its weights come from."""

    name: str
    pretrained: bool  # whether timm fetches the weights, unless `weights` names a file
    weights: str | None  # the file or folder of the weights (docs/weights.md)
    options: Mapping[str, Any]  # arguments for timm
    tubelet: int  # frames from which the patch embedding makes one picture

    def open(self) -> nn.Module:
        """The tower with its weights, in eval mode. The tower takes pictures of `tubelet` frames.

        ConfigError, TowerError or CheckpointError names the setting or the file that is wrong.
        """
        by_name = self.pretrained and self.weights is None
        tower = build_tower(self.name, pretrained=by_name, options=self.options)
        if self.weights is not None:
            try:
                load_tower_weights(tower, self.weights, resize=self._as_timm_loads)
            except CheckpointError as error:
                raise CheckpointError(f"weights: {error}") from error
        if self.tubelet > 1:
            inflate(tower, self.tubelet, self.name)
        return tower

    def _as_timm_loads(self, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors as timm loads them with pretrained=True.

        timm resizes position embeddings, and tables of relative positions, to the tower's pictures.
        """
        if self.name == TINY_NAME:
            return checkpoint_filter_fn(tensors, tiny_tower(pretrained=False, **self.options))
        with warnings.catch_warnings():
            # timm's interpolation of tables warns of its speed and of its style of indexing.
            warnings.simplefilter("ignore", UserWarning)
            tower = timm.create_model(
                self.name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": tensors},
                num_classes=0,
                **self.options,
            )
        return tower.state_dict()


def build_tower(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """The timm model of this name without its classifier, in eval mode.

    `options` go to timm. ConfigError if an option does not fit the tower. TowerError if the tower
    is unknown, cannot be adapted, or if its weights cannot be fetched.
    """
    _check_options(options)
    if name == TINY_NAME:
        tiny = tiny_tower(pretrained=pretrained, **options)
        _check_grid(tiny, name)
        return tiny
    base = name.partition(".")[0]  # the name without the tag of its weights
    known = {*supported_towers(), *partly_covered_towers()}
    if not timm.is_model(base):
        raise TowerError(f"unknown tower {name!r}{nearest(base, known)}")
    try:
        if base not in known:  # refuse the tower before any weights are fetched
            with torch.device("meta"):
                survey(timm.create_model(base, pretrained=False, num_classes=0, **options), name)
        tower = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except REFUSALS as error:
        raise ConfigError(_refusal(name, options, error)) from error
    except (OSError, RuntimeError) as error:
        # The Hub's client raises OSError offline, timm raises RuntimeError for an unknown tag.
        remedy = OFFLINE if pretrained else ""
        raise TowerError(f"{name} cannot be opened: {one_line(error)}{remedy}") from error
    tower.eval()
    if not isinstance(tower, nn.Module):
        raise TowerError(f"{name}: timm gave no module")
    _check_grid(tower, name)
    if "img_size" in options:
        size = options["img_size"]
        note_image_size(tower, size if isinstance(size, int) else size[0])
    return tower


def _check_options(options: Mapping[str, Any]) -> None:
    """ConfigError names an option that does not set the shape of a tower.

    ConfigError also names an image size that is not square.
    """
    for option in NOT_OPTIONS:
        if option in options:
            raise ConfigError(
                f"tower_options: {option} cannot be set here; a tower has no classifier, and the "
                "settings weights and pretrained choose its weights"
            )
    size = options.get("img_size", 1)
    if not isinstance(size, int) and len(set(size)) > 1:
        raise ConfigError(f"tower_options: img_size must be square, got {size}")


def _check_grid(tower: nn.Module, name: str) -> None:
    """ConfigError if the pictures of a tower are smaller than a patch."""
    patches: Any = getattr(tower, "patch_embed", None)
    if 0 in (getattr(patches, "grid_size", None) or ()):
        size, patch = patches.img_size[0], patches.patch_size[0]
        raise ConfigError(
            f"tower_options: pictures of {size} pixels are smaller than a patch of {name}; "
            f"img_size must be at least {patch}"
        )


def _refusal(name: str, options: Mapping[str, Any], error: Exception) -> str:
    """The text of the error for options with which timm raised a Python error."""
    text = str(error)
    unknown = next((key for key in options if f"unexpected keyword argument {key!r}" in text), None)
    if unknown is None:
        is_type = isinstance(error, TypeError) and "argument" not in text
        reason = f"a value has the wrong type, got {dict(options)}" if is_type else text
        return f"tower_options of {name}: {reason or 'timm refuses them'}"
    kind: type[nn.Module] = VisionTransformer
    if name != TINY_NAME:
        with torch.device("meta"):
            kind = type(timm.create_model(name.partition(".")[0], pretrained=False))
    near = nearest(unknown, inspect.signature(kind).parameters)
    return f"tower_options: {name} has no option {unknown!r}{near}"


def tiny_tower(*, pretrained: bool, **options: Any) -> VisionTransformer:
    """The embedded tower: small enough to be part of the library.

    A head is 8 channels wide. For such heads timm's explicit attention is three times as fast as
    the fused kernel, so the fused kernel is switched off.
    """
    try:
        tower = VisionTransformer(**{**TINY, "num_classes": 0, "global_pool": "token", **options})
    except (*REFUSALS, RuntimeError) as error:
        raise ConfigError(_refusal(TINY_NAME, options, error)) from error
    attentions: Any = (block.attn for block in tower.blocks)
    for attention in attentions:
        attention.fused_attn = False
    setattr(tower, "pretrained_cfg", {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})  # noqa: B010  nn.Module declares attributes as tensors
    if pretrained:
        if options:
            raise ConfigError(
                f"{TINY_NAME}: its weights fit no other shape; "
                "drop tower_options, or give pretrained=False"
            )
        tower.load_state_dict(load_file(TINY_FILE))
    return tower.eval()


@functools.cache
def _listed(key: str) -> frozenset[str]:
    """The names in the list `key` of `towers.json` that the installed timm knows."""
    names = json.loads(NAMES_FILE.read_text(encoding="utf-8"))[key]
    return frozenset({*names} & {*timm.list_models()})


def supported_towers() -> list[str]:
    """The sorted names of the towers whose every attention block can have temporal heads.

    The towers are timm's, and the embedded tower (`zeroi2v_tiny`).
    """
    return sorted({TINY_NAME, *_listed("every_block")})


def partly_covered_towers() -> list[str]:
    """The sorted names of the towers where only some attention blocks can have temporal heads.

    The other attention blocks stay spatial.
    """
    return sorted(_listed("some_blocks"))
