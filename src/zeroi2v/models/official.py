"""How does a checkpoint of the authors' own code become a model?

Tables hold the key names of the authors' code, and the settings that its checkpoints do not hold.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, Final

from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError, how_many
from zeroi2v.method.heads import Heads
from zeroi2v.models.archives import Archive, read_archive
from zeroi2v.models.build import create_model
from zeroi2v.models.video import VideoClassifier
from zeroi2v.models.weights import CLIP, Layout, assign_weights

ADAPTERS: Final = {  # name of an adapter in the official code -> site in this library
    "T_Adapter_in": "qkv",
    "T_Adapter_in_q": "q",
    "T_Adapter_in_k": "k",
    "T_Adapter_in_v": "v",
    "S_Adapter": "proj",
    "MLP_Adapter": "up",
    "MLP_Adapter_out": "down",
}
ADAPTER_LINEARS: Final = {"D_fc1": "down", "D_fc2": "up"}
BLOCKS: Final = "backbone.transformer.resblocks"
OFFICIAL_KEYS: Final = {
    **{f"backbone.{key}": f"tower.{ours}" for key, ours in CLIP.items()},
    **{
        f"{BLOCKS}.#.{adapter}.{linear}.*": f"adapters.#.{site}.{ours}.*"
        for adapter, site in ADAPTERS.items()
        for linear, ours in ADAPTER_LINEARS.items()
    },
    "backbone.temporal_embedding": "temporal_embedding",
    "cls_head.fc_cls.*": "classifier.*",
}


@dataclass(frozen=True)
class OfficialModel:
    """The settings of a published model that its file does not hold."""

    # The file holds the width and the number of frames too. If they differ from these two fields,
    # `load_official` refuses the file: it has the name of this model but holds another model.
    width: int
    frames: int
    heads: str
    adapter_scale: float
    clip: ClipConfig
    views: ViewsConfig


# The published models, by the name of the authors' configuration. Some settings differ from those
# in the paper's Table 6.
OFFICIAL: Final = {
    "CLIP-B_k400_8x16x1": OfficialModel(
        768,
        8,
        "-1*1, 1*1",
        0.5,
        ClipConfig(frames=8, sampling="dense", stride=16),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_k400_8x16x1": OfficialModel(
        1024,
        8,
        "-1*2, 1*2",
        0.5,
        ClipConfig(frames=8, sampling="dense", stride=16),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_k400_32x4x1": OfficialModel(
        1024,
        32,
        "-1*2, 1*2, -2*2",
        0.5,
        ClipConfig(frames=32, sampling="dense", stride=4),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_sthv2_u32": OfficialModel(
        1024, 32, "-1*2, 1*2, -2*1, 2*1, -3*1", 1.0, ClipConfig(frames=32), ViewsConfig(crops=3)
    ),
}
OFFICIAL_TOWERS: Final = {  # (width, patch size, blocks, heads) -> name of timm's tower
    (768, 16, 12, 12): "vit_base_patch16_clip_quickgelu_224.openai",
    (768, 32, 12, 12): "vit_base_patch32_clip_quickgelu_224.openai",
    (1024, 14, 24, 16): "vit_large_patch14_clip_quickgelu_224.openai",
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that the tensors of its checkpoint tell."""

    width: int  # channels of a token
    patch: int  # pixels along a side of a patch
    grid: int  # patches along a side of a picture
    depth: int  # blocks
    frames: int
    num_classes: int
    sites: tuple[str, ...]  # the sites that have adapters; none in a merged file
    bottleneck: int  # channels of an adapter's bottleneck; 0 in a merged file


