"""How does a checkpoint of the authors' own code become a model? Its key names, by table, and the settings that it lacks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError
from zeroi2v.method.heads import Heads
from zeroi2v.models.archives import Archive, read_archive
from zeroi2v.models.build import create_model
from zeroi2v.models.video import VideoClassifier
from zeroi2v.models.weights import CLIP, Layout, assign_weights

ADAPTERS: Final = {  # name in the official code -> site here
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
    """What a published file does not tell: the settings that its model was trained with. `width` and `frames` it does tell."""

    width: int
    frames: int
    heads: str
    adapter_scale: float
    clip: ClipConfig
    views: ViewsConfig


OFFICIAL: Final = {  # by the name of its configuration; not all are those of the paper's Table 6
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
OFFICIAL_TOWERS: Final = {  # (width, patch, blocks, heads) -> timm's name
    (768, 16, 12, 12): "vit_base_patch16_clip_quickgelu_224.openai",
    (768, 32, 12, 12): "vit_base_patch32_clip_quickgelu_224.openai",
    (1024, 14, 24, 16): "vit_large_patch14_clip_quickgelu_224.openai",
}


def load_official(
    path: str | os.PathLike[str],
    *,
    heads: Heads = None,
    adapter_scale: float | None = None,
    head_count: int | None = None,
) -> VideoClassifier:
    """A model, in eval mode, from a checkpoint of the official ZeroI2V code, with its adapters or merged by its script.

    Widths, depth, patch, image size, frames, classes and the adapters' sites and bottleneck come from the tensors. `heads` (see
    `create_model`) and `adapter_scale` no tensor tells, so both have to be given; only a file named after one of `OFFICIAL`'s
    configurations (also with "_eval", for merged) has them from there. A merged file has no scale left. `head_count` is width / 64,
    CLIP's, unless given. CheckpointError names the file, and a key that is missing, not known or of the wrong shape.
    """
    file = read_archive(path)
    known = OFFICIAL.get(file.path.stem.removesuffix("_eval"))
    width, _, patch, _ = _shape(file, "backbone.conv1.weight", 4)
    tokens, _ = _shape(file, "backbone.positional_embedding", 2)
    _, frames, _ = _shape(file, "backbone.temporal_embedding", 3)
    num_classes, _ = _shape(file, "cls_head.fc_cls.weight", 2)
    depth = len({key.split(".")[3] for key in file.tensors if key.startswith(f"{BLOCKS}.")})
    sites, bottleneck = _adapters(file)
    if known and (known.width, known.frames) != (width, frames):
        raise CheckpointError(
            f"{file.path}: named after a model of width {known.width} and {known.frames} frames, but holds {width} and {frames}"
        )
    if heads is None and known:
        heads = known.heads
    if adapter_scale is None and (known or not sites):
        adapter_scale = known.adapter_scale if known else 1.0
    if heads is None or adapter_scale is None:
        names = ", ".join(OFFICIAL)
        raise ConfigError(
            f"{file.path}: no tensor tells the heads and the adapter_scale, so give both; they are known only for {names}"
        )
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise CheckpointError(
            f"{file.path}: backbone.positional_embedding has {tokens} tokens: not one more than a square"
        )
    head_count = head_count or width // 64
    if head_count < 1 or width % head_count:
        raise ConfigError(
            f"{file.path}: {head_count} heads do not divide a width of {width}; give head_count"
        )

    name = OFFICIAL_TOWERS.get((width, patch, depth, head_count))
    shape = {"embed_dim": width, "patch_size": patch, "depth": depth, "num_heads": head_count}
    adapters: dict[str, Any] = (
        {"sites": sites, "adapter_ratio": _ratio(bottleneck, width)} if sites else {}
    )
    model = create_model(
        name or OFFICIAL_TOWERS[768, 16, 12, 12],
        num_classes=num_classes,
        frames=frames,
        heads=heads,
        tower_options={"img_size": grid * patch, **({} if name else shape)},
        adapter_scale=adapter_scale,
        adapter_dropout=0.1,
        classifier_dropout=0.5,
        **adapters,
    )
    if not sites:
        model = model.merge()
    if known:
        model.spec = dataclasses.replace(model.spec, clip=known.clip, views=known.views)
    assign_weights(model.state_dict(), file, Layout("", OFFICIAL_KEYS))
    return model.eval()


def _shape(file: Archive, key: str, axes: int) -> tuple[int, ...]:
    if key not in file.tensors:
        raise CheckpointError(
            f"{file.path}: not a checkpoint of the official ZeroI2V code: {key} is missing"
        )
    shape = tuple(file.tensors[key].shape)
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{file.path}: {key} is {shape}, expected {axes} axes")
    return shape


def _adapters(file: Archive) -> tuple[Sequence[str] | None, int]:
    """The sites of a file's adapters, None in a merged file, and their bottleneck."""
    keys = {site: f"{BLOCKS}.0.{adapter}.D_fc1.weight" for adapter, site in ADAPTERS.items()}
    held = {site: key for site, key in keys.items() if key in file.tensors}
    if not held:
        return None, 0
    bottleneck, _ = _shape(file, next(iter(held.values())), 2)
    return list(held), bottleneck


def _ratio(bottleneck: int, width: int) -> float:
    """The ratio whose product with the width is rounded down to the bottleneck."""
    ratio = bottleneck / width
    return ratio if int(ratio * width) == bottleneck else math.nextafter(ratio, math.inf)