def load_official(
    path: str | os.PathLike[str],
    *,
    heads: Heads = None,
    adapter_scale: float | None = None,
    head_count: int | None = None,
) -> VideoClassifier:
    """The model, in eval mode, in a checkpoint of the official ZeroI2V code.

    The checkpoint holds adapters, or was merged by the official script. Width, depth, patch and
    image size, frames, classes, and the sites and bottleneck of the adapters come from the tensors.

    `heads` (see `create_model`) and `adapter_scale` must be given, because no tensor holds them.
    A file needs neither if its name is a name in `OFFICIAL`, with or without "_eval" at the end. A
    merged file needs no `adapter_scale`. Without `head_count` the model has width / 64 heads, as in
    CLIP.

    CheckpointError names the file, and a key that is missing, unknown or of the wrong shape.
    ConfigError names the setting that must be given.
    """
    file = read_archive(path)
    sizes = _sizes(file)
    published = OFFICIAL.get(file.path.stem.removesuffix("_eval"))
    if published and (published.width, published.frames) != (sizes.width, sizes.frames):
        raise CheckpointError(
            f"{file.path}: named after a model of width {published.width} and "
            f"{how_many(published.frames, 'frame')}, but the file holds a model of width "
            f"{sizes.width} and {how_many(sizes.frames, 'frame')}; rename the file, and give heads "
            "and adapter_scale"
        )
    if published and heads is None:
        heads = published.heads
    if published and adapter_scale is None:
        adapter_scale = published.adapter_scale
    if not sizes.sites and adapter_scale is None:
        adapter_scale = 1.0  # a merged file has absorbed the scale
    given = {"heads": heads, "adapter_scale": adapter_scale}
    lacking = " and ".join(name for name, value in given.items() if value is None)
    if heads is None or adapter_scale is None:
        raise ConfigError(
            f"{file.path}: no tensor tells {lacking}; give {lacking}, or name the file after the "
            f"published model that the file holds: {', '.join(OFFICIAL)}"
        )
    head_count = head_count or sizes.width // 64
    if head_count < 1 or sizes.width % head_count:
        raise ConfigError(
            f"{file.path}: {head_count} heads do not divide a width of {sizes.width}; "
            "give head_count"
        )
    model = _new_model(sizes, heads, adapter_scale, head_count)
    if published:
        model.spec = dataclasses.replace(model.spec, clip=published.clip, views=published.views)
    assign_weights(model.state_dict(), file, Layout("", OFFICIAL_KEYS))
    return model.eval()


def _new_model(
    sizes: Sizes, heads: Heads, adapter_scale: float, head_count: int
) -> VideoClassifier:
    """A model of these sizes with random weights; without adapters if the sizes have no sites."""
    tower = OFFICIAL_TOWERS.get((sizes.width, sizes.patch, sizes.depth, head_count))
    options = {"img_size": sizes.grid * sizes.patch}
    if tower is None:
        tower = OFFICIAL_TOWERS[768, 16, 12, 12]
        options |= {
            "embed_dim": sizes.width,
            "patch_size": sizes.patch,
            "depth": sizes.depth,
            "num_heads": head_count,
        }
    adapters: dict[str, Any] = {}
    if sizes.sites:
        ratio = _ratio(sizes.bottleneck, sizes.width)
        adapters = {"sites": sizes.sites, "adapter_ratio": ratio}
    model = create_model(
        tower,
        num_classes=sizes.num_classes,
        frames=sizes.frames,
        heads=heads,
        tower_options=options,
        adapter_scale=adapter_scale,
        adapter_dropout=0.1,
        classifier_dropout=0.5,
        **adapters,
    )
    return model if sizes.sites else model.merge()


def _sizes(file: Archive) -> Sizes:
    """Read the sizes of a model from the shapes of its tensors.

    CheckpointError if a tensor is missing or has a shape that no model of the official code has.
    """
    width, _, patch, _ = _shape(file, "backbone.conv1.weight", 4)
    tokens, _ = _shape(file, "backbone.positional_embedding", 2)
    _, frames, _ = _shape(file, "backbone.temporal_embedding", 3)
    num_classes, _ = _shape(file, "cls_head.fc_cls.weight", 2)
    depth = len({key.split(".")[3] for key in file.tensors if key.startswith(f"{BLOCKS}.")})
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise CheckpointError(
            f"{file.path}: backbone.positional_embedding has {tokens} tokens, expected a square "
            "number of patches and the class token"
        )
    keys = {site: f"{BLOCKS}.0.{adapter}.D_fc1.weight" for adapter, site in ADAPTERS.items()}
    sites = tuple(site for site, key in keys.items() if key in file.tensors)
    bottleneck = _shape(file, keys[sites[0]], 2)[0] if sites else 0
    return Sizes(width, patch, grid, depth, frames, num_classes, sites, bottleneck)


def _shape(file: Archive, key: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor. CheckpointError if the tensor is missing or has other axes.

    An axis of length 0 is an error too.
    """
    if key not in file.tensors:
        raise CheckpointError(
            f"{file.path}: not a checkpoint of the official ZeroI2V code: {key} is missing"
        )
    shape = tuple(file.tensors[key].shape)
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{file.path}: {key} is {shape}, expected {axes} axes")
    return shape


def _ratio(bottleneck: int, width: int) -> float:
    """The adapter ratio that gives this bottleneck: int(ratio * width) == bottleneck."""
    ratio = bottleneck / width
    return ratio if int(ratio * width) == bottleneck else math.nextafter(ratio, math.inf)
